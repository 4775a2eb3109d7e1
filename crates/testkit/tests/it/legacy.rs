//! stdio, the revisions with a handshake.

use crate::schema::{REVISIONS, assert_valid, validator};
use crate::support::{LATEST_LEGACY, code, data, failure, initialised, stdio, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const LEGACY: std::ops::Range<usize> = 0..4;

#[test]
fn every_revision_gets_messages_of_its_own_schema() {
    for (revision, _) in &REVISIONS[LEGACY] {
        let mut client = stdio(&[]);
        let answer = client.initialize(revision, json!({})).unwrap();
        assert_valid(revision, "JSONRPCResponse", &answer);
        assert_valid(revision, "InitializeResult", &answer["result"]);
        assert_eq!(answer["result"]["protocolVersion"], *revision);
        let list = client.request("tools/list", json!({})).unwrap();
        assert_valid(revision, "ListToolsResult", &list["result"]);
        let called = client.call("echo", json!({ "message": "hi" })).unwrap();
        assert_valid(revision, "CallToolResult", &called["result"]);
        assert_eq!(data(&called)["message"], "hi");
        let pong = client.request("ping", json!({})).unwrap();
        assert_eq!(pong["result"], json!({}));
        let unknown = client.request("resources/list", json!({})).unwrap();
        assert_eq!(code(&unknown), -32601);
        let definition = if *revision < LATEST_LEGACY { "JSONRPCError" } else { "JSONRPCErrorResponse" };
        assert_valid(revision, definition, &unknown);
    }
}

#[test]
fn fields_appear_with_the_revision_that_has_them() {
    for (revision, annotations, title) in
        [("2024-11-05", false, false), ("2025-03-26", true, false), (LATEST_LEGACY, true, true)]
    {
        let mut client = initialised(revision, json!({}));
        let list = client.request("tools/list", json!({})).unwrap();
        for tool in list["result"]["tools"].as_array().unwrap() {
            assert_eq!(tool.get("annotations").is_some(), annotations, "{revision} {tool}");
            assert_eq!(tool.get("title").is_some(), title, "{revision} {tool}");
        }
    }
}

#[test]
fn an_unknown_revision_is_answered_with_the_latest() {
    for asked in ["2026-07-28", "1.0", ""] {
        let answer = stdio(&[]).initialize(asked, json!({})).unwrap();
        assert_eq!(answer["result"]["protocolVersion"], LATEST_LEGACY);
    }
}

#[test]
fn the_tool_list_is_described_and_always_the_same() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    let list = client.request("tools/list", json!({})).unwrap()["result"].clone();
    assert_eq!(client.request("tools/list", json!({})).unwrap()["result"], list);
    assert_eq!(
        initialised(LATEST_LEGACY, json!({})).request("tools/list", json!({})).unwrap()["result"],
        list
    );
    let names: Vec<&str> =
        list["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    let expected = "echo add get_server_info env whoami read_file write_file sleep random connect exchange \
                    fetch crash exit allocate fork_bomb log_to_stdout log_to_stderr big_reply ask_client announce counter";
    assert_eq!(names.join(" "), expected);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    for tool in list["tools"].as_array().unwrap() {
        let schema = &tool["inputSchema"];
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert!(jsonschema::draft202012::meta::is_valid(schema), "{schema}");
        assert!(!validator(schema).is_valid(&json!({ "surprise": 1 })), "{tool} takes anything");
        for (name, property) in schema["properties"].as_object().unwrap() {
            assert!(property["description"].as_str().unwrap().len() > 3, "{name} of {tool}");
            if let Some(default) = property.get("default") {
                assert!(validator(property).is_valid(default), "{name} of {tool}");
            }
        }
        assert!(tool["description"].as_str().unwrap().len() > 10 && tool["title"].is_string());
        for hint in ["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"] {
            assert!(tool["annotations"][hint].is_boolean(), "{hint} of {tool}");
        }
    }
    assert_eq!(code(&client.request("tools/list", json!({ "cursor": "x" })).unwrap()), -32602);
}

#[test]
fn nothing_but_a_ping_comes_before_the_handshake_and_there_is_one() {
    let mut client = stdio(&["--era", "legacy"]);
    assert_eq!(client.request("ping", json!({})).unwrap()["result"], json!({}));
    for method in ["tools/list", "tools/call", "server/discover", "no/such"] {
        assert_eq!(code(&client.request(method, json!({})).unwrap()), -32600, "{method}");
    }
    assert_eq!(code(&client.request("initialize", json!({})).unwrap()), -32602);
    client.initialize(LATEST_LEGACY, json!({})).unwrap();
    assert_eq!(code(&client.initialize(LATEST_LEGACY, json!({})).unwrap()), -32600);
    assert!(client.request("tools/list", json!({})).unwrap().get("result").is_some());
    assert_eq!(code(&client.request("server/discover", json!({})).unwrap()), -32601);
}

#[test]
fn what_is_no_request_is_refused_as_json_rpc_says() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    for (line, expected_id, expected_code) in [
        ("{", Value::Null, -32700),
        ("hello", Value::Null, -32700),
        ("\u{0}", Value::Null, -32700),
        ("[]", Value::Null, -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, Value::Null, -32600),
        ("42", Value::Null, -32600),
        (r#"{"jsonrpc":"2.0"}"#, Value::Null, -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, Value::Null, -32600),
        (r#"{"jsonrpc":"1.0","id":"x","method":"ping"}"#, json!("x"), -32600),
        (r#"{"jsonrpc":"2.0","id":"y","method":"ping","params":[]}"#, json!("y"), -32602),
        (r#"{"jsonrpc":"2.0","id":7,"method":"tools/call"}"#, json!(7), -32602),
        (r#"{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"no_such"}}"#, json!(8), -32602),
        (
            r#"{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"echo","arguments":[]}}"#,
            json!(9),
            -32602,
        ),
    ] {
        client.send_bytes(format!("{line}\n").as_bytes()).unwrap();
        let answer = client.recv().unwrap();
        assert_eq!((answer.get("id"), code(&answer)), (Some(&expected_id), expected_code), "{line}");
    }
}

#[test]
fn notifications_and_empty_lines_are_never_answered() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    client.notify("notifications/initialized", json!({})).unwrap();
    client.notify("tools/list", json!({})).unwrap();
    client.notify("no/such", json!([1])).unwrap();
    client.notify("notifications/cancelled", json!({ "requestId": "never sent" })).unwrap();
    client.send_bytes(b"\n\r\n  \n").unwrap();
    client.send(&json!({ "jsonrpc": "2.0", "id": "never asked", "result": {} })).unwrap();
    let id = client.start("ping", json!({})).unwrap();
    assert_eq!(client.recv().unwrap()["id"], id);
}

#[test]
fn wrong_arguments_are_failures_of_the_tool() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    for (tool, arguments, part) in [
        ("echo", json!({}), "message"),
        ("echo", json!({ "message": 1 }), "a string"),
        ("add", json!({ "a": 1, "b": "2" }), "argument b"),
        ("sleep", json!({ "ms": -1 }), "an integer from 0"),
        ("counter", json!({ "x": 1 }), "unknown argument"),
        ("ask_client", json!({ "method": "tools/list" }), "one of ping"),
    ] {
        let answer = client.call(tool, arguments).unwrap();
        assert!(failure(&answer).contains(part), "{answer}");
    }
}

#[test]
fn a_sleep_holds_nobody_up_and_reports_its_progress() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    let params = json!({ "name": "sleep", "arguments": { "ms": 300 }, "_meta": { "progressToken": "p" } });
    let sleep = client.start("tools/call", params).unwrap();
    let echo =
        client.start("tools/call", json!({ "name": "echo", "arguments": { "message": "x" } })).unwrap();
    let is_answer = |message: &Value| message.get("method").is_none();
    assert_eq!(client.recv_where(is_answer).unwrap()["id"], echo);
    assert_eq!(text(&client.answer(sleep).unwrap()), "slept 300 ms");
    let mut last = 0;
    for _ in 0..10 {
        let progress = client.recv().unwrap();
        assert_valid(LATEST_LEGACY, "ProgressNotification", &progress);
        assert_eq!(progress["params"]["progressToken"], "p");
        let now = progress["params"]["progress"].as_u64().unwrap();
        assert!(now > last && now <= 300, "{progress}");
        last = now;
    }
    assert_eq!(last, 300);
}

#[test]
fn a_cancelled_request_is_never_answered() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    let params =
        json!({ "name": "sleep", "arguments": { "ms": 3_600_000 }, "_meta": { "progressToken": 1 } });
    let sleep = client.start("tools/call", params.clone()).unwrap();
    // The same id may not run twice, and may run again once it has ended.
    let again = json!({ "jsonrpc": "2.0", "id": sleep, "method": "tools/call", "params": params });
    client.send(&again).unwrap();
    assert_eq!(code(&client.recv().unwrap()), -32600);
    client.notify("notifications/cancelled", json!({ "requestId": sleep })).unwrap();
    client.send(&json!({ "jsonrpc": "2.0", "id": sleep, "method": "ping" })).unwrap();
    let answer = client.recv().unwrap();
    // The sleeper may take a moment to go; its id is refused until then.
    if answer.get("error").is_some() {
        assert_eq!(code(&answer), -32600);
    } else {
        assert_eq!(answer["result"], json!({}));
    }
    let next = client.start("ping", json!({})).unwrap();
    assert_eq!(client.recv().unwrap()["id"], next);
    client.close_stdin();
    assert!(client.wait().unwrap().success());
}

#[test]
fn too_many_requests_at_once_are_refused() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    let sleep = json!({ "name": "sleep", "arguments": { "ms": 3_600_000 } });
    for _ in 0..64 {
        client.start("tools/call", sleep.clone()).unwrap();
    }
    assert_eq!(code(&client.request("ping", json!({})).unwrap()), -32603);
}

