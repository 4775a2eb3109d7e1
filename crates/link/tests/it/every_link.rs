//! What every kind of link has to do, written once.

use crate::support::{Link, PORTS, pattern, read_all, read_line};
use casemate_link::{ConnectError, Stream};
use casemate_proto::mux::{ResetCode, WINDOW};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

macro_rules! on_every_link {
    ($($test:ident),* $(,)?) => {
        on_every_link!(@kind multiplexed $($test)*);
        on_every_link!(@kind unix $($test)*);
        on_every_link!(@kind handshake $($test)*);
        on_every_link!(@kind supervised $($test)*);
    };
    (@kind $kind:ident $($test:ident)*) => {
        mod $kind {
            $(#[tokio::test]
            async fn $test() {
                let link = crate::support::Link::$kind().await;
                crate::support::soon(stringify!($test), super::$test(link)).await;
            })*
        }
    };
}

on_every_link!(
    a_second_client_has_a_stream_of_its_own,
    half_a_line_and_a_disconnect_leave_nothing_behind,
    the_answer_to_an_abandoned_call_reaches_nobody,
    each_direction_ends_by_itself,
    sixteen_mebibytes_pass_both_ways_at_once,
    a_reader_that_stops_stops_nobody_else,
    what_was_written_before_the_end_arrives,
    a_refusal_is_an_error_and_not_an_end,
    streams_come_and_go_by_the_hundred,
);

/// Opens a stream and takes it at the other end.
async fn open(link: &mut Link, port: u32) -> (Stream, Stream) {
    let taking = async {
        let incoming = link.listener.accept().await.unwrap();
        assert_eq!(incoming.port, port);
        incoming.accept()
    };
    let (near, far) = tokio::join!(link.connector.connect(port), taking);
    (near.unwrap(), far)
}

async fn a_second_client_has_a_stream_of_its_own(mut link: Link) {
    let (mut first, mut first_far) = open(&mut link, PORTS[0]).await;
    let (mut second, mut second_far) = open(&mut link, PORTS[0]).await;
    let (mut control, mut control_far) = open(&mut link, PORTS[1]).await;
    first.write_all(b"one, ").await.unwrap();
    second.write_all(b"two\n").await.unwrap();
    control.write_all(b"three\n").await.unwrap();
    first.write_all(b"still one\n").await.unwrap();
    assert_eq!(read_line(&mut control_far).await.unwrap(), "three\n");
    assert_eq!(read_line(&mut second_far).await.unwrap(), "two\n");
    assert_eq!(read_line(&mut first_far).await.unwrap(), "one, still one\n");
    second_far.write_all(b"for two\n").await.unwrap();
    first_far.write_all(b"for one\n").await.unwrap();
    assert_eq!(read_line(&mut first).await.unwrap(), "for one\n");
    assert_eq!(read_line(&mut second).await.unwrap(), "for two\n");
}

async fn half_a_line_and_a_disconnect_leave_nothing_behind(mut link: Link) {
    let (mut gone, mut gone_far) = open(&mut link, PORTS[0]).await;
    gone.write_all(b"{\"half\":").await.unwrap();
    drop(gone);
    let (mut next, mut next_far) = open(&mut link, PORTS[0]).await;
    next.write_all(b"whole\n").await.unwrap();
    assert_eq!(read_line(&mut next_far).await.unwrap(), "whole\n");
    // The half line may have arrived; after it the stream is over, one way or the other.
    let mut half = Vec::new();
    let _ = gone_far.read_to_end(&mut half).await;
    assert!(b"{\"half\":".starts_with(&half), "{half:?}");
    next_far.write_all(b"answer\n").await.unwrap();
    assert_eq!(read_line(&mut next).await.unwrap(), "answer\n");
}

async fn the_answer_to_an_abandoned_call_reaches_nobody(mut link: Link) {
    let (mut gone, mut gone_far) = open(&mut link, PORTS[0]).await;
    gone.write_all(b"ask\n").await.unwrap();
    assert_eq!(read_line(&mut gone_far).await.unwrap(), "ask\n");
    drop(gone);
    let (mut next, mut next_far) = open(&mut link, PORTS[0]).await;
    // The first writes may still be taken; that the client is gone shows sooner or later.
    let answer = pattern(1, 64 << 10);
    while gone_far.write_all(&answer).await.is_ok() {
        tokio::task::yield_now().await;
    }
    next_far.write_all(b"the second one's\n").await.unwrap();
    next_far.shutdown().await.unwrap();
    assert_eq!(read_all(&mut next).await.unwrap(), b"the second one's\n");
    next.shutdown().await.unwrap();
    assert_eq!(read_all(&mut next_far).await.unwrap(), b"");
}

