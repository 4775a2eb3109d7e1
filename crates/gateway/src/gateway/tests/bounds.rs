use crate::{Limits, testing::*};
use serde_json::json;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};

const HEAD: &str = "POST /mcp/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";

#[test]
fn the_longest_message_passes_and_a_longer_one_is_refused() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let mut body = request(1, "echo", json!({"x": ""}));
        let filler = "y".repeat((16 << 20) - body.len());
        body.insert_str(body.len() - 3, &filler);
        let answer = world.post(Some(&session), &body).await;
        assert_eq!((answer.status.as_u16(), answer.body.contains(&filler)), (200, true));
        body.insert(body.len() - 3, 'y');
        assert_eq!(world.post(Some(&session), &body).await.refused(), (413, -32000));
    });
}

/// Whoever sends more than is read gets the answer nevertheless, and nothing of it is kept.
#[test]
fn a_hundred_megabytes_are_refused_however_they_are_announced() {
    local(async {
        let piece = vec![b'x'; 1 << 20];
        // What is announced as too long takes nothing of the room for bodies.
        for (chunked, room) in [(false, 1 << 20), (true, 17 << 20)] {
            let world = World::with(Limits { bodies_bytes: room, ..Limits::default() });
            let mut connection = world.connect();
            let length = if chunked {
                "transfer-encoding: chunked".into()
            } else {
                format!("content-length: {}", 100 << 20)
            };
            connection.write_all(format!("{HEAD}{length}\r\n\r\n").as_bytes()).await.unwrap();
            for _ in 0..100 {
                if chunked {
                    connection.write_all(b"100000\r\n").await.unwrap();
                }
                connection.write_all(&piece).await.unwrap();
                if chunked {
                    connection.write_all(b"\r\n").await.unwrap();
                }
            }
            if chunked {
                connection.write_all(b"0\r\n\r\n").await.unwrap();
            }
            let mut answer = vec![0; 4096];
            let length = connection.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            assert!(answer.starts_with("HTTP/1.1 413 "), "{chunked}: {answer}");
            sleep(Duration::from_secs(5)).await;
            assert_eq!(world.gateway.bodies.available_permits(), room >> 10);
        }
    });
}

#[test]
fn what_all_bodies_take_together_is_bounded() {
    local(async {
        let world = World::with(Limits { bodies_bytes: 100 << 10, ..Limits::default() });
        let mut slow = world.connect();
        let part = "x".repeat(60 << 10);
        slow.write_all(format!("{HEAD}content-length: 65000\r\n\r\n{part}").as_bytes()).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        let answer = world.post(None, &part).await;
        assert_eq!((answer.refused(), answer.header("retry-after")), ((503, -32000), "1"));
        drop(slow);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(world.post(None, &part).await.refused(), (400, -32700));
    });
}

