//! Streamable HTTP with sessions.

use crate::http::{BOTH, Site, events, initialize, read, request};
use crate::schema::assert_valid;
use crate::support::{LATEST_LEGACY, code, data, text};
use serde_json::{Value, json};

struct Session {
    site: Site,
    id: String,
}

impl Session {
    fn begin(revision: &str, capabilities: Value) -> Self {
        let site = Site::start("both");
        let reply = site.post(&initialize(revision, capabilities), &[("Accept", BOTH)]);
        assert_eq!((reply.status, reply.content.as_str()), (200, "application/json"), "{reply:?}");
        assert_eq!(reply.message()["result"]["protocolVersion"], revision);
        let id = reply.session.unwrap();
        let session = Self { site, id };
        let done = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!((session.send(&done).status, session.send(&done).body.as_str()), (202, ""));
        session
    }

    fn headers<'a>(&'a self, accept: &'a str) -> [(&'a str, &'a str); 3] {
        [("Accept", accept), ("Mcp-Session-Id", &self.id), ("MCP-Protocol-Version", LATEST_LEGACY)]
    }

    fn send(&self, message: &Value) -> crate::http::Reply {
        self.site.post(message, &self.headers(BOTH))
    }

    fn call(&self, id: &str, tool: &str, arguments: Value) -> Value {
        request(id, "tools/call", json!({ "name": tool, "arguments": arguments }))
    }
}

#[test]
fn a_session_begins_with_the_handshake_and_ends_with_delete() {
    let session = Session::begin(LATEST_LEGACY, json!({}));
    assert!(session.id.len() == 64 && session.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let list = session.send(&request(1, "tools/list", json!({})));
    assert_eq!(list.status, 200);
    assert_eq!(list.session, None, "the id is told once");
    assert_valid(LATEST_LEGACY, "ListToolsResult", &list.message()["result"]);
    let second = session.send(&initialize(LATEST_LEGACY, json!({})));
    assert_eq!((second.status, code(&second.message())), (400, -32600));
    let other = session.site.post(&initialize(LATEST_LEGACY, json!({})), &[("Accept", BOTH)]);
    assert_ne!(other.session.unwrap(), session.id);

    let delete = |headers: &[(&str, &str)]| session.site.other("DELETE", headers).status().as_u16();
    assert_eq!(delete(&[]), 400);
    assert_eq!(delete(&[("Mcp-Session-Id", "unknown")]), 404);
    assert_eq!(delete(&session.headers(BOTH)), 204);
    assert_eq!(delete(&session.headers(BOTH)), 404);
    assert_eq!(session.send(&request(1, "ping", json!({}))).status, 404);
}

#[test]
fn without_a_session_there_is_only_ping() {
    let site = Site::start("legacy");
    let post = |message: &Value| site.post(message, &[("Accept", BOTH)]);
    assert_eq!(post(&request(1, "ping", json!({}))).message()["result"], json!({}));
    let early = post(&request("e", "tools/list", json!({})));
    assert_eq!((early.status, code(&early.message()), &early.message()["id"]), (400, -32600, &json!("e")));
    assert_eq!(post(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).status, 400);
    let incomplete = post(&request(1, "initialize", json!({})));
    assert_eq!((code(&incomplete.message()), incomplete.session), (-32602, None));
    let broken = read(site.open("{", &[("Accept", BOTH)]));
    assert_eq!((broken.status, code(&broken.message())), (400, -32700));
    assert_eq!(broken.message().get("id"), Some(&Value::Null));
    let unknown = site
        .post(&request(1, "ping", json!({})), &[("Accept", BOTH), ("MCP-Protocol-Version", "2026-07-28")]);
    assert_eq!(unknown.status, 400);
}

#[test]
fn accept_decides_between_json_and_a_stream() {
    let session = Session::begin(LATEST_LEGACY, json!({}));
    let params = json!({ "name": "sleep", "arguments": { "ms": 20 }, "_meta": { "progressToken": 1 } });
    let sleep = request(7, "tools/call", params);
    let post = |accept: &str| session.site.post(&sleep, &session.headers(accept));
    let streamed = post(BOTH);
    assert_eq!(streamed.content, "text/event-stream");
    let events = streamed.events();
    let (answer, progress) = events.split_last().unwrap();
    assert_eq!((answer["id"].as_u64(), text(answer)), (Some(7), "slept 20 ms"));
    assert_eq!(progress.len(), 10);
    for notification in progress {
        assert_valid(LATEST_LEGACY, "ProgressNotification", notification);
    }
    assert_eq!(post("text/event-stream").events().len(), 11);
    let whole = post("application/json");
    assert_eq!((whole.content.as_str(), text(&whole.message())), ("application/json", "slept 20 ms"));
    let ping = session.site.post(&request(8, "ping", json!({})), &session.headers("text/event-stream"));
    assert_eq!(ping.events(), [json!({ "jsonrpc": "2.0", "id": 8, "result": {} })]);
}

#[test]
fn the_stream_of_a_session_carries_what_the_server_says_by_itself() {
    let session = Session::begin(LATEST_LEGACY, json!({}));
    let get = |headers: &[(&str, &str)]| session.site.other("GET", headers);
    assert_eq!(get(&[("Accept", "text/event-stream")]).status(), 400);
    assert_eq!(get(&[("Accept", "text/event-stream"), ("Mcp-Session-Id", "unknown")]).status(), 404);
    assert_eq!(get(&session.headers("application/json")).status(), 406);
    let stream = get(&session.headers("text/event-stream"));
    assert_eq!(stream.status(), 200);
    assert_eq!(get(&session.headers("text/event-stream")).status(), 409, "one stream a session");
    let mut heard = events(stream);
    let announced = session.send(&session.call("a", "announce", json!({})));
    assert_eq!(announced.content, "application/json");
    let notification = heard.next().unwrap();
    assert_valid(LATEST_LEGACY, "ToolListChangedNotification", &notification);
    session.site.other("DELETE", &session.headers(BOTH));
    assert_eq!(heard.next(), None, "the stream ends with its session");
}

#[test]
fn a_question_comes_on_the_stream_of_the_call_and_is_answered_by_another_post() {
    let session = Session::begin(LATEST_LEGACY, json!({ "roots": {} }));
    let call = session.call("c", "ask_client", json!({ "method": "roots/list" })).to_string();
    let mut stream = events(session.site.open(&call, &session.headers(BOTH)));
    let question = stream.next().unwrap();
    assert_valid(LATEST_LEGACY, "ListRootsRequest", &question);
    let answer = json!({ "jsonrpc": "2.0", "id": question["id"], "result": { "roots": [] } });
    assert_eq!(session.send(&answer).status, 202);
    let result = stream.next().unwrap();
    assert_eq!((&result["id"], &data(&result)["result"]), (&json!("c"), &json!({ "roots": [] })));
    assert_eq!(stream.next(), None);
}

#[test]
fn a_question_takes_the_stream_of_the_session_when_the_call_has_none() {
    let session = Session::begin(LATEST_LEGACY, json!({}));
    let mut heard = events(session.site.other("GET", &session.headers("text/event-stream")));
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let call = session.call("c", "ask_client", json!({ "method": "ping" }));
            session.site.post(&call, &session.headers("application/json"))
        });
        let question = heard.next().unwrap();
        assert_eq!(question["method"], "ping");
        session.send(&json!({ "jsonrpc": "2.0", "id": question["id"], "result": {} }));
        assert_eq!(data(&answering.join().unwrap().message())["result"], json!({}));
    });
}

