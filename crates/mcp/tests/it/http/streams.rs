//! Headers, streams, resumption and cancellation, against a server that the test plays.

use std::time::Duration;

use casemate_mcp::http::End;
use serde_json::{Value, json};

use super::fake::{Client, Fake, in_one_thread, notification, request, result};

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";

/// Longer than what is expected to happen takes on a busy host.
const PAUSE: Duration = Duration::from_millis(300);

fn modern(id: u64, method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({VERSION: "2026-07-28"});
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

#[test]
fn a_session_is_named_in_each_request_and_ended_with_the_client() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        fake.begin(&mut client, "s-1").await;
        client.say(&notification("notifications/initialized")).await;
        let heard = fake.hear().await;
        assert_eq!(heard.line(), "POST /mcp HTTP/1.1");
        assert_eq!(heard.header("accept"), Some("application/json, text/event-stream"));
        assert_eq!(heard.header("content-type"), Some("application/json"));
        let named = |heard: &super::fake::Heard| {
            (
                heard.header("mcp-session-id").map(str::to_owned),
                heard.header("mcp-protocol-version").map(str::to_owned),
            )
        };
        let expected = (Some("s-1".to_owned()), Some("2025-06-18".to_owned()));
        assert_eq!(named(&heard), expected);
        heard.status(202).await;
        let heard = fake.hear().await;
        assert_eq!((heard.line(), named(&heard)), ("GET /mcp HTTP/1.1", expected.clone()));
        assert_eq!(heard.header("accept"), Some("text/event-stream"));
        heard.status(405).await;

        client.say(&request("a", "tools/list")).await;
        let heard = fake.hear().await;
        assert_eq!((named(&heard), heard.header("mcp-method")), (expected.clone(), None));
        assert_eq!(reach.busy.get(), 1);
        heard.json(200, &[], &result("a")).await;
        assert_eq!(client.hear().await.unwrap(), result("a"));
        let finishing = tokio::task::spawn_local(client.finish());
        let heard = fake.hear().await;
        assert_eq!((heard.line(), named(&heard)), ("DELETE /mcp HTTP/1.1", expected));
        heard.status(405).await;
        assert!(matches!(finishing.await.unwrap(), (rest, End::Client) if rest.is_empty()));
        assert!(reach.notes.borrow().is_empty(), "{:?}", reach.notes);
    });
}

#[test]
fn a_modern_request_stands_for_itself() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        client.say(&modern(1, "tools/call", json!({"name": "grüezi", "arguments": {}}))).await;
        let heard = fake.hear().await;
        assert_eq!(heard.header("mcp-protocol-version"), Some("2026-07-28"));
        assert_eq!(heard.header("mcp-method"), Some("tools/call"));
        assert_eq!(heard.header("mcp-name"), Some("=?base64?Z3LDvGV6aQ==?="));
        heard.json(200, &[("Mcp-Session-Id", "ignored")], &result(1)).await;
        assert_eq!(client.hear().await.unwrap(), result(1));

        // A parameter that a tool wants in a header is there from the list on.
        client.say(&modern(2, "tools/list", json!({}))).await;
        let schema = json!({"properties": {"region": {"type": "string", "x-mcp-header": "Region"}}});
        let tools = json!({"tools": [{"name": "sql", "inputSchema": schema}]});
        fake.hear().await.json(200, &[], &json!({"jsonrpc": "2.0", "id": 2, "result": tools})).await;
        client.hear().await.unwrap();
        client.say(&modern(3, "tools/call", json!({"name": "sql", "arguments": {"region": "eu"}}))).await;
        let heard = fake.hear().await;
        assert_eq!((heard.header("mcp-param-region"), heard.header("mcp-session-id")), (Some("eu"), None));
        heard.json(200, &[], &result(3)).await;
        assert_eq!(client.hear().await.unwrap(), result(3));
        // Nothing is to be ended.
        let (rest, end) = client.finish().await;
        assert!(rest.is_empty() && matches!(end, End::Client));
        assert!(fake.is_left_alone(PAUSE).await);
    });
}