#[test]
fn batches_exist_in_one_revision() {
    let mut client = initialised("2025-03-26", json!({}));
    let batch = json!([
        { "jsonrpc": "2.0", "id": "slow", "method": "tools/call", "params": { "name": "sleep", "arguments": { "ms": 50 } } },
        { "jsonrpc": "2.0", "method": "notifications/initialized" },
        { "jsonrpc": "2.0", "id": "quick", "method": "ping" },
        { "jsonrpc": "2.0", "id": "second", "method": "initialize", "params": {} },
        7,
    ]);
    client.send(&batch).unwrap();
    let answers = client.recv().unwrap();
    assert_valid("2025-03-26", "JSONRPCBatchResponse", &json!([answers[0], answers[3]]));
    let ids: BTreeSet<String> =
        answers.as_array().unwrap().iter().map(|answer| answer["id"].to_string()).collect();
    assert_eq!(ids, ["\"quick\"", "\"second\"", "\"slow\"", "null"].map(String::from).into());
    // A batch without requests has no answer.
    client.send(&json!([{ "jsonrpc": "2.0", "method": "notifications/initialized" }])).unwrap();
    let id = client.start("ping", json!({})).unwrap();
    assert_eq!(client.recv().unwrap()["id"], id);
}

#[test]
fn the_client_is_asked_and_its_answer_comes_back() {
    let capabilities = json!({ "roots": {}, "sampling": {}, "elicitation": {} });
    let mut client = initialised(LATEST_LEGACY, capabilities);
    for (method, definition, result) in [
        ("ping", "PingRequest", json!({})),
        ("roots/list", "ListRootsRequest", json!({ "roots": [] })),
        (
            "sampling/createMessage",
            "CreateMessageRequest",
            json!({ "role": "assistant", "model": "m", "content": { "type": "text", "text": "probe" } }),
        ),
        ("elicitation/create", "ElicitRequest", json!({ "action": "accept", "content": { "name": "p" } })),
    ] {
        let call = client
            .start("tools/call", json!({ "name": "ask_client", "arguments": { "method": method } }))
            .unwrap();
        let question = client.recv().unwrap();
        assert_valid(LATEST_LEGACY, definition, &question);
        assert_eq!(question["method"], method);
        client.send(&json!({ "jsonrpc": "2.0", "id": question["id"], "result": result })).unwrap();
        let answer = client.answer(call).unwrap();
        assert_eq!(data(&answer), json!({ "method": method, "result": result }));
    }
}

