//! Streamable HTTP without sessions.

use crate::http::{BOTH, Reply, Site, events, initialize, read, request};
use crate::schema::assert_valid;
use crate::support::{code, data, modern_call};
use casemate_testkit::{PATIENCE, modern_meta};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MODERN: &str = "2026-07-28";

/// The headers that go with a request.
fn headers(message: &Value) -> Vec<(&str, &str)> {
    let mut headers = vec![("Accept", BOTH), ("MCP-Protocol-Version", MODERN)];
    headers.extend(message["method"].as_str().map(|method| ("Mcp-Method", method)));
    headers.extend(message["params"]["name"].as_str().map(|name| ("Mcp-Name", name)));
    headers
}

fn post(site: &Site, message: &Value) -> Reply {
    let reply = site.post(message, &headers(message));
    let answer = reply.message();
    let error = answer.get("error").is_some();
    assert_valid(MODERN, if error { "JSONRPCErrorResponse" } else { "JSONRPCResultResponse" }, &answer);
    reply
}

fn plain(method: &str, params: Value) -> Value {
    request("m", method, modern_meta(params, json!({})))
}

#[test]
fn requests_stand_for_themselves() {
    for era in ["modern", "both"] {
        let site = Site::start(era);
        for (message, definition) in [
            (plain("server/discover", json!({})), "DiscoverResult"),
            (plain("tools/list", json!({})), "ListToolsResult"),
            (plain("tools/call", json!({ "name": "counter" })), "CallToolResult"),
        ] {
            let reply = post(&site, &message);
            assert_eq!((reply.status, &reply.session), (200, &None));
            assert_valid(MODERN, definition, &reply.message()["result"]);
        }
    }
}

#[test]
fn headers_must_be_there_and_match_the_body() {
    let site = Site::start("modern");
    let call = request(1, "tools/call", modern_call("echo", json!({ "message": "x" }), json!({})));
    let with = |changed: &str, value: Option<&str>| {
        let mut sent = headers(&call);
        sent.retain(|(name, _)| *name != changed);
        sent.extend(value.map(|value| (changed, value)));
        site.post(&call, &sent)
    };
    for (header, wrong) in
        [("MCP-Protocol-Version", "2025-11-25"), ("Mcp-Method", "tools/list"), ("Mcp-Name", "add")]
    {
        for value in [None, Some(wrong), Some(""), Some("=?base64?====?=")] {
            let reply = with(header, value);
            assert_eq!(reply.status, 400, "{header}: {value:?}");
            assert_valid(MODERN, "HeaderMismatchError", &reply.message());
            assert_eq!(reply.message()["id"], 1);
        }
    }
    assert_eq!(with("Mcp-Name", Some("=?base64?ZWNobw==?=")).status, 200);
    assert_eq!(with("Mcp-Method", Some("TOOLS/CALL")).status, 400, "values are case-sensitive");
    assert_eq!(with("Mcp-Session-Id", Some("whatever")).status, 200, "there are no sessions");
}

#[test]
fn errors_have_the_status_that_the_specification_gives_them() {
    let site = Site::start("both");
    let checked = |message: &Value| {
        let reply = post(&site, message);
        (reply.status, code(&reply.message()))
    };
    assert_eq!(checked(&plain("no/such", json!({}))), (404, -32601));
    assert_eq!(checked(&plain("ping", json!({}))), (404, -32601));
    assert_eq!(checked(&plain("tools/call", json!({ "name": "no_such" }))), (200, -32602));
    assert_eq!(checked(&request(1, "tools/list", json!({}))), (400, -32602));
    let mut half = plain("tools/list", json!({}));
    half["params"]["_meta"].as_object_mut().unwrap().remove("io.modelcontextprotocol/clientCapabilities");
    assert_eq!(checked(&half), (400, -32602));
    let asking = modern_call("ask_client", json!({ "method": "roots/list" }), json!({}));
    assert_eq!(checked(&request(1, "tools/call", asking)), (400, -32021));

    let mut old = plain("tools/list", json!({}));
    old["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("1900-01-01");
    let mut sent = headers(&old);
    sent[1].1 = "1900-01-01";
    let reply = site.post(&old, &sent);
    assert_eq!(reply.status, 400);
    assert_valid(MODERN, "UnsupportedProtocolVersionError", &reply.message());

    let broken = read(site.open("{", &[("Accept", BOTH), ("MCP-Protocol-Version", MODERN)]));
    assert_eq!((broken.status, code(&broken.message()), broken.message().get("id")), (400, -32700, None));
    let batch = read(site.open("[1]", &[("Accept", BOTH), ("MCP-Protocol-Version", MODERN)]));
    assert_eq!((batch.status, code(&batch.message())), (400, -32600));
}

#[test]
fn a_notification_is_accepted_in_silence() {
    let site = Site::start("modern");
    let notification =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 1 } });
    let reply = site.post(&notification, &headers(&notification));
    assert_eq!((reply.status, reply.body.as_str()), (202, ""));
}

