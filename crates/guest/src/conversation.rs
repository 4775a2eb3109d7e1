//! The MCP conversation: one client, one server process, bytes unchanged in both directions.

use crate::agent::Agent;
use casemate_link::{Incoming, Stream};
use casemate_proto::control::Transport;
use casemate_proto::limits::STOP_GRACE;
use casemate_proto::mux::ResetCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

const BUFFER_BYTES: usize = 64 << 10;

/// How often a client that sends nothing more, or whose input the server does not take, is asked whether it
/// is still there; only then does nothing else tell.
pub const STILL_THERE: Duration = Duration::from_secs(1);

/// Between two looks at whether a conversation that is to be parked rests.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Whether the conversation is held. Shared by the holders' guards.
#[derive(Debug, Clone, Default)]
pub struct Seat(Arc<watch::Sender<bool>>);

/// The conversation is held until this is dropped.
#[derive(Debug)]
struct Held(Seat);

impl Seat {
    fn take(&self) -> Option<Held> {
        let taken = self.0.send_if_modified(|held| !std::mem::replace(held, true));
        taken.then(|| Held(self.clone()))
    }

    /// Waits until nobody holds the conversation.
    pub async fn free(&self) {
        // The sender is this value's own.
        let _ = self.0.subscribe().wait_for(|&held| !held).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.send_replace(false);
    }
}

/// Why the pumping ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Everything that was sent was delivered.
    Delivered,
    /// The client went away.
    Gone,
    /// The host wants to suspend the machine: nothing is on the way, and the next client goes on.
    Parked,
}

/// Has the conversation let go of its stream, see [`Request::Park`](casemate_proto::control::Request::Park).
#[derive(Debug, Default)]
pub struct Parking {
    wanted: watch::Sender<bool>,
}

impl Parking {
    /// Lets go of the stream once nothing is on the way. When cancelled, the conversation goes on.
    pub async fn park(&self, agent: &Agent) {
        let _wish = Wish::new(&self.wanted);
        agent.seat.free().await;
    }

    async fn wanted(&self) {
        // The sender is this value's own.
        let _ = self.wanted.subscribe().wait_for(|&wanted| wanted).await;
    }
}

/// A wish that ends with whoever has it.
struct Wish<'a>(&'a watch::Sender<bool>);

