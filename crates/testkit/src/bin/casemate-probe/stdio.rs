//! The stdio transport: one message a line. One thread reads and answers what is quick.

use crate::args::Misbehaviour;
use crate::conversation::{Conversation, Outlet};
use crate::lifecycle::Phase;
use crate::misbehave;
use crate::rpc::{self, Answer};
use crate::server::Server;
use crate::signal::lock;
use casemate_proto::limits::MCP_MESSAGE_BYTES;
use casemate_proto::line::LineBuffer;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::Value;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long running requests may take to end after stdin has.
const DRAIN: Duration = Duration::from_secs(1);

const READ_BYTES: usize = 64 << 10;

/// Serves until stdin ends.
pub fn serve(server: &Arc<Server>, misbehaviour: Option<Misbehaviour>) -> ExitCode {
    if let Some(code) = misbehaviour.and_then(misbehave::before) {
        return code;
    }
    let phase = Phase::first(server.eras);
    let outlet: Arc<dyn Outlet> = Arc::new(Stdout { misbehaviour: Mutex::new(misbehaviour) });
    let conversation = Conversation::new(server.clone(), phase, outlet.clone());
    let mut lines = LineBuffer::new(MCP_MESSAGE_BYTES);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer[..]) {
            Ok(0) => break,
            Ok(read) => lines.push(&buffer[..read]),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                wait_for(&rustix::stdio::stdin(), PollFlags::IN);
                continue;
            }
            Err(error) => {
                eprintln!("casemate-probe: read stdin: {error}");
                return ExitCode::FAILURE;
            }
        }
        loop {
            match lines.next_line() {
                Ok(Some(line)) if line.trim_ascii().is_empty() => {}
                Ok(Some(line)) => conversation.take(rpc::parse(line), &outlet),
                Ok(None) => break,
                Err(error) => {
                    eprintln!("casemate-probe: read stdin: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    server.end_subscriptions();
    conversation.drain(DRAIN);
    ExitCode::SUCCESS
}

/// Writes a line to stdout, whole. Ends the process if nobody reads: there is nothing left to live for.
pub fn write_line(mut line: Vec<u8>) {
    static WRITING: Mutex<()> = Mutex::new(());
    line.push(b'\n');
    let _writing = lock(&WRITING);
    if let Err(error) = write_all(&line) {
        eprintln!("casemate-probe: write stdout: {error}");
        std::process::exit(1);
    }
}

/// Writes to stdout past every buffer.
pub fn write_all(mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // A parent may have made the pipe non-blocking, which this end shares.
            Err(Errno::AGAIN) => wait_for(&rustix::stdio::stdout(), PollFlags::OUT),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for(fd: &impl std::os::fd::AsFd, what: PollFlags) {
    // Whatever ends the wait, the next read or write says what is the matter.
    let _ = poll(&mut [PollFd::new(fd, what)], None);
}

/// stdout as an outlet.
struct Stdout {
    misbehaviour: Mutex<Option<Misbehaviour>>,
}

impl Stdout {
    fn write(&self, message: &Value) {
        let mut misbehaviour = lock(&self.misbehaviour);
        if let Some(mode) = *misbehaviour {
            *misbehaviour = misbehave::before_message(mode);
        }
        drop(misbehaviour);
        write_line(message.to_string().into_bytes());
    }
}

impl Outlet for Stdout {
    fn send(&self, message: Value) {
        self.write(&message);
    }

    fn answer(&self, answer: Answer) {
        self.write(&answer.message);
    }

    fn abandon(&self) {}
}
