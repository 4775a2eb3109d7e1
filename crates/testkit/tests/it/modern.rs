//! stdio, the stateless revision.

use crate::schema::assert_valid;
use crate::support::{code, data, modern_call, stdio, text};
use casemate_testkit::{LineClient, modern_meta};
use serde_json::{Value, json};

const MODERN: &str = "2026-07-28";

fn ask(client: &mut LineClient, method: &str, params: Value) -> Value {
    let answer = client.request(method, modern_meta(params, json!({}))).unwrap();
    let definition =
        if answer.get("error").is_some() { "JSONRPCErrorResponse" } else { "JSONRPCResultResponse" };
    assert_valid(MODERN, definition, &answer);
    answer
}

#[test]
fn every_result_is_of_its_schema_and_complete() {
    for era in ["modern", "both"] {
        let mut client = stdio(&["--era", era]);
        for (method, params, definition) in [
            ("server/discover", json!({}), "DiscoverResult"),
            ("tools/list", json!({}), "ListToolsResult"),
            ("tools/call", json!({ "name": "add", "arguments": { "a": 2, "b": 3 } }), "CallToolResult"),
            ("tools/call", json!({ "name": "echo" }), "CallToolResult"),
        ] {
            let answer = ask(&mut client, method, params);
            assert_valid(MODERN, definition, &answer["result"]);
            assert_eq!(answer["result"]["resultType"], "complete");
            let meta = &answer["result"]["_meta"];
            assert_eq!(meta["io.modelcontextprotocol/serverInfo"]["name"], "casemate-probe");
        }
        let discovered = ask(&mut client, "server/discover", json!({}));
        assert_eq!(discovered["result"]["supportedVersions"], json!([MODERN]));
    }
}

#[test]
fn a_request_without_metadata_or_of_another_revision_is_refused() {
    let mut client = stdio(&["--era", "modern"]);
    let version = "io.modelcontextprotocol/protocolVersion";
    let capabilities = "io.modelcontextprotocol/clientCapabilities";
    for meta in [
        Value::Null,
        json!({}),
        json!({ version: MODERN }),
        json!({ version: 1, capabilities: {} }),
        json!({ version: MODERN, capabilities: [] }),
        json!({ version: MODERN, capabilities: {}, "io.modelcontextprotocol/clientInfo": "me" }),
    ] {
        let answer = client.request("tools/list", json!({ "_meta": meta })).unwrap();
        assert_eq!(code(&answer), -32602, "{meta}");
    }
    for other in ["2025-11-25", "1900-01-01"] {
        let params = json!({ "_meta": { version: other, capabilities: {} } });
        let answer = client.request("tools/list", params).unwrap();
        assert_valid(MODERN, "UnsupportedProtocolVersionError", &answer);
        assert_eq!(answer["error"]["data"], json!({ "supported": [MODERN], "requested": other }));
    }
}

#[test]
fn what_is_no_request_is_refused_without_an_id() {
    let mut client = stdio(&["--era", "modern"]);
    for (line, expected) in [("{", -32700), ("[]", -32600), ("7", -32600)] {
        client.send_bytes(format!("{line}\n").as_bytes()).unwrap();
        let answer = client.recv().unwrap();
        assert_valid(MODERN, "JSONRPCErrorResponse", &answer);
        assert_eq!((answer.get("id"), code(&answer)), (None, expected), "{line}");
    }
    assert_eq!(code(&ask(&mut client, "ping", json!({}))), -32601);
    assert_eq!(code(&ask(&mut client, "logging/setLevel", json!({}))), -32601);
    assert_eq!(code(&ask(&mut client, "tools/call", json!({ "name": "no_such" }))), -32602);
    assert_eq!(code(&ask(&mut client, "tools/call", json!({}))), -32602);
}

#[test]
fn the_first_request_decides_the_era_of_the_connection() {
    let mut modern = stdio(&[]);
    ask(&mut modern, "tools/list", json!({}));
    let refused = modern.initialize("2025-11-25", json!({})).unwrap();
    assert_eq!(code(&refused), -32601);
    assert!(refused["error"]["message"].as_str().unwrap().contains(MODERN));
    let mut probing = stdio(&[]);
    // A client that only asks what is spoken here has decided too, even if it forgot the metadata.
    assert_eq!(code(&probing.request("server/discover", json!({})).unwrap()), -32602);
    assert_eq!(code(&probing.initialize("2025-11-25", json!({})).unwrap()), -32601);
    let mut legacy = stdio(&["--era", "legacy"]);
    let discovered = legacy.request("server/discover", modern_meta(json!({}), json!({}))).unwrap();
    // Any error but the modern ones tells a client to fall back to initialize.
    assert!(!(-32099..=-32020).contains(&code(&discovered)));
    assert!(legacy.initialize("2025-11-25", json!({})).unwrap().get("result").is_some());
}

#[test]
fn nothing_is_remembered_of_the_client_between_requests() {
    let mut client = stdio(&[]);
    let named = ask(&mut client, "tools/call", json!({ "name": "get_server_info" }));
    assert_eq!(data(&named)["client"]["name"], "casemate-testkit");
    let mut params = modern_call("get_server_info", json!({}), json!({}));
    params["_meta"].as_object_mut().unwrap().remove("io.modelcontextprotocol/clientInfo");
    let unnamed = client.request("tools/call", params).unwrap();
    assert_eq!(data(&unnamed)["client"], Value::Null);
}