async fn each_direction_ends_by_itself(mut link: Link) {
    let (mut near, mut far) = open(&mut link, PORTS[0]).await;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(read_all(&mut far).await.unwrap(), b"question");
    assert_eq!(near.write(b"more").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    let answer = pattern(2, 3 * WINDOW);
    let reading = tokio::spawn(async move { read_all(&mut near).await.unwrap() });
    far.write_all(&answer).await.unwrap();
    far.shutdown().await.unwrap();
    assert!(reading.await.unwrap() == answer);
}

async fn sixteen_mebibytes_pass_both_ways_at_once(mut link: Link) {
    const LENGTH: usize = 16 << 20;
    let (near, far) = open(&mut link, PORTS[0]).await;
    let exchange = |stream: Stream, sent: u64, expected: u64| {
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let message = pattern(sent, LENGTH);
            let writing = async {
                writer.write_all(&message).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let ((), received) = tokio::join!(writing, read_all(&mut reader));
            assert!(received.unwrap() == pattern(expected, LENGTH), "the message changed on its way");
        })
    };
    let (one, other) = (exchange(near, 3, 4), exchange(far, 4, 3));
    one.await.unwrap();
    other.await.unwrap();
}

async fn a_reader_that_stops_stops_nobody_else(mut link: Link) {
    // More than a window and all the buffers of the sockets on the way.
    const LENGTH: usize = 8 << 20;
    let (mut slow, mut slow_far) = open(&mut link, PORTS[0]).await;
    let (mut quick, mut quick_far) = open(&mut link, PORTS[0]).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let writing = tokio::spawn(async move {
        let message = pattern(5, LENGTH);
        for chunk in message.chunks(64 << 10) {
            slow.write_all(chunk).await.unwrap();
            counter.fetch_add(chunk.len(), Ordering::Relaxed);
        }
        slow.shutdown().await.unwrap();
        // Kept until the other end has read everything.
        read_all(&mut slow).await.unwrap();
    });
    for round in 0..500 {
        let line = format!("{round}\n");
        quick.write_all(line.as_bytes()).await.unwrap();
        assert_eq!(read_line(&mut quick_far).await.unwrap(), line);
    }
    let before = sent.load(Ordering::Relaxed);
    assert!(before < LENGTH, "the writer of a reader that does not read was never stopped");
    assert!(read_all(&mut slow_far).await.unwrap() == pattern(5, LENGTH));
    slow_far.shutdown().await.unwrap();
    writing.await.unwrap();
}

async fn what_was_written_before_the_end_arrives(mut link: Link) {
    let (mut near, mut far) = open(&mut link, PORTS[0]).await;
    near.write_all(b"farewell").await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    // Long after: the bytes and the orderly end are still there.
    crate::support::settle().await;
    assert_eq!(read_all(&mut far).await.unwrap(), b"farewell");
}

async fn a_refusal_is_an_error_and_not_an_end(mut link: Link) {
    let refusing = async {
        let incoming = link.listener.accept().await.unwrap();
        incoming.refuse(ResetCode::Busy, "held by \x1b[31mrun");
    };
    let (refused, ()) = tokio::join!(link.connector.connect(PORTS[0]), refusing);
    match refused {
        Err(ConnectError::Refused { port, code, reason }) => {
            assert!(link.tells_reasons);
            assert_eq!((port, code), (PORTS[0], ResetCode::Busy));
            assert_eq!(reason, "held by \u{fffd}[31mrun");
        }
        Err(error) => panic!("{error}"),
        Ok(mut stream) => {
            assert!(!link.tells_reasons);
            assert_eq!(read_all(&mut stream).await.unwrap(), b"");
        }
    }
    let (mut near, mut far) = open(&mut link, PORTS[0]).await;
    near.write_all(b"next\n").await.unwrap();
    assert_eq!(read_line(&mut far).await.unwrap(), "next\n");
}

async fn streams_come_and_go_by_the_hundred(mut link: Link) {
    for round in 0..300u32 {
        let (mut near, mut far) = open(&mut link, PORTS[round as usize % 2]).await;
        near.write_all(&round.to_le_bytes()).await.unwrap();
        let mut bytes = [0; 4];
        far.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, round.to_le_bytes());
        // Either end may be the first to go, in order or not.
        match round % 4 {
            0 => drop(near),
            1 => drop(far),
            2 => near.shutdown().await.unwrap(),
            _ => far.shutdown().await.unwrap(),
        }
    }
}
