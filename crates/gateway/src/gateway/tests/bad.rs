use crate::testing::*;
use casemate_mcp::Message;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::rc::Rc;
use tokio::task::spawn_local;

/// The head of a POST with a body of that length.
fn head(session: &str, more: &str) -> String {
    format!(
        "POST /mcp/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\naccept: {EITHER}\r\n\
         mcp-session-id: {session}\r\nconnection: close\r\n{more}\r\n\r\n"
    )
}

fn message_id(text: &str) -> String {
    Message::parse(text).unwrap().raw_id().unwrap().to_owned()
}

#[test]
fn what_is_no_message_is_refused_with_its_code_and_reaches_no_server() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels - 2), "]".repeat(levels - 2));
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"echo","params":{{"x":{open}{close}}}}}"#)
        };
        let long_id = request("x".repeat(2000), "echo", json!({}));
        for (body, code) in [
            ("", -32700),
            ("{", -32700),
            (r#"{"jsonrpc":"2.0","id":1,"method":"echo""#, -32700),
            (r#"{"jsonrpc":"2.0","id":1,"method":"echo"}}"#, -32700),
            (&nested(129), -32700),
            ("null", -32600),
            ("\"x\"", -32600),
            ("[]", -32600),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"echo"}]"#, -32600),
            ("{}", -32600),
            (r#"{"jsonrpc":"1.0","id":1,"method":"echo"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":null,"method":"echo"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"echo"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1e3,"method":"echo"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":true,"method":"echo"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"echo"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"ID":2,"method":"echo"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"echo","result":{}}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"echo","params":[]}"#, -32602),
            (&long_id, -32600),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"notifications/cancelled","params":{"requestId":1}}"#,
                -32600,
            ),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"progressToken":1.5}}}"#, -32602),
        ] {
            let answer = world.post(Some(&session), body).await;
            assert_eq!(answer.refused(), (400, code), "{body}: {answer:?}");
        }
        let utf8 = [head(&session, "content-length: 3").as_bytes(), b"\"\xff\""].concat();
        let answer = world.raw(&utf8).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("-32700"), "{answer}");
        assert_eq!(world.servers.heard.borrow().len(), 1);
        // What is odd and right passes.
        let huge = format!(r#"{{"jsonrpc":"2.0","id":{},"method":"echo","params":{{}}}}"#, "9".repeat(1000));
        for body in [nested(64), huge, request("", "echo", json!({})), request(-1, "echo", json!({}))] {
            let answer = world.post(Some(&session), &body).await;
            // Too large a number for most readers, and passed on digit by digit.
            let id = message_id(&body);
            assert_eq!((answer.status, message_id(&answer.body)), (StatusCode::OK, id), "{body}");
        }
    });
}

#[test]
fn an_id_is_one_requests_at_a_time_however_it_is_written() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let mut open = world.send(post(Some(&session), &request("a", "sleep", json!({"ms": 5000})))).await;
        for same in ["\"a\"", "\"\\u0061\""] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{same},"method":"echo"}}"#);
            assert_eq!(world.post(Some(&session), &body).await.refused(), (400, -32600));
        }
        // A number and a string are two ids.
        let bodies = [request("1", "echo", json!({})), request(1, "echo", json!({}))];
        let (other, number) =
            tokio::join!(world.post(Some(&session), &bodies[0]), world.post(Some(&session), &bodies[1]));
        assert_eq!((&other.events()[0]["id"], &number.events()[0]["id"]), (&json!("1"), &json!(1)));
        assert_eq!(next(&mut open).await.unwrap()["id"], "a");
        let again = world.post(Some(&session), &request("a", "echo", json!({}))).await;
        assert_eq!(again.status, StatusCode::OK);
    });
}