#[test]
fn a_message_waits_until_the_notification_before_it_was_accepted() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        fake.begin(&mut client, "s").await;
        client.say(&notification("notifications/initialized")).await;
        client.say(&request(1, "tools/list")).await;
        let heard = fake.hear().await;
        assert_eq!(heard.body["method"], "notifications/initialized");
        assert!(fake.is_left_alone(PAUSE).await);
        heard.status(202).await;
        // The stream of the session and the request, in either order.
        let (one, other) = (fake.hear().await, fake.hear().await);
        let lines = [one.line().to_owned(), other.line().to_owned()];
        assert!(lines.contains(&"GET /mcp HTTP/1.1".to_owned()), "{lines:?}");
        assert!(lines.contains(&"POST /mcp HTTP/1.1".to_owned()), "{lines:?}");
    });
}

#[test]
fn what_the_server_says_by_itself_is_heard_and_its_stream_is_asked_for_again() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        fake.begin(&mut client, "s").await;
        client.say(&notification("notifications/initialized")).await;
        fake.hear().await.status(202).await;
        let heard = fake.hear().await;
        assert_eq!(heard.header("last-event-id"), None);
        let mut events = heard.stream().await;
        events.send("retry: 1\nid: e-1\ndata: \n\n").await;
        events
            .send(&format!("id: e-2\ndata: {}\n\n", notification("notifications/tools/list_changed")))
            .await;
        assert_eq!(client.hear().await.unwrap()["method"], "notifications/tools/list_changed");
        assert_eq!(reach.busy.get(), 0, "a stream that rests is no use of the server");
        drop(events);
        let heard = fake.hear().await;
        assert_eq!(heard.header("last-event-id"), Some("e-2"));
        let mut events = heard.stream().await;
        // A question of the server is answered with a message of its own.
        events.message(&request("q", "ping")).await;
        assert_eq!(client.hear().await.unwrap(), request("q", "ping"));
        client.say(&result("q")).await;
        let heard = fake.hear().await;
        assert_eq!(heard.body, result("q"));
        heard.status(202).await;
    });
}

#[test]
fn a_stream_that_breaks_is_resumed_after_its_last_event() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        fake.begin(&mut client, "s").await;
        client.say(&request(7, "tools/call")).await;
        let mut events = fake.hear().await.stream().await;
        events.send("retry: 1\nid: a/1\ndata:\n\n").await;
        drop(events);
        let heard = fake.hear().await;
        assert_eq!((heard.line(), heard.header("last-event-id")), ("GET /mcp HTTP/1.1", Some("a/1")));
        let mut events = heard.stream().await;
        events.send(&format!("id: a/2\ndata: {}\n\n", notification("notifications/message"))).await;
        assert_eq!(client.hear().await.unwrap()["method"], "notifications/message");
        drop(events);
        let heard = fake.hear().await;
        assert_eq!(heard.header("last-event-id"), Some("a/2"));
        heard.stream().await.message(&result(7)).await;
        assert_eq!(client.hear().await.unwrap(), result(7));
    });
}

#[test]
fn a_stream_that_cannot_be_resumed_is_told_of_and_never_taken_for_an_answer() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        fake.begin(&mut client, "s").await;
        // Without an id; and with one, where the server does not offer it.
        client.say(&request(1, "tools/call")).await;
        drop(fake.hear().await.stream().await);
        let told = client.hear().await.unwrap();
        assert_eq!((&told["id"], &told["error"]["code"]), (&json!(1), &json!(-32000)));
        client.say(&request(2, "tools/call")).await;
        fake.hear().await.stream().await.send("retry: 1\nid: x\ndata:\n\n").await;
        fake.hear().await.status(405).await;
        assert_eq!(client.hear().await.unwrap()["id"], 2);
        // Modern streams are not resumed; a subscription that ends is ended.
        client.say(&modern(3, "tools/call", json!({"name": "x"}))).await;
        fake.hear().await.stream().await.send("id: y\ndata:\n\n").await;
        assert_eq!(client.hear().await.unwrap()["error"]["code"], -32000);
        client.say(&modern(4, "subscriptions/listen", json!({}))).await;
        drop(fake.hear().await.stream().await);
        let told = client.hear().await.unwrap();
        assert_eq!(
            (&told["method"], &told["params"]["requestId"]),
            (&json!("notifications/cancelled"), &json!(4))
        );
        assert!(fake.is_left_alone(PAUSE).await);
    });
}

