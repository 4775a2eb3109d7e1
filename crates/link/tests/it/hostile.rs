//! Bytes that no honest other side would send.

use crate::support::{NONCE, settle, soon};
use casemate_link::{ConnectError, LinkDown, MuxHandle, Stream, StreamLost, mux};
use casemate_proto::mux::{Frame, Violation, encode};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// A host with an open stream, and the socket of a guest that can say anything.
async fn poisoned() -> (MuxHandle, Stream, UnixStream, JoinHandle<LinkDown>) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (host, driver) = mux::attach_host(near, NONCE);
    let driver = tokio::spawn(driver);
    let opening = async {
        host.synced().await.unwrap();
        host.open(5252).await.unwrap()
    };
    let answering = async {
        send(&mut far, &[Frame::Synced { nonce: NONCE }]).await;
        // `ACCEPT` of a stream that is not opened yet would be a violation.
        host.synced().await.unwrap();
        settle().await;
        send(&mut far, &[Frame::Accept { stream: 1 }]).await;
    };
    let (stream, ()) = soon("open", async { tokio::join!(opening, answering) }).await;
    (host, stream, far, driver)
}

async fn send(far: &mut UnixStream, frames: &[Frame<'_>]) {
    let mut wire = Vec::new();
    frames.iter().for_each(|frame| encode(frame, &mut wire));
    // It fails if the host has closed the link already.
    let _ = far.write_all(&wire).await;
}

#[tokio::test]
async fn a_violation_is_the_reason_that_everybody_gets() {
    let (host, mut stream, mut far, driver) = poisoned().await;
    send(&mut far, &[Frame::Data { stream: 1, bytes: b"good" }, Frame::Data { stream: 77, bytes: b"bad" }])
        .await;
    let mut bytes = [0; 4];
    soon("what came before", stream.read_exact(&mut bytes)).await.unwrap();
    let error = soon("the end", stream.read(&mut bytes)).await.unwrap_err();
    let expected =
        |down: &LinkDown| matches!(down, LinkDown::Violation(Violation::Unexpected { stream: 77, .. }));
    assert!(matches!(error.downcast().unwrap(), StreamLost::LinkDown(down) if expected(&down)));
    assert!(expected(&soon("driver", driver).await.unwrap()));
    assert!(matches!(host.open(1).await, Err(ConnectError::LinkDown(down)) if expected(&down)));
    assert!(expected(&host.accept().await.unwrap_err()));
    // The link is closed: the guest sees it.
    let mut rest = Vec::new();
    let _ = soon("close", far.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn a_guest_that_floods_and_reads_nothing_is_cut_off() {
    let (_host, _stream, mut far, driver) = poisoned().await;
    let flooding = tokio::spawn(async move {
        for stream in (2u32..).step_by(2) {
            let mut wire = Vec::new();
            encode(&Frame::Open { stream, port: 1 }, &mut wire);
            if far.write_all(&wire).await.is_err() {
                return;
            }
        }
    });
    let end = soon("driver", driver).await.unwrap();
    assert!(matches!(end, LinkDown::Violation(Violation::Flood)), "{end:?}");
    soon("flood", flooding).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_answers_another_hosts_nonce_is_not_believed() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let (host, driver) = mux::attach_host(near, NONCE);
    tokio::spawn(driver);
    send(&mut far, &[Frame::Synced { nonce: [8; 16] }, Frame::Open { stream: 2, port: 1 }]).await;
    settle().await;
    assert_eq!(host.generation(), 0);
    send(&mut far, &[Frame::Synced { nonce: NONCE }]).await;
    soon("synchronisation", host.synced()).await.unwrap();
}

/// Frames that are well formed and mostly senseless, and noise between them.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let stream = 0u32..6;
    let frame = prop_oneof![
        (stream.clone(), 0u32..3).prop_map(|(stream, port)| wire(&Frame::Open { stream, port })),
        stream.clone().prop_map(|stream| wire(&Frame::Accept { stream })),
        (stream.clone(), 1usize..5000)
            .prop_map(|(stream, length)| wire(&Frame::Data { stream, bytes: &vec![0; length] })),
        (stream.clone(), any::<u32>()).prop_map(|(stream, bytes)| wire(&Frame::Credit { stream, bytes })),
        stream.clone().prop_map(|stream| wire(&Frame::Fin { stream })),
        stream.prop_map(|stream| {
            let code = casemate_proto::mux::ResetCode::Gone;
            wire(&Frame::Reset { stream, code, reason: "\x1b[2J" })
        }),
        Just(wire(&Frame::Sync { nonce: NONCE })),
        Just(wire(&Frame::Synced { nonce: NONCE })),
        proptest::collection::vec(any::<u8>(), 1..300),
    ];
    proptest::collection::vec(frame, 1..30).prop_map(|frames| frames.concat())
}

fn wire(frame: &Frame<'_>) -> Vec<u8> {
    let mut wire = Vec::new();
    encode(frame, &mut wire);
    wire
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_says_the_hosts_end_ends(bytes in noise()) {
        block_on(async {
            let (host, mut stream, mut far, driver) = poisoned().await;
            let using = tokio::spawn(async move {
                while let Ok(incoming) = host.accept().await {
                    let mut stream = incoming.accept();
                    let _ = stream.write_all(b"taken").await;
                }
            });
            let reading = tokio::spawn(async move {
                let mut bytes = Vec::new();
                let _ = stream.read_to_end(&mut bytes).await;
            });
            let _ = far.write_all(&bytes).await;
            drop(far);
            soon("driver", driver).await.unwrap();
            soon("user", using).await.unwrap();
            soon("reader", reading).await.unwrap();
        });
    }

    #[test]
    fn whatever_a_guest_hears_it_answers_the_next_host(bytes in noise()) {
        block_on(async {
            let (mut near, far) = UnixStream::pair().unwrap();
            let (guest, driver) = mux::attach_guest(far);
            tokio::spawn(driver);
            let taking = tokio::spawn(async move {
                let mut taken = Vec::new();
                while let Ok(incoming) = guest.accept().await {
                    taken.push(incoming.accept());
                }
            });
            near.write_all(&bytes).await.unwrap();
            // The same socket, a new host.
            let (host, driver) = mux::attach_host(near, [3; 16]);
            tokio::spawn(driver);
            soon("synchronisation", host.synced()).await.unwrap();
            soon("open", host.open(1)).await.unwrap();
            drop(host);
            soon("guest", taking).await.unwrap();
        });
    }
}
