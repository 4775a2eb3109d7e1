//! A conversation that outlives its machine's VMM: what speaks MCP holds one end of a pipe, and whatever
//! stream there is to the machine is joined to the other.
//!
//! ```text
//! client ══ DuplexStream ── carry ══ stream to the agent     awake
//! client ══ DuplexStream ── carry                            suspended: what the client says waits
//! ```

use casemate_link::Stream;
use std::{cell::Cell, future::pending, io};
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
    /// How many streams there were.
    begun: Cell<u64>,
    /// How many of them have come to their end, and the conversation has not.
    parked: watch::Receiver<u64>,
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
        (Self { streams, held, begun: Cell::new(1), parked }, near)
    }

    /// Keeps back what the client says from now on. To be followed by the agent's `park`, then by
    /// [`Carrier::parked`]; or undone by [`Carrier::release`].
    pub(super) fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Waits until everything that the machine had said has come. Fails where the conversation is over.
    pub(super) async fn parked(&self) -> bool {
        let begun = self.begun.get();
        // Also those before, where the client reads late.
        self.parked.clone().wait_for(|&parked| parked == begun).await.is_ok()
    }

    /// Goes on with the stream that there is.
    pub(super) fn release(&self) {
        self.held.send_replace(false);
    }

    /// Goes on with another stream. `false`: the conversation is over, or its client has not read for so long
    /// that the last stream has not been taken.
    pub(super) fn go_on(&self, stream: Stream) -> bool {
        let taken = self.streams.try_send(stream).is_ok();
        self.begun.set(self.begun.get() + u64::from(taken));
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
            let input = (&mut from_client, &mut waiting);
            tokio::select! {
                said = upward(input, &mut to_server, &mut holding, &streams) => match said {
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
    (client, waiting): (&mut ReadHalf<DuplexStream>, &mut Vec<u8>),
    machine: &mut WriteHalf<Stream>,
    held: &mut watch::Receiver<bool>,
    streams: &mpsc::Receiver<Stream>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        // Fails where nobody can hold it any more.
        if held.wait_for(|&held| !held).await.is_err() {
            return Ok(());
        }
        // What the client says is for the next stream, once it has read all of this one.
        if !streams.is_empty() {
            return pending().await;
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
mod tests;
