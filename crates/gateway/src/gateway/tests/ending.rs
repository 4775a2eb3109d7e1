use crate::{Limits, testing::*};
use casemate_machine::ConversationEnd;
use casemate_proto::control::Exit;
use hyper::StatusCode;
use serde_json::json;
use std::{rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
    time::{Instant, sleep},
};

#[test]
fn a_server_that_dies_tells_every_client_that_waits_how() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let stderr_tail = "panicked at main.rs\n".to_owned();
        let exit = Exit { code: Some(7), signal: None, stderr_tail };
        world.servers.end.replace(Some(ConversationEnd::ServerExited(exit)));
        let own = world.send(get(&session, None)).await;
        let mut streaming = world.send(post(Some(&session), &request(1, "hang", json!({})))).await;
        let began = Instant::now();
        let answer = world.post(Some(&session), &request(2, "die", json!({}))).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!((answer.refused(), &answer.json()["id"]), ((200, -32000), &json!(2)));
        let error = &answer.json()["error"];
        assert_eq!(error["message"], "the server ended with exit code 7; the request may have been executed");
        let data = json!({"exitCode": 7, "signal": null, "stderr": "panicked at main.rs\n"});
        assert_eq!(error["data"], data);
        let told = next(&mut streaming).await.unwrap();
        assert_eq!((&told["id"], &told["error"]["data"]), (&json!(1), &data));
        assert_eq!(piece(&mut streaming).await, None);
        // The streams are over, and so is the session.
        assert!(read(own).await.events().is_empty());
        assert_eq!(world.post(Some(&session), &request(3, "echo", json!({}))).await.refused(), (404, -32000));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(world.live(), 0);
        let notes = world.servers.notes.borrow();
        assert!(notes[0].starts_with("a: session over: the server ended with exit code 7"), "{notes:?}");
    });
}

#[test]
fn a_server_that_dies_at_once_is_told_of_in_the_answer_to_initialize() {
    local(async {
        let world = World::new();
        world.servers.end.replace(Some(ConversationEnd::MachineEnded("out of memory".to_owned())));
        let die = request(0, "initialize", json!({"protocolVersion": LATEST, "die": true}));
        let answer = world.post(None, &die).await;
        assert_eq!(answer.refused(), (200, -32000));
        assert!(answer.body.contains("the server's machine ended: out of memory"), "{answer:?}");
        assert!(!answer.headers.contains_key("mcp-session-id"));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(world.live(), 0);
    });
}

#[test]
fn what_was_not_delivered_is_told_apart_from_what_may_have_been_executed() {
    local(async {
        let world = Rc::new(World::new());
        let session = world.begin().await;
        let ask = |id: u32, method: &'static str, params| {
            let (world, session) = (Rc::clone(&world), session.clone());
            spawn_local(async move { world.post(Some(&session), &request(id, method, params)).await })
        };
        let deaf = ask(1, "deaf", json!({}));
        sleep(Duration::from_millis(1)).await;
        // The first of these fills what is between; the second waits behind it.
        let begun = ask(2, "echo", json!({"x": "y".repeat(200_000)}));
        sleep(Duration::from_millis(1)).await;
        let waiting = ask(3, "echo", json!({}));
        sleep(Duration::from_secs(2)).await;
        world.ask(delete(&session)).await;
        let message = |answer: Answer| answer.events()[0]["error"]["message"].as_str().unwrap().to_owned();
        for executed in [deaf, begun] {
            let message = message(executed.await.unwrap());
            assert_eq!(message, "the session was ended; the request may have been executed");
        }
        let message = message(waiting.await.unwrap());
        assert_eq!(message, "the session was ended; the request was not delivered");
    });
}

/// Serves a listener until `stop`; gives the address and when it is over.
async fn serving(
    world: &World,
) -> (std::net::SocketAddr, Rc<tokio::sync::Notify>, tokio::task::JoinHandle<Duration>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Rc::new(tokio::sync::Notify::new());
    let (gateway, stopped) = (Rc::clone(&world.gateway), Rc::clone(&stop));
    let served = spawn_local(async move {
        let told = Rc::new(std::cell::Cell::new(None));
        let when = Rc::clone(&told);
        let stop = async move {
            stopped.notified().await;
            when.set(Some(Instant::now()));
        };
        gateway.serve(listener, stop).await;
        told.get().unwrap().elapsed()
    });
    (address, stop, served)
}

