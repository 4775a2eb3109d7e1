//! What every kind of link has to do between a host and a real guest, written once.
//!
//! Each kind boots one guest, whose server gives back every byte, and keeps it for the whole list: what one
//! client did must not show to the next.

pub mod boot;
pub mod control;
pub mod guest;

use casemate_link::{ConnectError, Stream};
use casemate_proto::{control::Request, limits::MCP_MESSAGE_BYTES, mux::ResetCode, port};
use guest::{Guest, Kind, soon};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// A writer that has waited so long waits for its reader.
const STOPPED: Duration = Duration::from_secs(1);

#[tokio::test]
async fn virtio_serial_with_the_multiplexer() {
    keeps_clients_apart(Kind::Serial).await;
}

#[tokio::test]
async fn vsock_with_the_multiplexer() {
    keeps_clients_apart(Kind::Vsock).await;
}

#[tokio::test]
async fn unix_sockets() {
    keeps_clients_apart(Kind::Sockets).await;
}

async fn keeps_clients_apart(kind: Kind) {
    let mut guest = Guest::start(kind).await;
    let guest = &mut guest;
    // What a failed test prints ends with the property that does not hold.
    println!("a second client");
    a_second_client_is_refused_and_disturbs_nobody(guest).await;
    println!("half a line");
    half_a_line_and_a_disconnect_leave_nothing_behind(guest).await;
    println!("an abandoned call");
    the_answer_to_an_abandoned_call_reaches_nobody(guest).await;
    println!("half-close");
    a_client_that_says_no_more_is_still_answered(guest).await;
    println!("large messages");
    sixteen_mebibytes_pass_both_ways_at_once(guest).await;
    println!("a reader that stops");
    a_reader_that_stops_stops_nobody_else(guest).await;
    println!("a killed host");
    a_killed_host_leaves_nothing_to_the_next(guest).await;
}

async fn a_second_client_is_refused_and_disturbs_nobody(guest: &mut Guest) {
    let mut first = guest.converse().await;
    first.write_all(b"one, ").await.unwrap();
    match guest.connector().connect(port::CONVERSATION).await {
        Err(ConnectError::Refused { code, reason, .. }) => {
            assert_eq!(code, ResetCode::Busy);
            assert!(reason.contains("held"), "{reason}");
        }
        // A native link carries no reason: the stream is over before anything was said.
        Ok(mut second) => {
            let said = soon("the refusal", second.read(&mut [0; 8])).await;
            assert!(matches!(said, Ok(0) | Err(_)), "the second client got an answer");
        }
        Err(error) => panic!("{error}: {error:?}"),
    }
    first.write_all(b"still one\n").await.unwrap();
    expect(&mut first, b"one, still one\n").await;
}

async fn half_a_line_and_a_disconnect_leave_nothing_behind(guest: &mut Guest) {
    let mut gone = guest.converse().await;
    gone.write_all(b"{\"half\":").await.unwrap();
    drop(gone);
    // Opening a conversation asserts that its first bytes are its own.
    let mut next = guest.converse().await;
    next.write_all(b"whole\n").await.unwrap();
    expect(&mut next, b"whole\n").await;
}

async fn the_answer_to_an_abandoned_call_reaches_nobody(guest: &mut Guest) {
    let gone = guest.converse().await;
    let (mut answers, mut requests) = tokio::io::split(gone);
    let calling = tokio::spawn(async move {
        let call = pattern(1, 4 << 20);
        requests.write_all(&call).await
    });
    // The answer is on its way when the client goes.
    soon("the beginning of the answer", answers.read_exact(&mut [0; 1000])).await.unwrap();
    calling.abort();
    // Both halves are gone once the task is.
    assert!(soon("the end of the call", calling).await.unwrap_err().is_cancelled());
    drop(answers);
    let mut next = guest.converse().await;
    next.write_all(b"mine\n").await.unwrap();
    expect(&mut next, b"mine\n").await;

    // Control streams are many at once, and an answer finds the one that asked.
    let mut abandoned = guest.control().await;
    let mut other = guest.control().await;
    abandoned.ask(Request::Inventory).await.unwrap();
    drop(abandoned);
    let _: casemate_proto::control::Pong = other.done(Request::Ping).await;
}

async fn a_client_that_says_no_more_is_still_answered(guest: &mut Guest) {
    let client = guest.converse().await;
    let (mut answers, mut requests) = tokio::io::split(client);
    let message = pattern(2, 1 << 20);
    let asking = async {
        requests.write_all(&message).await?;
        requests.shutdown().await
    };
    let mut answer = Vec::new();
    let (asked, answered) =
        soon("the end of the answer", async { tokio::join!(asking, answers.read_to_end(&mut answer)) }).await;
    asked.unwrap();
    answered.unwrap();
    assert!(answer == message, "{} of {} bytes came back", answer.len(), message.len());
}

async fn sixteen_mebibytes_pass_both_ways_at_once(guest: &mut Guest) {
    let (mut answers, mut requests) = tokio::io::split(guest.converse().await);
    let message = pattern(3, MCP_MESSAGE_BYTES);
    let mut echo = vec![0; message.len()];
    let (sent, received) =
        soon("16 MiB", async { tokio::join!(requests.write_all(&message), answers.read_exact(&mut echo)) })
            .await;
    sent.unwrap();
    received.unwrap();
    assert!(echo == message, "the message changed on its way");
}

async fn a_reader_that_stops_stops_nobody_else(guest: &mut Guest) {
    let (mut answers, mut requests) = tokio::io::split(guest.converse().await);
    let message = pattern(4, MCP_MESSAGE_BYTES);
    let mut sent = 0;
    while let Ok(written) = timeout(STOPPED, requests.write(&message[sent..])).await {
        sent += written.unwrap();
        assert!(sent < message.len(), "the writer of a reader that does not read was never stopped");
    }
    for _ in 0..10 {
        guest.ping().await;
    }
    let mut echo = vec![0; sent];
    soon("what was written", answers.read_exact(&mut echo)).await.unwrap();
    assert!(echo == message[..sent], "the message changed on its way");
}

async fn a_killed_host_leaves_nothing_to_the_next(guest: &mut Guest) {
    let mut before = guest.converse().await;
    before.write_all(b"before\n").await.unwrap();
    expect(&mut before, b"before\n").await;
    drop(before);
    guest.kill_the_host().await;
    let (mut answers, mut requests) = tokio::io::split(guest.converse().await);
    let message = pattern(5, 1 << 20);
    let mut echo = vec![0; message.len()];
    let (sent, received) = soon("the first message of the new host", async {
        tokio::join!(requests.write_all(&message), answers.read_exact(&mut echo))
    })
    .await;
    sent.unwrap();
    received.unwrap();
    assert!(echo == message, "the message changed on its way");
    guest.ping().await;
}

/// Reads what has to come, and that it is what comes.
async fn expect(stream: &mut Stream, bytes: &[u8]) {
    let mut found = vec![0; bytes.len()];
    let read: io::Result<usize> = soon("an answer", stream.read_exact(&mut found)).await;
    read.unwrap();
    assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(bytes));
}

/// Bytes that differ from place to place, so that nothing can be lost, doubled or moved unseen.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}
