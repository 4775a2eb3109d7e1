//! An `exec` stream: a program beside the server, its pipes as frames.

use crate::agent::Agent;
use crate::conversation::STILL_THERE;
use crate::failure;
use crate::follow::event_frame;
use crate::journal::Tail;
use crate::spawn::Child;
use casemate_link::Stream;
use casemate_proto::control::{Event, Exec, Exit, Failure, FailureCode};
use casemate_proto::frame::{FrameBuffer, Kind, encode};
use casemate_proto::limits::{FRAME_BYTES, STDERR_TAIL_BYTES, STREAMS};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, OwnedSemaphorePermit, watch};
use tokio::time::timeout;

/// Frames of one read of a pipe.
const PIPE_READ_BYTES: usize = 32 << 10;
const _: () = assert!(PIPE_READ_BYTES <= FRAME_BYTES);

/// How long the pipes may stay open once the program has ended and its group was killed. Where groups go by
/// descent, a process that left its session and lost its parent cannot be told from one of the server's; it
/// lives until the server ends, and is not waited for.
const PIPES_REST: Duration = Duration::from_secs(1);

/// The most programs beside the server at once.
pub const PROGRAMS: usize = STREAMS / 2;

/// A program that was started for a stream.
#[derive(Debug)]
pub struct Running {
    child: Child,
    _permit: OwnedSemaphorePermit,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid as u32
    }

    /// Ends it, because nobody is there whom it could serve.
    pub async fn abandon(self) {
        self.child.group.kill(false).await;
    }
}

/// Starts the program.
pub fn start(agent: &Arc<Agent>, exec: Exec) -> Result<Running, Failure> {
    let launch = agent.server.launch()?.beside(exec)?;
    let permit = agent.programs.clone().try_acquire_owned().map_err(|_| {
        failure::new(FailureCode::State, format!("{PROGRAMS} programs run beside the server already"))
    })?;
    Ok(Running { child: agent.server.spawn_beside(&launch)?, _permit: permit })
}

/// Carries frames until the program has ended and everything of it was delivered, or the host is gone.
/// `early` is what the host sent before it had the answer. The program's group does not outlive this.
pub async fn run(running: Running, stream: &mut Stream, early: &[u8]) -> io::Result<()> {
    let Running { child, _permit } = running;
    let Child { stdin, stdout, stderr, status, group, .. } = child;
    let (mut input, output) = tokio::io::split(stream);
    let output = Mutex::new(output);
    let mut frames = FrameBuffer::default();
    frames.push(early);

    let delivering = async {
        let ending = async {
            let ended = status.await.ok();
            // What it left behind would keep the pipes open.
            group.kill(false).await;
            ended
        };
        let (cut, was_cut) = watch::channel(false);
        let pipes = async {
            let out = carry(stdout, Kind::Stdout, &output, was_cut.clone());
            tokio::try_join!(out, carry(stderr, Kind::Stderr, &output, was_cut.clone()))
        };
        tokio::pin!(ending, pipes);
        let (ended, (_, tail)) = tokio::select! {
            carried = &mut pipes => (ending.await, carried?),
            ended = &mut ending => match timeout(PIPES_REST, &mut pipes).await {
                Ok(carried) => (ended, carried?),
                Err(_) => {
                    cut.send_replace(true);
                    (ended, pipes.await?)
                }
            }
        };
        let exit = Exit {
            code: ended.and_then(|status| status.exit_status()),
            signal: ended.and_then(|status| status.terminating_signal()),
            stderr_tail: tail.text(),
        };
        let mut output = output.lock().await;
        output.write_all(&event_frame(&Event::Exited(exit))?).await?;
        output.shutdown().await
    };
    let result = tokio::select! {
        result = delivering => result,
        error = feed(&mut input, &mut frames, stdin, &output) => Err(error),
    };
    group.kill(false).await;
    result
}

/// Frames to stdin. Returns only when the host is gone or breaks the rules: the end of its half of the stream
/// closes stdin and is nothing else.
async fn feed(
    input: &mut ReadHalf<&mut Stream>,
    frames: &mut FrameBuffer,
    stdin: pipe::Sender,
    output: &Mutex<WriteHalf<&mut Stream>>,
) -> io::Error {
    let mut stdin = Some(stdin);
    let mut buffer = vec![0; PIPE_READ_BYTES];
    loop {
        loop {
            match frames.next_frame() {
                Ok(Some((Kind::Stdin, []))) => stdin = None,
                Ok(Some((Kind::Stdin, bytes))) => {
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(bytes).await.is_err()
                    {
                        // The program reads no more; what comes is thrown away.
                        stdin = None;
                    }
                }
                Ok(Some(_)) => return io::Error::other(HostFrame),
                Ok(None) => break,
                Err(error) => return io::Error::new(io::ErrorKind::InvalidData, error),
            }
        }
        match input.read(&mut buffer).await {
            Ok(0) => {
                drop(stdin.take());
                return gone(output).await;
            }
            Ok(length) => frames.push(&buffer[..length]),
            Err(error) => return error,
        }
    }
}

/// Waits until nobody could read the output any more.
async fn gone(output: &Mutex<WriteHalf<&mut Stream>>) -> io::Error {
    loop {
        tokio::time::sleep(STILL_THERE).await;
        // An empty write moves nothing.
        if let Err(error) = output.lock().await.write(&[]).await {
            return error;
        }
    }
}

/// The host sent a frame that only the guest sends.
#[derive(Debug, thiserror::Error)]
#[error("frame of the guest's kinds from the host")]
struct HostFrame;

/// One pipe to frames, to its end or, once it was cut, to where it is empty; returns the last of it.
async fn carry(
    mut pipe: pipe::Receiver,
    kind: Kind,
    output: &Mutex<WriteHalf<&mut Stream>>,
    mut cut: watch::Receiver<bool>,
) -> io::Result<Tail> {
    let mut buffer = vec![0; PIPE_READ_BYTES];
    let mut tail = Tail::default();
    let mut wire = Vec::new();
    loop {
        let read = tokio::select! {
            biased;
            _ = cut.wait_for(|&cut| cut) => pipe.try_read(&mut buffer),
            read = pipe.read(&mut buffer) => read,
        };
        // A pipe that cannot be read is at its end.
        let length = read.unwrap_or(0);
        if kind == Kind::Stderr {
            tail.push(&buffer[..length], STDERR_TAIL_BYTES);
        }
        wire.clear();
        encode(kind, &buffer[..length], &mut wire);
        output.lock().await.write_all(&wire).await?;
        if length == 0 {
            return Ok(tail);
        }
    }
}