#[test]
fn what_is_open_is_answered_before_the_end_and_nothing_new_begins() {
    local(async {
        let world = Rc::new(World::new());
        let (session, other) = (world.begin().await, world.begin().await);
        let (_, stop, served) = serving(&world).await;
        let open = world.send(post(Some(&session), &request(1, "sleep", json!({"ms": 3000}))));
        let mut open = open.await;
        let primer = piece(&mut open).await.unwrap();
        let id = primer.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
        drop(open);
        let mut asked = world.send(post(Some(&other), &request(1, "ask", json!({})))).await;
        assert_eq!(next(&mut asked).await.unwrap()["method"], "elicitation/create");
        let ready = || world.ask(with_path(get(&session, None), "/ready"));
        assert_eq!(ready().await.json(), json!({"status": "ready", "sessions": 2}));

        stop.notify_one();
        sleep(Duration::from_millis(100)).await;
        assert_eq!(ready().await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(world.ask(with_path(get(&session, None), "/health")).await.status, StatusCode::OK);
        for refused in [post(None, &initialize(LATEST)), post(Some(&session), &request(2, "echo", json!({})))]
        {
            let answer = world.ask(refused).await;
            assert_eq!((answer.refused(), answer.header("retry-after")), ((503, -32000), "5"));
        }
        assert_eq!(world.ask(get(&session, None)).await.refused(), (503, -32000));
        // Who lost its connection may come back for what it asked before.
        let mut open = world.send(get(&session, Some(&id))).await;
        assert_eq!(open.status(), StatusCode::OK);
        // A question of a server that is still to be answered can be.
        let answer = world.post(Some(&other), r#"{"jsonrpc":"2.0","id":"q1","result":{}}"#).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        assert_eq!(next(&mut asked).await.unwrap()["result"], json!({}));
        assert_eq!(next(&mut open).await.unwrap()["result"], json!({}));
        let took = served.await.unwrap();
        assert!(took < Duration::from_secs(4), "{took:?}");
        assert_eq!(world.live(), 0);
    });
}

#[test]
fn what_is_not_answered_in_time_is_told_so() {
    local(async {
        let world = World::with(Limits { drain: Duration::from_secs(7), ..Limits::default() });
        let session = world.begin().await;
        let (_, stop, served) = serving(&world).await;
        let own = world.send(get(&session, None)).await;
        let mut open = world.send(post(Some(&session), &request(1, "hang", json!({})))).await;
        stop.notify_one();
        let told = next(&mut open).await.unwrap();
        let message = "the gateway is ending; the request may have been executed";
        assert_eq!(told["error"]["message"], message);
        assert!(read(own).await.events().is_empty());
        let took = served.await.unwrap();
        assert!(took >= Duration::from_secs(7) && took < Duration::from_secs(9), "{took:?}");
        assert_eq!(world.live(), 0);
    });
}

#[test]
fn a_session_that_begins_while_the_gateway_ends_leaves_nothing() {
    local(async {
        let world = Rc::new(World::with(Limits { drain: Duration::ZERO, ..Limits::default() }));
        world.servers.delay.set(Duration::from_secs(3));
        let (_, stop, served) = serving(&world).await;
        let asking = Rc::clone(&world);
        let begun = spawn_local(async move { asking.post(None, &initialize(LATEST)).await });
        sleep(Duration::from_secs(1)).await;
        stop.notify_one();
        let took = served.await.unwrap();
        assert_eq!((world.servers.started.get(), world.live()), (1, 0));
        assert!(took >= Duration::from_secs(2), "{took:?}");
        let answer = begun.await.unwrap();
        assert_eq!((answer.refused(), answer.header("retry-after")), ((503, -32000), "5"));
    });
}

/// Over a real connection, because only those are waited for. Its buffers take less than the answer.
#[test]
fn who_reads_slowly_has_the_time_that_was_promised() {
    local(async {
        // What the system has to carry takes real time.
        tokio::time::resume();
        let world = World::with(Limits { drain: Duration::from_secs(60), ..Limits::default() });
        let session = world.begin().await;
        let (address, stop, served) = serving(&world).await;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(256 << 10).unwrap();
        let (mut from, mut to) = socket.connect(address).await.unwrap().into_split();
        let body = request(1, "echo", json!({"x": "y".repeat(12_000_000)}));
        let head = format!(
            "POST /mcp/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             accept: application/json\r\nmcp-session-id: {session}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        to.write_all(head.as_bytes()).await.unwrap();
        to.write_all(body.as_bytes()).await.unwrap();
        let mut answer = vec![0; 1 << 10];
        let mut length = from.read(&mut answer).await.unwrap();
        stop.notify_one();
        sleep(Duration::from_millis(1500)).await;
        assert!(!served.is_finished());
        let mut rest = Vec::new();
        length += from.read_to_end(&mut rest).await.unwrap();
        assert!(length > 12_000_000, "{length}");
        served.await.unwrap();
    });
}

#[test]
fn what_a_session_waits_for_is_not_waited_for_at_the_end() {
    local(async {
        let world = Rc::new(World::with(Limits { drain: Duration::ZERO, ..Limits::default() }));
        world.servers.planning.set(Duration::from_secs(600));
        let (_, stop, served) = serving(&world).await;
        let asking = Rc::clone(&world);
        let begun = spawn_local(async move {
            let mut request = post(None, &initialize(LATEST));
            *request.uri_mut() = "/mcp/b".parse().unwrap();
            asking.ask(request).await
        });
        sleep(Duration::from_secs(1)).await;
        stop.notify_one();
        let took = served.await.unwrap();
        assert!(took <= Duration::from_secs(1), "{took:?}");
        assert_eq!((world.servers.started.get(), begun.await.unwrap().refused()), (0, (503, -32000)));
    });
}

#[test]
fn a_machine_that_does_not_come_to_an_end_is_dropped() {
    local(async {
        let limits = Limits { drain: Duration::from_secs(7), ..Limits::default() };
        let world = Rc::new(World::with(limits));
        world.servers.delay.set(Duration::from_secs(600));
        let (_, stop, served) = serving(&world).await;
        let asking = Rc::clone(&world);
        let begun = spawn_local(async move { asking.post(None, &initialize(LATEST)).await });
        sleep(Duration::from_secs(1)).await;
        stop.notify_one();
        assert_eq!(begun.await.unwrap().refused(), (503, -32000));
        let took = served.await.unwrap();
        assert!(took >= Duration::from_secs(22) && took <= Duration::from_secs(24), "{took:?}");
        assert!(world.gateway.sessions.borrow().is_empty());
        sleep(Duration::from_secs(600)).await;
        assert_eq!(world.servers.started.get(), 0);
    });
}

fn with_path<B>(mut request: hyper::Request<B>, path: &str) -> hyper::Request<B> {
    *request.uri_mut() = path.parse().unwrap();
    request
}