impl<'a> Wish<'a> {
    fn new(wanted: &'a watch::Sender<bool>) -> Self {
        wanted.send_replace(true);
        Self(wanted)
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
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
    let Some((stdin, mut stdout)) = process.take_pipes() else {
        return incoming.refuse(ResetCode::Busy, "the server process belongs to another conversation");
    };
    let (mut input, mut output) = tokio::io::split(incoming.accept());
    let mut stdin = Some(stdin);
    let end = pump(&mut input, &mut output, &mut stdin, &mut stdout, &agent.parking).await;
    if end == End::Parked {
        process.give_back(stdin, stdout);
        // Fails where the host is gone already.
        let _ = output.shutdown().await;
        drop(held);
        let _ = timeout(STOP_GRACE, tokio::io::copy(&mut input, &mut tokio::io::sink())).await;
        return;
    }
    // The server sees the end of its input.
    drop((stdin, stdout));
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

/// Where the two directions are.
#[derive(Debug, Default)]
struct Resting {
    /// The host's bytes are all with the server, which still takes some.
    inbound: AtomicBool,
    /// The server's bytes are all with the host.
    outbound: AtomicBool,
}

impl Resting {
    /// Resolves when the conversation is to be parked and nothing is on the way.
    async fn parked(&self, parking: &Parking) {
        loop {
            parking.wanted().await;
            if self.inbound.load(Relaxed) && self.outbound.load(Relaxed) {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Carries bytes until the conversation is over, or parked.
async fn pump(
    input: &mut ReadHalf<Stream>,
    output: &mut WriteHalf<Stream>,
    stdin: &mut Option<pipe::Sender>,
    stdout: &mut pipe::Receiver,
    parking: &Parking,
) -> End {
    let (silent, resting) = (Notify::new(), Resting::default());
    let parked = resting.parked(parking);
    let carried = async {
        let inbound = inbound(input, stdin, &silent, &resting);
        let outbound = outbound(stdout, output, &silent, &resting);
        tokio::pin!(inbound, outbound);
        tokio::select! {
            end = &mut inbound => match end {
                // A half-closed client still waits for answers.
                End::Delivered | End::Parked => outbound.await,
                End::Gone => End::Gone,
            },
            // A server that closed its stdout can answer nothing more.
            end = &mut outbound => end,
        }
    };
    tokio::select! {
        // First what can still be carried: both directions rest once there is nothing.
        biased;
        end = carried => end,
        () = parked => End::Parked,
    }
}

/// Client to server, until the client says no more. What a server does not take any more is thrown away, so
/// that the client's end is still seen.
async fn inbound(
    input: &mut ReadHalf<Stream>,
    stdin: &mut Option<pipe::Sender>,
    silent: &Notify,
    resting: &Resting,
) -> End {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        // A conversation whose input has ended cannot go on later; it comes to its own end.
        resting.inbound.store(stdin.is_some(), Relaxed);
        let read = input.read(&mut buffer).await;
        resting.inbound.store(false, Relaxed);
        match read {
            Ok(0) => break,
            Ok(length) => deliver(&buffer[..length], stdin, silent).await,
            Err(_) => return End::Gone,
        }
    }
    drop(stdin.take());
    silent.notify_one();
    End::Delivered
}

/// Writes all of it, unless the server does not take it any more.
async fn deliver(mut rest: &[u8], stdin: &mut Option<pipe::Sender>, silent: &Notify) {
    while let (Some(pipe), false) = (stdin.as_ref(), rest.is_empty()) {
        let lost = match pipe.try_write(rest) {
            Ok(taken) => {
                rest = &rest[taken..];
                false
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                silent.notify_one();
                pipe.writable().await.is_err()
            }
            Err(_) => true,
        };
        if lost {
            *stdin = None;
        }
    }
}

/// Server to client, until the server's stdout ends; then closes that direction.
async fn outbound(
    stdout: &mut pipe::Receiver,
    output: &mut WriteHalf<Stream>,
    silent: &Notify,
    resting: &Resting,
) -> End {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut ask = false;
    loop {
        resting.outbound.store(true, Relaxed);
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
        resting.outbound.store(false, Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::{Pin, pin};
    use tokio::net::UnixStream;
    use tokio::task::yield_now;

    /// How often everything that could go on is let go on, until it is taken to have come to rest.
    const TURNS: usize = 50;

    /// How often it is tried what may come in one order or another.
    const ROUNDS: usize = 20;

    /// What a conversation is made of, but for the client.
    struct Parts {
        stream: Stream,
        stdin: pipe::Sender,
        stdout: pipe::Receiver,
    }

    impl Parts {
        /// With them come the server's ends.
        fn new(stream: UnixStream) -> (Self, pipe::Receiver, pipe::Sender) {
            let (stdin, hears) = pipe::pipe().unwrap();
            let (says, stdout) = pipe::pipe().unwrap();
            (Self { stream: Stream::from_unix(stream), stdin, stdout }, hears, says)
        }

        /// Closes everything at its end.
        async fn pump(self, parking: &Parking) -> End {
            let (mut input, mut output) = tokio::io::split(self.stream);
            let (mut stdin, mut stdout) = (Some(self.stdin), self.stdout);
            pump(&mut input, &mut output, &mut stdin, &mut stdout, parking).await
        }
    }

    async fn within_a_minute<T>(what: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(60), what).await.expect("still waiting after a minute")
    }

    /// Waits until what is pumped rests.
    async fn at_rest(mut pumped: Pin<&mut impl Future<Output = End>>) {
        for _ in 0..TURNS {
            tokio::select! {
                biased;
                end = &mut pumped => panic!("it ended: {end:?}"),
                () = yield_now() => {}
            }
        }
    }

    /// Something for the client to read first, as much as there is room for.
    async fn fill(stream: &UnixStream) -> usize {
        stream.writable().await.unwrap();
        let chunk = vec![0; BUFFER_BYTES];
        let mut filled = 0;
        while let Ok(written) = stream.try_write(&chunk) {
            filled += written;
        }
        filled
    }

    #[tokio::test]
    async fn while_one_direction_cannot_be_parked_the_other_goes_on() {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let filled = fill(&stream).await;
        let (parts, mut hears, mut says) = Parts::new(stream);
        let parking = Parking::default();
        let mut pumped = pin!(parts.pump(&parking));
        says.write_all(b"said").await.unwrap();
        at_rest(pumped.as_mut()).await;

        let wish = Wish::new(&parking.wanted);
        at_rest(pumped.as_mut()).await;
        client.write_all(b"asked").await.unwrap();
        let mut heard = [0; 5];
        let hear = within_a_minute(hears.read_exact(&mut heard));
        tokio::select! {
            end = &mut pumped => panic!("it ended: {end:?}"),
            read = hear => assert_eq!(read.unwrap(), 5),
        }
        assert_eq!(&heard, b"asked");

        // A wish that is given up leaves no trace; the next one is granted once there is room.
        drop(wish);
        at_rest(pumped.as_mut()).await;
        let _wish = Wish::new(&parking.wanted);
        let mut read = Vec::new();
        let (end, _) = within_a_minute(async { tokio::join!(pumped, client.read_to_end(&mut read)) }).await;
        assert_eq!(end, End::Parked);
        assert_eq!((read.len(), &read[filled..]), (filled + 4, &b"said"[..]));
    }

    #[tokio::test]
    async fn what_the_client_said_before_the_wish_reaches_the_server_before_it_is_granted() {
        for _ in 0..ROUNDS {
            let (mut client, stream) = UnixStream::pair().unwrap();
            let (parts, mut hears, _says) = Parts::new(stream);
            let parking = Parking::default();
            let mut pumped = pin!(parts.pump(&parking));
            at_rest(pumped.as_mut()).await;
            client.write_all(b"asked").await.unwrap();
            // It is there to be read, and was not yet.
            for _ in 0..TURNS {
                yield_now().await;
            }
            let _wish = Wish::new(&parking.wanted);
            assert_eq!(within_a_minute(pumped).await, End::Parked);
            let mut heard = Vec::new();
            within_a_minute(hears.read_to_end(&mut heard)).await.unwrap();
            assert_eq!(heard, b"asked");
        }
    }

    #[tokio::test]
    async fn a_conversation_whose_client_says_no_more_is_answered_and_not_parked() {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let (parts, mut hears, mut says) = Parts::new(stream);
        let parking = Parking::default();
        let mut pumped = pin!(parts.pump(&parking));
        client.shutdown().await.unwrap();
        let ended = within_a_minute(async { hears.read(&mut [0]).await.unwrap() });
        tokio::select! {
            end = &mut pumped => panic!("it ended: {end:?}"),
            read = ended => assert_eq!(read, 0),
        }
        let _wish = Wish::new(&parking.wanted);
        at_rest(pumped.as_mut()).await;
        says.write_all(b"answer").await.unwrap();
        drop(says);
        assert_eq!(within_a_minute(pumped).await, End::Delivered);
        let mut answer = String::new();
        within_a_minute(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn a_conversation_whose_server_takes_no_more_is_not_parked() {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let (parts, hears, says) = Parts::new(stream);
        let parking = Parking::default();
        let mut pumped = pin!(parts.pump(&parking));
        drop(hears);
        at_rest(pumped.as_mut()).await;
        client.write_all(b"asked").await.unwrap();
        at_rest(pumped.as_mut()).await;
        let _wish = Wish::new(&parking.wanted);
        at_rest(pumped.as_mut()).await;
        drop(says);
        assert_eq!(within_a_minute(pumped).await, End::Delivered);
    }
}
