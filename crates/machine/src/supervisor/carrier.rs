//! A conversation that outlives its machine's VMM: what speaks MCP holds one end of a pipe, and whatever
//! stream there is to the machine is joined to the other.
//!
//! ```text
//! client ══ DuplexStream ── carry ══ stream to the agent     awake
//! client ══ DuplexStream ── carry                            suspended: what the client says waits
//! ```

use casemate_link::Stream;
use std::{cell::RefCell, io};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::{mpsc, watch},
};

/// What waits in the pipe in each direction.
const PIPE_BYTES: usize = 64 << 10;

/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// Hands streams to the task that carries.
#[derive(Debug)]
pub(super) struct Carrier {
    streams: mpsc::Sender<Stream>,
    /// While it is set, nothing goes to the machine, and the end of what comes from it is no end.
    held: watch::Sender<bool>,
    /// How many streams have come to their end while held.
    parked: RefCell<watch::Receiver<u64>>,
}

impl Carrier {
    /// Begins to carry over `stream`; the other end is for whoever speaks with the server. The task ends with
    /// either side.
    pub(super) fn begin(stream: Stream) -> (Self, DuplexStream) {
        let (near, far) = duplex(PIPE_BYTES);
        let (streams, offered) = mpsc::channel(1);
        let (held, holding) = watch::channel(false);
        let (set_parked, parked) = watch::channel(0);
        tokio::task::spawn_local(carry(stream, far, offered, holding, set_parked));
        (Self { streams, held, parked: RefCell::new(parked) }, near)
    }

    /// Keeps back what the client says from now on. To be followed by the agent's `park`, then by
    /// [`Carrier::parked`]; or undone by [`Carrier::release`].
    pub(super) fn hold(&self) {
        self.parked.borrow_mut().mark_unchanged();
        self.held.send_replace(true);
    }

    /// Waits until everything that the machine had said has come. Fails where the conversation is over.
    pub(super) async fn parked(&self) -> bool {
        let mut parked = self.parked.borrow().clone();
        parked.changed().await.is_ok()
    }

    /// Goes on with the stream that there is.
    pub(super) fn release(&self) {
        self.held.send_replace(false);
    }

    /// Goes on with another stream. `false`: the conversation is over, or its client has not read for so long
    /// that the last stream has not been taken.
    pub(super) fn go_on(&self, stream: Stream) -> bool {
        let taken = self.streams.try_send(stream).is_ok();
        self.release();
        taken
    }
}

/// Why a stream is left.
enum Left {
    /// The machine is to be suspended.
    Parked,
    /// The conversation is over.
    Over,
}

async fn carry(
    mut stream: Stream,
    far: DuplexStream,
    mut streams: mpsc::Receiver<Stream>,
    mut held: watch::Receiver<bool>,
    parked: watch::Sender<u64>,
) {
    let (mut from_client, mut to_client) = split(far);
    // What the client said and no stream took.
    let mut waiting = Vec::new();
    loop {
        let (mut from_server, mut to_server) = split(stream);
        let mut holding = held.clone();
        let left = {
            let downward = downward(&mut from_server, &mut to_client, &mut held, &streams);
            tokio::pin!(downward);
            tokio::select! {
                said = upward(&mut from_client, &mut to_server, &mut waiting, &mut holding) => match said {
                    // The client says no more; the server may still answer.
                    Ok(()) => {
                        let _ = to_server.shutdown().await;
                        downward.await;
                        Left::Over
                    }
                    Err(_) => Left::Over,
                },
                left = &mut downward => left,
            }
        };
        if matches!(left, Left::Over) {
            let _ = to_client.shutdown().await;
            return;
        }
        parked.send_modify(|count| *count += 1);
        stream = match streams.recv().await {
            Some(stream) => stream,
            None => return,
        };
    }
}

/// Client to machine. May be cancelled: what was read is in `waiting` until a stream took it.
async fn upward(
    client: &mut ReadHalf<DuplexStream>,
    machine: &mut WriteHalf<Stream>,
    waiting: &mut Vec<u8>,
    held: &mut watch::Receiver<bool>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        // Fails where nobody can hold it any more.
        if held.wait_for(|&held| !held).await.is_err() {
            return Ok(());
        }
        // Looked at first, each time: what goes out after the machine was held would be lost with its stream.
        if waiting.is_empty() {
            let read = tokio::select! {
                biased;
                _ = held.wait_for(|&held| held) => continue,
                read = client.read(&mut chunk) => read?,
            };
            if read == 0 {
                return Ok(());
            }
            waiting.extend_from_slice(&chunk[..read]);
        }
        let written = tokio::select! {
            biased;
            _ = held.wait_for(|&held| held) => continue,
            written = machine.write(waiting) => written?,
        };
        waiting.drain(..written);
        if waiting.is_empty() {
            machine.flush().await?;
        }
    }
}

/// Machine to client, to the end of the stream.
async fn downward(
    machine: &mut ReadHalf<Stream>,
    client: &mut WriteHalf<DuplexStream>,
    held: &mut watch::Receiver<bool>,
    streams: &mpsc::Receiver<Stream>,
) -> Left {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match machine.read(&mut chunk).await {
            // Also where the client read so late that the next stream is there already.
            Ok(0) if *held.borrow_and_update() || !streams.is_empty() => return Left::Parked,
            Ok(0) | Err(_) => return Left::Over,
            Ok(read) => {
                if client.write_all(&chunk[..read]).await.is_err() {
                    return Left::Over;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixStream;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bounded = async { tokio::time::timeout(std::time::Duration::from_secs(60), test).await };
        tokio::task::LocalSet::new().block_on(&runtime, bounded).expect("still waiting after a minute");
    }

    #[test]
    fn what_is_said_while_nobody_is_there_arrives_later_and_nothing_is_lost() {
        run(async {
            let (machine, ours) = UnixStream::pair().unwrap();
            let (carrier, mut client) = Carrier::begin(Stream::from_unix(ours));
            let (mut from_client, mut to_client) = split(machine);
            client.write_all(b"one").await.unwrap();
            let mut heard = [0; 3];
            from_client.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"one");

            carrier.hold();
            client.write_all(b"two").await.unwrap();
            to_client.write_all(b"last").await.unwrap();
            to_client.shutdown().await.unwrap();
            assert!(carrier.parked().await);
            let mut heard = [0; 4];
            client.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"last");

            let (machine, ours) = UnixStream::pair().unwrap();
            assert!(carrier.go_on(Stream::from_unix(ours)));
            let (mut from_client, mut to_client) = split(machine);
            let mut heard = [0; 3];
            from_client.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"two");
            to_client.write_all(b"end").await.unwrap();
            to_client.shutdown().await.unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"end");
        });
    }
}
