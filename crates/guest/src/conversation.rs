//! The MCP conversation: one client, one server process, bytes unchanged in both directions.

use crate::agent::Agent;
use crate::reaper::lock;
use casemate_link::{Incoming, Stream};
use casemate_proto::control::Transport;
use casemate_proto::limits::STOP_GRACE;
use casemate_proto::mux::ResetCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::time::timeout;

const BUFFER_BYTES: usize = 64 << 10;

/// How often a client that sends nothing more, or whose input the server does not take, is asked whether it
/// is still there; only then does nothing else tell.
pub const STILL_THERE: Duration = Duration::from_secs(1);

/// Whether the conversation is held. Shared by the holders' guards.
#[derive(Debug, Clone, Default)]
pub struct Seat(Arc<Mutex<bool>>);

/// The conversation is held until this is dropped.
#[derive(Debug)]
struct Held(Seat);

impl Seat {
    fn take(&self) -> Option<Held> {
        let mut held = lock(&self.0);
        if *held {
            return None;
        }
        *held = true;
        Some(Held(self.clone()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *lock(&self.0.0) = false;
    }
}

/// Why the pumping ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Everything that was sent was delivered.
    Delivered,
    /// The client went away.
    Gone,
}

/// Serves one client from its attachment to the death of its server process.
pub async fn converse(agent: &Agent, incoming: Incoming) {
    let Some(held) = agent.seat.take() else {
        return incoming.refuse(ResetCode::Busy, "the conversation is held by another client");
    };
    let transport = agent.server.launch().map(|launch| launch.transport);
    if let Ok(Transport::Http { .. }) = transport {
        return incoming.refuse(ResetCode::Refused, "the server is reached by HTTP");
    }
    let process = {
        let turn = agent.server.turn().await;
        agent.server.ensure(&turn)
    };
    let process = match process {
        Ok(process) => process,
        Err(failure) => return incoming.refuse(ResetCode::Refused, &failure.message),
    };
    let Some((stdin, stdout)) = process.take_pipes() else {
        return incoming.refuse(ResetCode::Busy, "the server process belongs to another conversation");
    };
    let (mut input, mut output) = tokio::io::split(incoming.accept());
    let end = pump(&mut input, &mut output, stdin, stdout).await;
    // A client that comes now waits for this process's death; it is not told that somebody is there.
    let turn = agent.server.turn().await;
    drop(held);
    let stop = async move {
        agent.server.stop(&turn, STOP_GRACE).await;
        drop(turn);
    };
    let linger = async {
        if end == End::Delivered {
            // A stream dropped with unread bytes may look broken to a client that has yet to read its end.
            let _ = timeout(STOP_GRACE, tokio::io::copy(&mut input, &mut tokio::io::sink())).await;
        }
    };
    tokio::join!(stop, linger);
}

/// Carries bytes until the conversation is over.
async fn pump(
    input: &mut ReadHalf<Stream>,
    output: &mut WriteHalf<Stream>,
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
) -> End {
    let silent = Notify::new();
    let inbound = inbound(input, stdin, &silent);
    let outbound = outbound(stdout, output, &silent);
    tokio::pin!(inbound, outbound);
    tokio::select! {
        end = &mut inbound => match end {
            // A half-closed client still waits for answers.
            End::Delivered => outbound.await,
            End::Gone => End::Gone,
        },
        // A server that closed its stdout can answer nothing more.
        end = &mut outbound => end,
    }
}

/// Client to server, until the client says no more. What a server does not take any more is thrown away, so
/// that the client's end is still seen.
async fn inbound(input: &mut ReadHalf<Stream>, stdin: pipe::Sender, silent: &Notify) -> End {
    let mut stdin = Some(stdin);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match input.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => {
                let Some(pipe) = &mut stdin else { continue };
                let mut rest = &buffer[..length];
                while !rest.is_empty() {
                    match pipe.try_write(rest) {
                        Ok(taken) => rest = &rest[taken..],
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            silent.notify_one();
                            if pipe.writable().await.is_err() {
                                stdin = None;
                                break;
                            }
                        }
                        Err(_) => {
                            stdin = None;
                            break;
                        }
                    }
                }
            }
            Err(_) => return End::Gone,
        }
    }
    silent.notify_one();
    End::Delivered
}

/// Server to client, until the server's stdout ends; then closes that direction.
async fn outbound(mut stdout: pipe::Receiver, output: &mut WriteHalf<Stream>, silent: &Notify) -> End {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut ask = false;
    loop {
        let length = tokio::select! {
            read = stdout.read(&mut buffer) => read.unwrap_or(0),
            () = silent.notified() => {
                ask = true;
                continue;
            }
            () = tokio::time::sleep(STILL_THERE), if ask => {
                // An empty write moves nothing and fails where nobody could read it.
                if output.write(&[]).await.is_err() {
                    return End::Gone;
                }
                continue;
            }
        };
        if length == 0 {
            // Fails where the client is gone, which ends the conversation just the same.
            let _ = output.shutdown().await;
            return End::Delivered;
        }
        if output.write_all(&buffer[..length]).await.is_err() {
            return End::Gone;
        }
    }
}