#[test]
fn a_client_that_cannot_answer_is_asked_by_force_only() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    let refused = client.call("ask_client", json!({ "method": "roots/list" })).unwrap();
    assert!(failure(&refused).contains("did not declare"));
    let arguments = json!({ "method": "roots/list", "force": true });
    let call = client.start("tools/call", json!({ "name": "ask_client", "arguments": arguments })).unwrap();
    let question = client.recv().unwrap();
    let error = json!({ "code": -32601, "message": "no roots here" });
    client.send(&json!({ "jsonrpc": "2.0", "id": question["id"], "error": error })).unwrap();
    let answer = client.answer(call).unwrap();
    assert!(failure(&answer).contains("-32601"), "{answer}");
}

#[test]
fn a_question_that_nobody_answers_is_withdrawn() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    let arguments = json!({ "method": "ping", "timeout_ms": 20 });
    let call = client.start("tools/call", json!({ "name": "ask_client", "arguments": arguments })).unwrap();
    let question = client.recv().unwrap();
    let withdrawn = client.recv().unwrap();
    assert_valid(LATEST_LEGACY, "CancelledNotification", &withdrawn);
    assert_eq!(withdrawn["params"]["requestId"], question["id"]);
    assert!(failure(&client.answer(call).unwrap()).contains("no answer"));
}

#[test]
fn an_announcement_is_a_notification() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    client.start("tools/call", json!({ "name": "announce" })).unwrap();
    let notification = client.recv().unwrap();
    assert_valid(LATEST_LEGACY, "ToolListChangedNotification", &notification);
}

#[test]
fn the_end_of_stdin_ends_the_probe_after_what_is_nearly_done() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    let soon = client.start("tools/call", json!({ "name": "sleep", "arguments": { "ms": 50 } })).unwrap();
    client.start("tools/call", json!({ "name": "sleep", "arguments": { "ms": 3_600_000 } })).unwrap();
    client.close_stdin();
    assert_eq!(text(&client.answer(soon).unwrap()), "slept 50 ms");
    assert!(client.wait().unwrap().success());
}

#[test]
fn a_line_that_is_too_long_ends_the_probe() {
    let mut client = stdio(&[]).with_patience(Duration::from_secs(60));
    let long = vec![b'x'; (16 << 20) + (1 << 17)];
    // The probe leaves in the middle of it.
    let _ = client.send_bytes(&long);
    assert_eq!(client.wait().unwrap().code(), Some(1));
    assert!(client.stderr().contains("longer than"), "{}", client.stderr());
}

#[test]
fn messages_of_nearly_16_mib_pass_both_ways() {
    let mut client = initialised(LATEST_LEGACY, json!({}));
    let message = "m".repeat((16 << 20) - 4096);
    let answer = client.call("echo", json!({ "message": message })).unwrap();
    assert!(data(&answer)["message"] == message);
}
