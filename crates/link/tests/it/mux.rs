//! What is particular to the multiplexed link: bounds, fairness, ends and cancellation.

use crate::support::{mux_pair, mux_pair_over, pattern, read_all, settle, soon, stream_pair};
use casemate_link::{ConnectError, LinkDown, MuxHandle, StreamLost, mux};
use casemate_proto::limits::STREAMS;
use casemate_proto::mux::{ResetCode, WINDOW};
use std::future::Future;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Polls once what is not expected to be ready.
fn assert_pending(future: impl Future) {
    let polled = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
}

fn lost(error: std::io::Error) -> StreamLost {
    error.downcast().unwrap()
}

#[tokio::test]
async fn opening_waits_for_synchronisation() {
    let (near, far) = UnixStream::pair().unwrap();
    let (host, driver) = mux::attach_host(near, [1; 16]);
    tokio::spawn(driver);
    let opening = tokio::spawn({
        let host = host.clone();
        async move { host.open(9).await }
    });
    settle().await;
    assert!(!opening.is_finished() && host.generation() == 0);
    let (guest, driver) = mux::attach_guest(far);
    tokio::spawn(driver);
    let incoming = soon("accept", guest.accept()).await.unwrap();
    assert_eq!((incoming.port, incoming.generation), (9, 1));
    let _far = incoming.accept();
    soon("open", opening).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_guest_opens_streams_too() {
    let (host, guest) = mux_pair().await;
    soon("synchronisation", guest.synced()).await.unwrap();
    let (mut near, mut far) = stream_pair(&guest, &host).await;
    near.write_all(b"out").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(read_all(&mut far).await.unwrap(), b"out");
}

#[tokio::test]
async fn an_opener_that_gives_up_frees_its_place() {
    let (host, guest) = mux_pair().await;
    for _ in 0..3 * STREAMS {
        // Long enough to reach the guest, which does not answer.
        assert_pending(host.open(1));
        settle().await;
    }
    // What was given up is offered to nobody.
    assert_pending(guest.accept());
    stream_pair(&host, &guest).await;
}

#[tokio::test]
async fn an_offer_that_is_dropped_is_refused() {
    let (host, guest) = mux_pair().await;
    let (refused, ()) = tokio::join!(host.open(1), async { drop(guest.accept().await.unwrap()) });
    assert!(
        matches!(refused, Err(ConnectError::Refused { port: 1, code: ResetCode::Gone, .. })),
        "{refused:?}"
    );
    // Nor does anybody wait for a side that has stopped listening.
    let offered = tokio::spawn({
        let host = host.clone();
        async move { host.open(2).await }
    });
    settle().await;
    drop(guest);
    let refused = soon("refusal", offered).await.unwrap();
    assert!(
        matches!(refused, Err(ConnectError::Refused { port: 2, .. } | ConnectError::LinkDown(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_stream_that_was_given_up_before_it_was_taken_is_reset() {
    let (host, guest) = mux_pair().await;
    let mut opening = Box::pin(host.open(1));
    assert_pending(&mut opening);
    let incoming = soon("offer", guest.accept()).await.unwrap();
    drop(opening);
    settle().await;
    let mut stream = incoming.accept();
    let error = read_all(&mut stream).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(matches!(lost(error), StreamLost::Reset { code: ResetCode::Gone, .. }));
}

#[tokio::test]
async fn the_number_of_streams_is_bounded() {
    let (host, guest) = mux_pair().await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(stream_pair(&host, &guest).await);
    }
    assert!(matches!(host.open(1).await, Err(ConnectError::TooMany)));
    streams.pop();
    settle().await;
    stream_pair(&host, &guest).await;
}

/// Streams that the guest has reset still hold their bytes until somebody here reads or drops them.
#[tokio::test]
async fn a_guest_that_resets_and_opens_anew_gets_no_more_memory() {
    let (host, guest) = mux_pair().await;
    soon("synchronisation", guest.synced()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..STREAMS {
        let (mut near, far) = stream_pair(&guest, &host).await;
        near.write_all(&[1; 1000]).await.unwrap();
        held.push(far);
    }
    settle().await;
    let refused = soon("refusal", guest.open(1)).await;
    assert!(matches!(refused, Err(ConnectError::Refused { code: ResetCode::Busy, .. })), "{refused:?}");
    // The bytes are there, and then the reason.
    let mut stream = held.pop().unwrap();
    let mut bytes = vec![0; 1000];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(stream.read(&mut bytes).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(stream);
    stream_pair(&guest, &host).await;
}

#[tokio::test]
async fn a_writer_is_bounded_by_the_window_of_its_reader() {
    let (host, guest) = mux_pair().await;
    let (mut near, mut far) = stream_pair(&host, &guest).await;
    let written = tokio::spawn(async move {
        let mut written = 0;
        while let Ok(Ok(count)) =
            tokio::time::timeout(std::time::Duration::from_millis(300), near.write(&[7; 10_000])).await
        {
            written += count;
        }
        (written, near)
    });
    let (written, _near) = soon("window", written).await.unwrap();
    assert_eq!(written, WINDOW);
    let mut bytes = vec![0; WINDOW];
    far.read_exact(&mut bytes).await.unwrap();
}

/// Over a slow byte stream, bulk writers get equal shares, and a short message waits for one round of them
/// at most.
#[tokio::test]
async fn writers_take_turns() {
    const BULK: usize = 4;
    let (near, far) = tokio::io::duplex(4 << 10);
    let (host, guest) = mux_pair_over(near, far).await;
    let received: Arc<[AtomicUsize; BULK]> = Arc::default();
    for index in 0..BULK {
        let (mut near, mut far) = stream_pair(&host, &guest).await;
        tokio::spawn(async move {
            let chunk = vec![0x55; 1 << 20];
            while near.write_all(&chunk).await.is_ok() {}
        });
        let received = Arc::clone(&received);
        tokio::spawn(async move {
            let mut buf = vec![0; 64 << 10];
            while let Ok(count @ 1..) = far.read(&mut buf).await {
                received[index].fetch_add(count, Ordering::Relaxed);
            }
        });
    }
    let counts = || received.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (mut near, mut far) = stream_pair(&host, &guest).await;
    let mut byte = [0];
    for _ in 0..50 {
        let before: usize = counts().iter().sum();
        near.write_all(&[1]).await.unwrap();
        soon("short message", far.read_exact(&mut byte)).await.unwrap();
        let waited = counts().iter().sum::<usize>() - before;
        // One round under way, one in the output, and what the readers had not counted yet.
        assert!(waited <= BULK * WINDOW, "a short message waited for {waited} bytes of others");
    }
    let counts = counts();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(*least > 0 && most - least <= 2 * WINDOW, "unequal shares: {counts:?}");
}

#[tokio::test]
async fn whatever_waits_learns_that_the_link_ended() {
    let (near, far) = UnixStream::pair().unwrap();
    let (host, driver) = mux::attach_host(near, [1; 16]);
    let driver = tokio::spawn(driver);
    let (guest, far_driver) = mux::attach_guest(far);
    let far_driver = tokio::spawn(far_driver);
    let (mut reading, mut writing) = (stream_pair(&host, &guest).await, stream_pair(&host, &guest).await);
    writing.1.write_all(b"last words").await.unwrap();
    let waiting = tokio::spawn({
        let host = host.clone();
        async move {
            let mut byte = [0];
            let chunk = vec![1; 2 * WINDOW];
            let mut resyncs = host.resyncs();
            resyncs.mark_unchanged();
            tokio::join!(
                host.open(3),
                host.accept(),
                reading.0.read(&mut byte),
                writing.0.write_all(&chunk),
                resyncs.changed()
            )
        }
    });
    settle().await;
    assert!(!waiting.is_finished());
    // The guest's process dies.
    far_driver.abort();
    let (opened, accepted, read, written, resync) = soon("the end", waiting).await.unwrap();
    assert!(matches!(opened, Err(ConnectError::LinkDown(LinkDown::Closed))));
    assert!(matches!(accepted, Err(LinkDown::Closed)));
    let error = read.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    assert!(matches!(lost(error), StreamLost::LinkDown(LinkDown::Closed)));
    assert_eq!(written.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert!(resync.is_err());
    assert!(matches!(driver.await.unwrap(), LinkDown::Closed));
    assert!(matches!(host.open(3).await, Err(ConnectError::LinkDown(LinkDown::Closed))));
    assert!(matches!(host.synced().await, Ok(()) | Err(LinkDown::Closed)));
    assert!(matches!(guest.down(), Some(LinkDown::GivenUp)));
}

#[tokio::test]
async fn giving_up_ends_both_sides_even_where_nothing_can_be_written() {
    let (near, far) = tokio::io::duplex(64);
    let (host, driver) = mux::attach_host(near, [1; 16]);
    let driver = tokio::spawn(driver);
    // The other side takes what fits and never reads.
    settle().await;
    host.give_up();
    assert!(matches!(soon("driver", driver).await.unwrap(), LinkDown::GivenUp));
    assert!(matches!(host.open(1).await, Err(ConnectError::LinkDown(LinkDown::GivenUp))));
    drop(far);
}

#[tokio::test]
async fn a_link_that_nobody_holds_ends_by_itself() {
    let (near, far) = UnixStream::pair().unwrap();
    let (host, driver) = mux::attach_host(near, [1; 16]);
    let driver = tokio::spawn(driver);
    let (guest, far_driver) = mux::attach_guest(far);
    let far_driver = tokio::spawn(far_driver);
    let (mut near, mut far) = stream_pair(&host, &guest).await;
    drop((host.clone(), host));
    // A stream keeps it alive.
    near.write_all(&pattern(1, WINDOW)).await.unwrap();
    near.shutdown().await.unwrap();
    assert!(read_all(&mut far).await.unwrap() == pattern(1, WINDOW));
    assert!(!driver.is_finished());
    drop(near);
    assert!(matches!(soon("host", driver).await.unwrap(), LinkDown::GivenUp));
    assert!(matches!(soon("guest", far_driver).await.unwrap(), LinkDown::Closed));
}

struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn an_idle_driver_sleeps() {
    let (near, mut far) = tokio::io::duplex(1 << 10);
    let (_host, driver) = mux::attach_host(near, [1; 16]);
    let mut driver = pin!(driver);
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&wakes));
    assert!(driver.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    settle().await;
    assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "an idle driver woke itself");
    far.write_all(b"x").await.unwrap();
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    drop(far);
    let end = driver.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(matches!(end, Poll::Ready(LinkDown::Closed)), "{end:?}");
}

#[tokio::test]
async fn streams_can_be_joined_to_others() {
    let (host, guest) = mux_pair().await;
    let (mut near, mut middle) = stream_pair(&host, &guest).await;
    let (mut out, mut far) = stream_pair(&host, &guest).await;
    let joined = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut middle, &mut out).await });
    let (request, answer) = (pattern(1, 3 * WINDOW), pattern(2, 2 * WINDOW));
    let asking = async {
        near.write_all(&request).await.unwrap();
        near.shutdown().await.unwrap();
        read_all(&mut near).await.unwrap()
    };
    let answering = async {
        let asked = read_all(&mut far).await.unwrap();
        far.write_all(&answer).await.unwrap();
        far.shutdown().await.unwrap();
        asked
    };
    let (answered, asked) = soon("both ways", async { tokio::join!(asking, answering) }).await;
    assert!(answered == answer && asked == request);
    let copied = soon("the end", joined).await.unwrap().unwrap();
    assert_eq!(copied, (request.len() as u64, answer.len() as u64));
}

#[test]
fn handles_and_streams_may_cross_threads() {
    fn assert_send<T: Send + 'static>() {}
    assert_send::<MuxHandle>();
    assert_send::<casemate_link::Stream>();
    assert_send::<casemate_link::Listener>();
    assert_send::<mux::Driver<UnixStream>>();
}
