use super::{
    super::{
        played::{Played, asked, at_rest, reply, within_a_minute},
        shared::Wish,
    },
    *,
};
use casemate_proto::control::{Exit, Failure, FailureCode, Reply};
use serde_json::{Value, json};
use std::future::Future;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    join,
    net::{UnixListener, UnixStream},
};

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
const PONG: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

fn played() -> Played {
    let endpoint = Endpoint::new(3000, "/x").unwrap();
    Played::listening(Http::at(endpoint))
}

/// A request at the server's port: its first line, and where to answer.
async fn heard(server: &UnixListener) -> (String, BufReader<UnixStream>) {
    let mut stream = BufReader::new(server.accept().await.unwrap().0);
    let (mut first, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        if first.is_empty() {
            first = line.trim().to_owned();
        }
    }
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    (first, stream)
}

async fn answer(mut stream: BufReader<UnixStream>, body: &str) {
    let length = body.len();
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    stream.get_mut().write_all(format!("{head}{body}").as_bytes()).await.unwrap();
}

async fn line(client: &mut BufReader<Talk>) -> String {
    let mut line = String::new();
    client.read_line(&mut line).await.unwrap();
    line.trim().to_owned()
}

async fn say(client: &mut BufReader<Talk>, message: &str) {
    client.get_mut().write_all(format!("{message}\n").as_bytes()).await.unwrap();
}

#[test]
fn a_message_is_a_stream_to_the_servers_port_and_keeps_the_machine_awake_until_it_is_answered() {
    within_a_minute(async {
        let played = played();
        let server = played.listen(port::INGRESS);
        let mut client = BufReader::new(talk(&played.shared).await.unwrap());
        let idle_since = played.shared.usage.idle_since();
        assert!(idle_since.is_some());
        say(&mut client, PING).await;
        let (first, stream) = heard(&server).await;
        assert_eq!(first, "POST /x HTTP/1.1");
        assert_eq!(played.shared.usage.idle_since(), None);
        answer(stream, PONG).await;
        assert_eq!(line(&mut client).await, PONG);
        at_rest().await;
        // Who asked says whether that was a use of it: a ping of its watch is none.
        assert_eq!(played.shared.usage.idle_since(), idle_since);
    });
}

#[test]
fn a_message_wakes_a_machine() {
    within_a_minute(async {
        let mut played = played();
        let mut client = BufReader::new(talk(&played.shared).await.unwrap());
        played.shared.link.take();
        say(&mut client, PING).await;
        assert!(matches!(played.wished.recv().await, Some(Wish::Wake(_))));
    });
}

#[test]
fn to_listen_is_no_reason_to_wake_a_machine() {
    within_a_minute(async {
        let mut played = played();
        let link = played.shared.link.take();
        let inside = Inside(Rc::clone(&played.shared));
        let server = played.listen(port::INGRESS);
        let connecting =
            tokio::task::spawn_local(async move { inside.connect(Purpose::Listen).await.is_ok() });
        sleep(2 * AWAKE_POLL).await;
        assert!(played.wished.try_recv().is_err() && !connecting.is_finished());
        *played.shared.link.borrow_mut() = link;
        let (_stream, connected) = join!(server.accept(), connecting);
        assert!(connected.unwrap());
    });
}

#[test]
fn the_end_of_the_server_is_the_end_of_the_conversation() {
    within_a_minute(async {
        let played = played();
        let mut client = BufReader::new(talk(&played.shared).await.unwrap());
        let exit = Exit { code: Some(1), signal: None, stderr_tail: String::new() };
        played.shared.server_exit.send_replace(Some(exit));
        assert_eq!(line(&mut client).await, "");
        assert!(played.shared.broken.borrow().is_none());
    });
}

#[test]
fn why_a_conversation_broke_is_known_when_its_end_is_seen() {
    within_a_minute(async {
        let played = played();
        // Nobody listens at the port.
        let mut client = BufReader::new(talk(&played.shared).await.unwrap());
        say(&mut client, PING).await;
        assert_eq!(line(&mut client).await, "");
        let reason = played.shared.broken.borrow().clone().unwrap();
        assert!(reason.starts_with("cannot connect to the server: "), "{reason}");
        assert!(played.log().contains("conversation ended: cannot connect"), "{}", played.log());
    });
}

#[test]
fn a_full_link_fails_one_request_and_ends_no_conversation() {
    within_a_minute(async {
        let played = played();
        let (_link, _streams) = played.fill_link().await;
        let inside = Inside(Rc::clone(&played.shared));
        let error = inside.connect(Purpose::Message).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        played.refuse_streams();
        let error = inside.connect(Purpose::Message).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    });
}

/// Answers the next control stream's request, which is this one.
async fn obeys(control: &UnixListener, expected: &str, done: Value, then: impl Future<Output = ()>) {
    let (mut stream, request) = asked(control).await;
    let said = serde_json::to_value(&request).unwrap();
    assert_eq!(said["method"], expected, "{said}");
    reply(&mut stream, &Reply::done(request.id, &done)).await;
    then.await;
}

#[test]
fn another_client_gets_no_process_as_long_as_the_one_before_may_run() {
    within_a_minute(async {
        let played = played();
        let shared = &played.shared;
        let control = played.listen(port::CONTROL);
        drop(talk(shared).await.unwrap());
        // The agent would start none beside one that runs.
        for _ in 0..2 {
            let agent = async {
                let (mut stream, request) = asked(&control).await;
                let failure = Failure { code: FailureCode::System, message: "cannot".to_owned() };
                reply(&mut stream, &Reply::failed(Some(request.id), failure)).await;
            };
            let (refused, ()) = join!(talk(shared), agent);
            assert!(refused.is_err());
        }
    });
}

#[test]
fn another_client_gets_another_process() {
    within_a_minute(async {
        let played = played();
        let shared = &played.shared;
        let control = played.listen(port::CONTROL);
        drop(talk(shared).await.unwrap());
        let agent = async {
            let exit = Exit { code: None, signal: Some(15), stderr_tail: String::new() };
            obeys(&control, "signal", json!({}), async { drop(shared.server_exit.send_replace(Some(exit))) })
                .await;
            obeys(&control, "start", json!({"pid": 8}), async {
                drop(shared.server_exit.send_replace(None))
            })
            .await;
            obeys(&control, "listen", json!({}), async {}).await;
        };
        let (second, ()) = join!(talk(shared), agent);
        let mut second = BufReader::new(second.unwrap());
        let server = played.listen(port::INGRESS);
        say(&mut second, PING).await;
        answer(heard(&server).await.1, PONG).await;
        assert_eq!(line(&mut second).await, PONG);
    });
}