#[test]
fn what_headers_say_has_to_fit() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let echo = request(1, "echo", json!({}));
        let mut plain = post(Some(&session), &echo);
        plain.headers_mut().insert("content-type", "text/plain".parse().unwrap());
        assert_eq!(world.ask(plain).await.refused(), (415, -32000));
        for method in ["PUT", "PATCH", "OPTIONS", "HEAD"] {
            let mut request = post(Some(&session), &echo);
            *request.method_mut() = method.parse().unwrap();
            let answer = world.ask(request).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("allow")),
                (405, "POST, GET, DELETE"),
                "{method}"
            );
        }
        for version in ["2025-11-25", "2025-03-26"] {
            let mut request = post(Some(&session), &echo);
            request.headers_mut().insert("mcp-protocol-version", version.parse().unwrap());
            assert_eq!(world.ask(request).await.status, StatusCode::OK, "{version}");
        }
    });
}

#[test]
fn another_revision_is_told_what_is_spoken_here() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let discover = request(
            3,
            "server/discover",
            json!({"_meta":
            {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}),
        );
        let mut modern = post(None, &discover);
        modern.headers_mut().insert("mcp-protocol-version", "2026-07-28".parse().unwrap());
        modern.headers_mut().insert("mcp-method", "server/discover".parse().unwrap());
        let unknown = |method: &str| {
            let body = if method == "POST" { request(3, "ping", json!({})) } else { String::new() };
            let mut request = post(Some(&session), &body);
            *request.method_mut() = method.parse().unwrap();
            request.headers_mut().insert("mcp-protocol-version", "2099-01-01".parse().unwrap());
            request
        };
        for (request, requested, id) in [
            (modern, "2026-07-28", json!(3)),
            (post(None, &discover), "2026-07-28", json!(3)),
            (unknown("POST"), "2099-01-01", json!(3)),
            (unknown("GET"), "2099-01-01", Value::Null),
            (unknown("DELETE"), "2099-01-01", Value::Null),
        ] {
            let answer = world.ask(request).await;
            assert_eq!((answer.refused(), &answer.json()["id"]), ((400, -32022), &id));
            let data =
                json!({"supported": ["2025-11-25", "2025-06-18", "2025-03-26"], "requested": requested});
            assert_eq!(answer.json()["error"]["data"], data);
        }
        assert_eq!(world.live(), 1);
    });
}

#[test]
fn other_paths_say_what_is_there() {
    local(async {
        let world = World::new();
        for (path, words) in [
            ("/mcp", "not built yet; one server is at /mcp/NAME"),
            ("/sse", "HTTP+SSE of revision 2024-11-05 is not built yet"),
            ("/mcp/a/sse", "HTTP+SSE of revision 2024-11-05 is not built yet"),
            ("/metrics", "/metrics is not built yet"),
            ("/ui", "/ui is not built yet"),
            ("/mcp/c", "no server is named \"c\""),
            ("/mcp/a/b", "no server is named"),
            ("/", "servers are at /mcp/NAME"),
        ] {
            let mut request = post(None, &initialize(LATEST));
            *request.uri_mut() = path.parse().unwrap();
            let answer = world.ask(request).await;
            assert_eq!(answer.refused(), (404, -32000), "{path}");
            assert!(answer.json()["error"]["message"].as_str().unwrap().contains(words), "{answer:?}");
        }
        assert_eq!(world.servers.started.get(), 0);
    });
}

#[test]
fn foreign_hosts_and_pages_reach_nothing() {
    local(async {
        let world = World::new();
        let from = |name: &'static str, value: &str, method: &str, path: &str| {
            let mut request = post(None, &initialize(LATEST));
            *request.method_mut() = method.parse().unwrap();
            *request.uri_mut() = path.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
            world.ask(request)
        };
        for (method, path) in
            [("POST", "/mcp/a"), ("GET", "/mcp/a"), ("OPTIONS", "/mcp/a"), ("GET", "/health")]
        {
            for (name, value) in
                [("host", "evil.example"), ("origin", "https://evil.example"), ("origin", "null")]
            {
                let answer = from(name, value, method, path).await;
                assert_eq!(answer.refused(), (403, -32000), "{method} {path} {name}");
                assert!(!answer.headers.contains_key("access-control-allow-origin"));
            }
        }
        assert_eq!(world.servers.started.get(), 0);
        let preflight = from("origin", "https://app.example", "OPTIONS", "/mcp/a").await;
        assert_eq!(preflight.status, StatusCode::NO_CONTENT);
        assert_eq!(preflight.header("access-control-allow-origin"), "https://app.example");
        assert!(preflight.header("access-control-allow-headers").contains("mcp-session-id"));
        let begun = from("origin", "https://app.example", "POST", "/mcp/a").await;
        assert_eq!(begun.header("access-control-allow-origin"), "https://app.example");
        assert_eq!(begun.header("access-control-expose-headers"), "mcp-session-id");
        assert!(begun.headers.contains_key("mcp-session-id"));
    });
}