#[test]
fn input_is_required_once_and_then_used() {
    let mut client = stdio(&[]);
    for (method, capability, response) in [
        ("roots/list", "roots", json!({ "roots": [{ "uri": "file:///r" }] })),
        (
            "sampling/createMessage",
            "sampling",
            json!({ "role": "assistant", "model": "m", "content": { "type": "text", "text": "probe" } }),
        ),
        ("elicitation/create", "elicitation", json!({ "action": "accept", "content": { "name": "n" } })),
    ] {
        let params = modern_call("ask_client", json!({ "method": method }), json!({ capability: {} }));
        let first = client.request("tools/call", params.clone()).unwrap();
        assert_valid(MODERN, "InputRequiredResult", &first["result"]);
        assert_eq!(first["result"]["resultType"], "input_required");
        let (key, request) = first["result"]["inputRequests"].as_object().unwrap().iter().next().unwrap();
        assert_valid(MODERN, "InputRequest", request);
        assert_eq!(request["method"], method);

        let mut retry = params.clone();
        retry["requestState"] = first["result"]["requestState"].clone();
        retry["inputResponses"] = json!({ key: response, "unexpected": 1 });
        assert_valid(
            MODERN,
            "CallToolResult",
            &client.request("tools/call", retry.clone()).unwrap()["result"],
        );
        let answer = client.request("tools/call", retry.clone()).unwrap();
        assert_eq!(data(&answer), json!({ "method": method, "result": response }));

        // What is missing is asked for again.
        let mut empty = retry.clone();
        empty["inputResponses"] = json!({});
        let again = client.request("tools/call", empty).unwrap();
        assert_eq!(again["result"]["resultType"], "input_required");

        for (field, wrong) in [
            ("requestState", json!("probe:another")),
            ("requestState", Value::Null),
            ("inputResponses", json!([])),
            ("inputResponses", json!({ key: { "surprise": true } })),
        ] {
            let mut bad = retry.clone();
            bad[field] = wrong;
            assert_eq!(code(&client.request("tools/call", bad).unwrap()), -32602, "{field}");
        }
    }
}

#[test]
fn a_capability_that_was_not_declared_is_named() {
    let mut client = stdio(&[]);
    let params =
        modern_call("ask_client", json!({ "method": "sampling/createMessage" }), json!({ "roots": {} }));
    let answer = client.request("tools/call", params).unwrap();
    assert_valid(MODERN, "MissingRequiredClientCapabilityError", &answer);
    assert_eq!(answer["error"]["data"]["requiredCapabilities"], json!({ "sampling": {} }));
    let ping = client
        .request("tools/call", modern_call("ask_client", json!({ "method": "ping" }), json!({})))
        .unwrap();
    assert_eq!(ping["result"]["isError"], true);
}

#[test]
fn subscriptions_hear_what_they_asked_for_until_they_are_cancelled() {
    let mut client = stdio(&[]);
    let listen = |wanted: Value| modern_meta(json!({ "notifications": wanted }), json!({}));
    let wanting = client.start("subscriptions/listen", listen(json!({ "toolsListChanged": true }))).unwrap();
    let deaf = client.start("subscriptions/listen", listen(json!({ "promptsListChanged": true }))).unwrap();
    for (id, honoured) in [(wanting, json!({ "toolsListChanged": true })), (deaf, json!({}))] {
        let acknowledged = client.recv().unwrap();
        assert_valid(MODERN, "SubscriptionsAcknowledgedNotification", &acknowledged);
        assert_eq!(acknowledged["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], id);
        assert_eq!(acknowledged["params"]["notifications"], honoured);
    }
    let announce = modern_call("announce", json!({}), json!({}));
    let announced = client.request("tools/call", announce.clone()).unwrap();
    assert_eq!(data(&announced)["listeners"], 1);
    let notification = client.recv().unwrap();
    assert_valid(MODERN, "ToolListChangedNotification", &notification);
    assert_eq!(notification["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], wanting);
    client.notify("notifications/cancelled", json!({ "requestId": wanting })).unwrap();
    let announced = client.request("tools/call", announce).unwrap();
    assert_eq!(data(&announced)["listeners"], 0);
    client.close_stdin();
    assert!(client.wait().unwrap().success());
    assert!(client.recv().is_err(), "nothing follows a cancellation");
}

#[test]
fn progress_and_cancellation_work_as_before() {
    let mut client = stdio(&[]);
    let mut params = modern_call("sleep", json!({ "ms": 30 }), json!({}));
    params["_meta"]["progressToken"] = json!(5);
    let answer = client.request("tools/call", params.clone()).unwrap();
    assert_eq!(text(&answer), "slept 30 ms");
    let progress = client.recv().unwrap();
    assert_valid(MODERN, "ProgressNotification", &progress);
    while client.recv().unwrap()["params"]["progress"] != 30 {}
    params["arguments"]["ms"] = json!(3_600_000);
    let sleep = client.start("tools/call", params).unwrap();
    client.notify("notifications/cancelled", json!({ "requestId": sleep })).unwrap();
    let id = client.start("server/discover", modern_meta(json!({}), json!({}))).unwrap();
    assert_eq!(client.recv().unwrap()["id"], id);
}
