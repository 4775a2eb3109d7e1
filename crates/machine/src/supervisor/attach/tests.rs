//! Clients that go, and clients that only say no more, at a supervisor whose machine is played by the test.

use super::{handle, is_object};
use crate::{
    supervise::{self, Answer, Asked, Request},
    supervisor::played::{Played, asked, reply, within_a_minute},
};
use casemate_link::handshake;
use casemate_proto::{
    control::{Reply, Request as Control, Stats},
    port,
};
use serde_json::value::to_raw_value;
use std::{rc::Rc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::{JoinHandle, spawn_local},
};

#[test]
fn only_whole_objects_are_messages() {
    for good in ["{}", " {\"a\": [1, {\"b\": null}]}\r"] {
        assert!(is_object(good.as_bytes()), "{good:?}");
    }
    for bad in ["", "[]", "{", "{}{}", "listening on 3000", "1", "{\"a\":\u{1}}"] {
        assert!(!is_object(bad.as_bytes()), "{bad:?}");
    }
}

/// A client that asks for a port, and the task that serves it.
async fn client(machine: &Played, port: u32) -> (UnixStream, JoinHandle<()>) {
    let (mut client, served) = UnixStream::pair().unwrap();
    let serving = spawn_local(handle(served, Rc::clone(&machine.shared)));
    handshake::request(&mut client, port).await.unwrap();
    (client, serving)
}

/// A client says no more, is answered all the same, and goes while the machine is silent.
async fn half_closes_and_goes(port: u32) {
    let machine = Played::new();
    let agent = machine.listen(port);
    let (mut client, serving) = client(&machine, port).await;
    let (mut stream, _) = agent.accept().await.unwrap();

    client.write_all(b"{}\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = String::new();
    stream.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "{}\n");
    stream.write_all(b"{\"late\": 1}\n").await.unwrap();
    let mut answer = String::new();
    BufReader::new(&mut client).read_line(&mut answer).await.unwrap();
    assert_eq!(answer, "{\"late\": 1}\n");
    assert!(!serving.is_finished());

    drop(client);
    serving.await.unwrap();
    assert_eq!(*machine.shared.holder.borrow(), None);
}

#[test]
fn a_client_that_is_gone_ends_its_conversation_and_one_that_says_no_more_does_not() {
    within_a_minute(half_closes_and_goes(port::CONVERSATION));
}

#[test]
fn a_client_that_is_gone_ends_its_stream_and_one_that_says_no_more_does_not() {
    within_a_minute(half_closes_and_goes(port::CONTROL));
}

#[test]
fn a_client_that_goes_while_its_input_is_not_taken_ends_its_conversation() {
    within_a_minute(async {
        let machine = Played::new();
        let agent = machine.listen(port::CONVERSATION);
        let (mut client, serving) = client(&machine, port::CONVERSATION).await;
        let (stream, _) = agent.accept().await.unwrap();
        let chunk = vec![b' '; 64 << 10];
        let stopped = Duration::from_millis(200);
        while tokio::time::timeout(stopped, client.write_all(&chunk)).await.is_ok() {}
        drop(client);
        serving.await.unwrap();
        drop(stream);
    });
}

#[test]
fn what_a_client_said_before_it_went_gets_through() {
    within_a_minute(async {
        let machine = Played::new();
        let agent = machine.listen(port::CONVERSATION);
        let (mut client, serving) = client(&machine, port::CONVERSATION).await;
        client.write_all(b"{\"last\": 1}\n").await.unwrap();
        drop(client);
        let (mut stream, _) = agent.accept().await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "{\"last\": 1}\n");
        serving.await.unwrap();
    });
}

/// Sends a request that the agent has to answer.
async fn ask_for_stats(client: &mut UnixStream) {
    let request = to_raw_value(&Request::Stats).unwrap();
    let mut line = serde_json::to_vec(&Asked { version: supervise::VERSION, request }).unwrap();
    line.push(b'\n');
    client.write_all(&line).await.unwrap();
}

/// Plays an agent up to the request for its statistics.
async fn agent_is_asked(agent: &UnixListener) -> (BufReader<UnixStream>, u64) {
    let (stream, asked) = asked(agent).await;
    assert!(matches!(asked.request, Control::Stats));
    (stream, asked.id)
}

#[test]
fn a_request_is_answered_to_a_client_that_says_no_more() {
    within_a_minute(async {
        let machine = Played::new();
        let agent = machine.listen(port::CONTROL);
        let (mut client, serving) = client(&machine, supervise::PORT).await;
        ask_for_stats(&mut client).await;
        client.shutdown().await.unwrap();
        let (mut stream, id) = agent_is_asked(&agent).await;
        reply(&mut stream, &Reply::done(id, &Stats::default())).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(matches!(serde_json::from_str(&answer), Ok(Answer::Stats(_))), "{answer}");
        serving.await.unwrap();
    });
}

#[test]
fn a_request_is_cancelled_with_the_client_that_is_gone() {
    within_a_minute(async {
        let machine = Played::new();
        let agent = machine.listen(port::CONTROL);
        let (mut client, serving) = client(&machine, supervise::PORT).await;
        ask_for_stats(&mut client).await;
        let (mut stream, _) = agent_is_asked(&agent).await;
        drop(client);
        // Long before the request's own deadline.
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        serving.await.unwrap();
    });
}
