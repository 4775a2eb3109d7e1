//! What a bad server does, one mode at a time.

use crate::args::Misbehaviour;
use crate::stdio::{write_all, write_line};
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

/// Length of the line of [`Misbehaviour::LongLine`].
const LONG_LINE_BYTES: usize = 100_000_000;

/// How much [`Misbehaviour::StderrFlood`] writes: far more than any pipe holds.
const FLOOD_BYTES: usize = 32 << 20;

/// Does what comes before reading; a code ends the process.
pub fn before(mode: Misbehaviour) -> Option<ExitCode> {
    match mode {
        Misbehaviour::ExitAtOnce => {
            eprintln!("casemate-probe: exiting at once, as asked");
            Some(ExitCode::FAILURE)
        }
        Misbehaviour::NeverAnswer => {
            discard_stdin();
            Some(ExitCode::SUCCESS)
        }
        Misbehaviour::CloseStdout => {
            // Putting another file in its place closes the pipe, and keeps its number from being reused.
            let replaced = File::options().write(true).open("/dev/null").and_then(|null| {
                rustix::stdio::dup2_stdout(&null)?;
                Ok(())
            });
            if let Err(error) = replaced {
                eprintln!("casemate-probe: close stdout: {error}");
                return Some(ExitCode::FAILURE);
            }
            discard_stdin();
            Some(ExitCode::SUCCESS)
        }
        Misbehaviour::IgnoreStdin => loop {
            rustix::event::pause();
        },
        Misbehaviour::Mirror => Some(mirror()),
        Misbehaviour::StderrFlood => {
            let line = [&[b'e'; 1023][..], b"\n"].concat();
            for _ in 0..FLOOD_BYTES / line.len() {
                // If nobody listens there is nothing to flood.
                if io::stderr().write_all(&line).is_err() {
                    break;
                }
            }
            None
        }
        Misbehaviour::CallHome => {
            eprintln!("casemate-probe: called home: {}", crate::tools::call_home());
            None
        }
        Misbehaviour::Garbage | Misbehaviour::LongLine => None,
    }
}

/// Does what comes before a message, and gives what is to be done before the next.
pub fn before_message(mode: Misbehaviour) -> Option<Misbehaviour> {
    match mode {
        Misbehaviour::Garbage => {
            for line in [&b"Server starting..."[..], b"{\"jsonrpc\":", b"\xff\xfe\x00", b"[]", b"null", b""] {
                write_line(line.to_vec());
            }
            Some(mode)
        }
        Misbehaviour::LongLine => {
            write_line(vec![b'x'; LONG_LINE_BYTES]);
            None
        }
        _ => None,
    }
}

fn mirror() -> ExitCode {
    let mut buffer = [0; 64 << 10];
    let copied = loop {
        match io::stdin().read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(length) => {
                if let Err(error) = write_all(&buffer[..length]) {
                    break Err(error.into());
                }
            }
            Err(error) => break Err(error),
        }
    };
    match copied {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("casemate-probe: mirror: {error}");
            ExitCode::FAILURE
        }
    }
}

fn discard_stdin() {
    let mut buffer = [0; 4096];
    while io::stdin().read(&mut buffer).is_ok_and(|read| read > 0) {}
}