#[test]
fn a_cancelled_call_ends_without_an_answer() {
    let session = Session::begin(LATEST_LEGACY, json!({}));
    let params =
        json!({ "name": "sleep", "arguments": { "ms": 3_600_000 }, "_meta": { "progressToken": 1 } });
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(|| session.send(&request("s", "tools/call", params)));
        // Until the call runs, its cancellation means nothing; and until then its id is free.
        while session.send(&request("s", "ping", json!({}))).message().get("error").is_none() {}
        let cancel = json!({ "requestId": "s" });
        session.send(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancel }));
        let reply = sleeping.join().unwrap();
        assert_eq!((reply.status, reply.events().len()), (200, 0));
    });
}

#[test]
fn batches_are_answered_as_one_array() {
    let session = Session::begin("2025-03-26", json!({}));
    let batch = json!([
        request("a", "ping", json!({})),
        { "jsonrpc": "2.0", "method": "notifications/initialized" },
        session.call("b", "sleep", json!({ "ms": 10 })),
    ]);
    let answers = session.send(&batch).message();
    assert_eq!(answers.as_array().unwrap().len(), 2, "{answers}");
    assert_eq!(session.send(&json!([{ "jsonrpc": "2.0", "method": "x" }])).status, 202);
    let newer = Session::begin(LATEST_LEGACY, json!({}));
    let refused = newer.send(&batch);
    assert_eq!((refused.status, code(&refused.message())), (400, -32600));
}