#[test]
fn heads_and_bodies_that_do_not_come_are_not_waited_for() {
    local(async {
        let world = World::new();
        let began = Instant::now();
        let answer = world.raw(HEAD.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert_eq!(began.elapsed().as_secs(), 15);
        // Nobody asked anything.
        assert_eq!(world.raw(b"").await, "");
        let began = Instant::now();
        let answer = world.raw(format!("{HEAD}content-length: 100\r\n\r\n{{").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("within 60 s"), "{answer}");
        assert_eq!(began.elapsed().as_secs(), 60);
        // Bytes that come one by one are no excuse.
        let mut drip = world.connect();
        let dripped = async {
            loop {
                if drip.write_all(b"x").await.is_err() {
                    break;
                }
                sleep(Duration::from_secs(1)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), dripped).await.is_ok());
    });
}

#[test]
fn heads_are_bounded() {
    local(async {
        let world = World::new();
        let long = format!("{HEAD}x: {}\r\n\r\n", "y".repeat(100 << 10));
        let many = format!("{HEAD}{}\r\n", "x: y\r\n".repeat(101));
        for head in [long, many] {
            let answer = world.raw(head.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        }
        let broken = world.raw(b"POST /mcp/a\r\n\r\n").await;
        assert!(broken.starts_with("HTTP/1.1 400 "), "{broken}");
        let nameless = world.raw(b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n").await;
        assert!(nameless.starts_with("HTTP/1.1 400 "), "{nameless}");
    });
}

#[test]
fn open_requests_of_a_session_are_bounded() {
    local(async {
        let world = World::with(Limits { open_requests: 2, ..Limits::default() });
        let (session, other) = (world.begin().await, world.begin().await);
        let hang = |id: u32| world.send(post(Some(&session), &request(id, "hang", json!({}))));
        let _open = (hang(1).await, hang(2).await);
        let answer = world.post(Some(&session), &request(3, "echo", json!({}))).await;
        assert_eq!((answer.refused(), answer.header("retry-after")), ((429, -32000), "1"));
        assert_eq!(world.post(Some(&other), &request(1, "echo", json!({}))).await.status.as_u16(), 200);
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}"#;
        assert_eq!(world.post(Some(&session), cancel).await.status.as_u16(), 202);
        assert_eq!(world.post(Some(&session), &request(3, "echo", json!({}))).await.status.as_u16(), 200);
    });
}

#[test]
fn sessions_and_those_that_wait_to_begin_are_bounded() {
    local(async {
        let world = World::with(Limits { sessions: 2, ..Limits::default() });
        let first = world.begin().await;
        world.begin().await;
        let answer = world.post(None, &initialize(LATEST)).await;
        assert_eq!((answer.refused(), answer.header("retry-after")), ((503, -32000), "5"));
        world.ask(delete(&first)).await;
        world.begin().await;

        let world = World::with(Limits { starts: 1, queue: 1, ..Limits::default() });
        world.servers.delay.set(Duration::from_secs(3));
        let began = Instant::now();
        let initialize = initialize(LATEST);
        let begin = || world.post(None, &initialize);
        let (one, two, three) = tokio::join!(begin(), begin(), begin());
        let mut statuses = [one, two, three].map(|answer| answer.status.as_u16());
        statuses.sort_unstable();
        assert_eq!((statuses, began.elapsed().as_secs()), ([200, 200, 503], 6));
    });
}

#[test]
fn what_belongs_to_no_session_is_short() {
    local(async {
        let world = World::with(Limits { bodies_bytes: 80 << 10, ..Limits::default() });
        let long = |id: u32, method| request(id, method, json!({"x": "y".repeat(70 << 10)}));
        assert_eq!(world.post(None, &long(0, "initialize")).await.refused(), (413, -32000));
        // Who names a session that is over is told so, however long the message is.
        let answer = world.post(Some("00"), &long(1, "echo")).await;
        assert_eq!(answer.refused(), (404, -32000));
        let mut revision = post(None, &long(1, "echo"));
        revision.headers_mut().insert("mcp-protocol-version", "2099-01-01".parse().unwrap());
        assert_eq!(world.ask(revision).await.refused(), (400, -32022));
        let session = world.begin().await;
        assert_eq!(world.post(Some(&session), &long(1, "echo")).await.status.as_u16(), 200);
    });
}

#[test]
fn a_server_whose_machines_take_long_holds_up_no_other() {
    local(async {
        let world = std::rc::Rc::new(World::with(Limits { queue_of_server: 16, ..Limits::default() }));
        world.servers.planning.set(Duration::from_secs(600));
        let mut begun = Vec::new();
        for _ in 0..17 {
            let world = std::rc::Rc::clone(&world);
            begun.push(tokio::task::spawn_local(async move {
                let mut request = post(None, &initialize(LATEST));
                *request.uri_mut() = "/mcp/b".parse().unwrap();
                world.ask(request).await.status.as_u16()
            }));
        }
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        world.begin().await;
        assert!(began.elapsed() < Duration::from_secs(1));
        let mut statuses = Vec::new();
        for begun in begun {
            statuses.push(begun.await.unwrap());
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [vec![200; 16], vec![503]].concat());
        assert_eq!(world.servers.planners.get(), (0, 4));
    });
}

#[test]
fn a_client_that_left_keeps_no_place() {
    local(async {
        let world = World::with(Limits { starts: 1, queue: 1, ..Limits::default() });
        world.servers.delay.set(Duration::from_secs(20));
        let initialize = initialize(LATEST);
        let first = world.post(None, &initialize);
        let then = async {
            sleep(Duration::from_secs(1)).await;
            let second = world.post(None, &initialize);
            assert!(tokio::time::timeout(Duration::from_secs(1), second).await.is_err());
            sleep(Duration::from_secs(1)).await;
            assert_eq!(world.gateway.sessions.borrow().len(), 1);
            world.post(None, &initialize).await.status.as_u16()
        };
        let (first, third) = tokio::join!(first, then);
        assert_eq!((first.status.as_u16(), third, world.live()), (200, 200, 2));
    });
}

#[test]
fn a_request_that_was_never_sent_is_not_open() {
    local(async {
        let world = World::with(Limits { outbox: 1, ..Limits::default() });
        let session = world.begin().await;
        let _deaf = world.send(post(Some(&session), &request(1, "deaf", json!({})))).await;
        let part = request(2, "echo", json!({"x": "y".repeat(200_000)}));
        let _written_in_part = world.send(post(Some(&session), &part)).await;
        let _next = world.send(post(Some(&session), &request(3, "echo", json!({})))).await;
        let body = request(4, "echo", json!({}));
        let waiting = world.send(post(Some(&session), &body));
        assert!(tokio::time::timeout(Duration::from_secs(2), waiting).await.is_err());
        sleep(Duration::from_millis(1)).await;
        let open = world.gateway.sessions.borrow()[&session].open_requests();
        assert_eq!(open, 3);
    });
}

#[test]
fn connections_over_the_limit_wait() {
    local(async {
        let world = World::with(Limits { connections: 1, ..Limits::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = std::rc::Rc::clone(&world.gateway).serve(listener, std::future::pending());
        let serving = tokio::task::spawn_local(serving);
        let ask = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let mut first = tokio::net::TcpStream::connect(address).await.unwrap();
        first.write_all(ask).await.unwrap();
        let mut answer = [0; 512];
        assert!(first.read(&mut answer).await.unwrap() > 0);
        let mut second = tokio::net::TcpStream::connect(address).await.unwrap();
        second.write_all(ask).await.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(200), second.read(&mut answer)).await;
        assert!(waited.is_err());
        drop(first);
        assert!(second.read(&mut answer).await.unwrap() > 0);
        serving.abort();
    });
}