#[test]
fn a_modern_request_is_cancelled_by_closing_its_stream_and_a_legacy_one_by_a_message() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        let cancel = |id: u64| json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
        client.say(&modern(1, "tools/call", json!({"name": "x"}))).await;
        let events = fake.hear().await.stream().await;
        client.say(&cancel(1)).await;
        events.closed().await;
        assert!(fake.is_left_alone(PAUSE).await);

        fake.begin(&mut client, "s").await;
        client.say(&request(2, "tools/call")).await;
        let events = fake.hear().await.stream().await;
        client.say(&cancel(2)).await;
        let heard = fake.hear().await;
        assert_eq!(heard.body, cancel(2));
        heard.status(202).await;
        events.closed().await;
        assert_eq!(reach.busy.get(), 0);
    });
}

#[test]
fn a_subscription_does_not_outlive_its_client_and_other_requests_are_answered_first() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        client.say(&modern(1, "subscriptions/listen", json!({}))).await;
        let mut subscribed = fake.hear().await.stream().await;
        subscribed.message(&notification("notifications/subscriptions/acknowledged")).await;
        client.hear().await.unwrap();
        client.say(&modern(2, "tools/list", json!({}))).await;
        let heard = fake.hear().await;
        let finishing = tokio::task::spawn_local(client.finish());
        subscribed.closed().await;
        assert!(!finishing.is_finished());
        heard.json(200, &[], &result(2)).await;
        assert!(matches!(finishing.await.unwrap(), (rest, End::Client) if rest == [result(2)]));
    });
}

#[test]
fn a_call_that_is_refused_for_its_headers_is_asked_again_once_the_schemas_are_known() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        let mismatch =
            json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -32020, "message": "Region is missing"}});
        client.say(&modern(1, "tools/call", json!({"name": "sql", "arguments": {"region": "eu"}}))).await;
        fake.hear().await.json(400, &[], &mismatch).await;
        let heard = fake.hear().await;
        assert_eq!(
            (heard.header("mcp-method"), &heard.body["params"]["_meta"][VERSION]),
            (Some("tools/list"), &json!("2026-07-28"))
        );
        let listed = |id: &Value, tools: Value, next: Value| json!({"jsonrpc": "2.0", "id": id, "result": {"tools": tools, "nextCursor": next}});
        let id = heard.body["id"].clone();
        heard.json(200, &[], &listed(&id, json!([]), json!("page 2"))).await;
        let heard = fake.hear().await;
        assert_eq!(heard.body["params"]["cursor"], "page 2");
        let schema = json!({"properties": {"region": {"type": "string", "x-mcp-header": "Region"}}});
        let mut events = heard.stream().await;
        events.message(&listed(&id, json!([{"name": "sql", "inputSchema": schema}]), Value::Null)).await;
        drop(events);
        let heard = fake.hear().await;
        assert_eq!((heard.header("mcp-name"), heard.header("mcp-param-region")), (Some("sql"), Some("eu")));
        heard.json(200, &[], &result(1)).await;
        assert_eq!(client.hear().await.unwrap(), result(1));
        // Where the schemas say nothing new, the refusal is the answer.
        client.say(&modern(2, "tools/call", json!({"name": "other"}))).await;
        let mismatch = json!({"jsonrpc": "2.0", "id": 2, "error": {"code": -32020, "message": "x"}});
        fake.hear().await.json(400, &[], &mismatch).await;
        let heard = fake.hear().await;
        heard.json(200, &[], &listed(&id, json!([]), Value::Null)).await;
        assert_eq!(client.hear().await.unwrap(), mismatch);
    });
}