#[test]
fn what_was_removed_is_not_there() {
    let site = Site::start("modern");
    for method in ["GET", "DELETE"] {
        let response = site.other(method, &[("Accept", "text/event-stream"), ("Mcp-Session-Id", "x")]);
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()["allow"], "POST");
    }
    let old = site.post(&initialize("2025-11-25", json!({})), &[("Accept", BOTH)]);
    assert_eq!((old.status, code(&old.message())), (400, -32020));
    assert_eq!(old.message()["error"]["data"]["supported"], json!([MODERN]));
}

#[test]
fn both_eras_live_at_one_address() {
    let site = Site::start("both");
    let session = site.post(&initialize("2025-11-25", json!({})), &[("Accept", BOTH)]).session.unwrap();
    let modern = post(&site, &plain("tools/call", json!({ "name": "counter" })));
    assert_eq!(data(&modern.message())["count"], 1);
    let legacy = request(2, "tools/call", json!({ "name": "counter" }));
    let legacy = site.post(&legacy, &[("Accept", BOTH), ("Mcp-Session-Id", &session)]);
    assert_eq!(data(&legacy.message())["count"], 2, "one process answers both");
    assert_eq!(legacy.message()["result"].get("resultType"), None);
}

#[test]
fn input_required_is_a_result_and_its_answer_another_request() {
    let site = Site::start("both");
    let asking =
        modern_call("ask_client", json!({ "method": "elicitation/create" }), json!({ "elicitation": {} }));
    let first = post(&site, &request(1, "tools/call", asking.clone()));
    assert_eq!((first.status, first.content.as_str()), (200, "application/json"));
    let result = &first.message()["result"];
    assert_valid(MODERN, "InputRequiredResult", result);
    let mut retry = asking;
    retry["requestState"] = result["requestState"].clone();
    retry["inputResponses"] = json!({ "answer": { "action": "decline" } });
    let second = post(&site, &request(2, "tools/call", retry));
    assert_eq!(data(&second.message())["result"], json!({ "action": "decline" }));
}

#[test]
fn a_listener_hears_until_it_closes_its_stream() {
    let site = Site::start("both");
    let listen = plain("subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } }));
    let refused = site.post(&listen, &[&headers(&listen)[1..], &[("Accept", "application/json")]].concat());
    assert_eq!(refused.status, 406);
    let mut heard = events(site.open(&listen.to_string(), &headers(&listen)));
    assert_valid(MODERN, "SubscriptionsAcknowledgedNotification", &heard.next().unwrap());
    let announce = plain("tools/call", json!({ "name": "announce" }));
    let listeners = || data(&post(&site, &announce).message())["listeners"].as_u64().unwrap();
    assert_eq!(listeners(), 1);
    let notification = heard.next().unwrap();
    assert_valid(MODERN, "ToolListChangedNotification", &notification);
    assert_eq!(notification["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "m");
    drop(heard);
    let deadline = Instant::now() + PATIENCE;
    while listeners() > 0 {
        assert!(Instant::now() < deadline, "the subscription outlives its stream");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn closing_the_connection_cancels_the_request() {
    let site = Site::start("both");
    let hold = modern_call("allocate", json!({ "mb": 96, "hold_ms": 600_000 }), json!({}));
    let hold = request("h", "tools/call", hold).to_string();
    let mut stream = site.connect();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: {BOTH}\r\n\
         MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\nMcp-Name: allocate\r\n\
         Content-Length: {}\r\n\r\n",
        hold.len()
    );
    std::io::Write::write_all(&mut stream, format!("{head}{hold}").as_bytes()).unwrap();
    let holds = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", site.pid)).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.split_whitespace().next().unwrap().parse::<u64>().unwrap() > 96 << 10
    };
    let deadline = Instant::now() + PATIENCE;
    for (wanted, what) in [(true, "takes"), (false, "gives back")] {
        while holds() != wanted {
            assert!(Instant::now() < deadline, "the probe never {what} its memory");
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}