#[test]
fn a_server_that_says_what_it_may_not_harms_no_other() {
    local(async {
        let world = World::new();
        let (bad, good) = (world.begin().await, world.begin().await);
        let mut waiting = world.send(post(Some(&good), &request(1, "sleep", json!({"ms": 3000})))).await;
        let twice = json!({"jsonrpc": "2.0", "id": 1, "result": {"stray": true}});
        let lines = json!([
            twice, twice, "no JSON", "[1]", "{\"jsonrpc\":\"2.0\",\"id\":1.0,\"result\":{}}",
            {"jsonrpc": "2.0", "id": "nobody's", "result": {}},
            {"jsonrpc": "2.0", "id": null, "error": {"code": 1, "message": "?"}},
            {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": "nobody's"}},
            {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": {}}},
        ]);
        let answer = world.post(Some(&bad), &request(1, "say", json!({"lines": lines}))).await;
        assert_eq!(answer.json(), twice);
        let answer = world.post(Some(&bad), &request(1, "echo", json!({"n": 2}))).await;
        assert_eq!(answer.json()["result"], json!({"n": 2}));
        assert_eq!(next(&mut waiting).await.unwrap()["result"], json!({}));
        world.ask(delete(&bad)).await;
        assert_eq!(*world.servers.notes.borrow(), ["a: 7 lines of the server were for nobody"]);
    });
}

/// Asks for an echo of so many bytes, each with a connection of its own; the statuses.
async fn echoes(world: &Rc<World>, session: &str, bytes: usize) -> Vec<u16> {
    let long = Rc::new("x".repeat(bytes));
    let mut asked = Vec::new();
    for id in 1..10 {
        let (world, session, long) = (Rc::clone(world), session.to_owned(), Rc::clone(&long));
        asked.push(spawn_local(async move {
            let body = request(id, "echo", json!({"x": *long}));
            world.send(post(Some(&session), &body)).await.status().as_u16()
        }));
    }
    let mut statuses = Vec::new();
    for asked in asked {
        statuses.push(asked.await.unwrap());
    }
    statuses.sort_unstable();
    statuses
}

#[test]
fn a_server_that_does_not_read_holds_up_nobody_else() {
    local(async {
        let world = Rc::new(World::with(crate::Limits { outbox: 2, ..crate::Limits::default() }));
        let (deaf, good) = (world.begin().await, world.begin().await);
        let _asking = world.send(post(Some(&deaf), &request(0, "deaf", json!({})))).await;
        // One is written in part, two wait for that; the others are told.
        let statuses = echoes(&world, &deaf, 100_000).await;
        assert_eq!(statuses, [[200; 3], [503; 3], [503; 3]].concat());
        let answer = world.post(Some(&good), &request(1, "echo", json!({}))).await;
        assert_eq!((answer.status, world.live()), (StatusCode::OK, 2));
    });
}

#[test]
fn what_a_server_does_not_read_takes_no_room_from_others() {
    local(async {
        let limits = crate::Limits { body_bytes: 1 << 20, bodies_bytes: 8 << 20, ..crate::Limits::default() };
        let world = Rc::new(World::with(limits));
        let (deaf, good) = (world.begin().await, world.begin().await);
        let _asking = world.send(post(Some(&deaf), &request(0, "deaf", json!({})))).await;
        let statuses = echoes(&world, &deaf, 1_000_000).await;
        assert_eq!(statuses, [vec![200; 2], vec![503; 7]].concat());
        let body = request(1, "echo", json!({"x": "x".repeat(1_000_000)}));
        assert_eq!(world.post(Some(&good), &body).await.status, StatusCode::OK);
    });
}
