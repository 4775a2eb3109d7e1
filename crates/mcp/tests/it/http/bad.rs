//! Servers that answer nonsense, too much, somebody else's answer, or nothing.

use casemate_mcp::http::{End, Lost};
use casemate_proto::limits::MCP_MESSAGE_BYTES;
use serde_json::{Value, json};

use super::fake::{Client, Fake, in_one_thread, initialize, notification, request, result};

/// What the client is told when its next request is answered with these bytes.
async fn answered(fake: &Fake, client: &mut Client, bytes: &str) -> Value {
    client.say(&request(1, "tools/list")).await;
    fake.hear().await.raw(bytes).await;
    let told = client.hear().await.unwrap();
    assert_eq!(told["id"], 1, "{told}");
    told
}

#[test]
fn nonsense_fails_the_request_and_the_next_is_served() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        let head = |more: &str| format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{more}\r\n");
        let json = "Content-Type: application/json\r\n";
        let long = format!("X-Long: {}\r\n", "x".repeat(400_000));
        for (bytes, expected) in [
            (String::new(), "did not answer as HTTP"),
            ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), "did not answer as HTTP"),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned(), "did not answer as HTTP"),
            (head(&long), "did not answer as HTTP"),
            (head(json) + "{", "answered with no answer: {"),
            (head(json), "without a message"),
            (head("") + "<html>", "answered with no answer: <html>"),
            (head(&format!("{json}Content-Length: 100\r\n")) + "{", "did not answer as HTTP"),
            (head(json) + &result(2).to_string(), "answered with no answer"),
            ("HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(), "302 Found"),
            (head("Content-Type: text/event-stream\r\n") + "data: {\n\ndata: []\n\n", "closed its stream"),
        ] {
            let told = answered(&fake, &mut client, &bytes).await;
            let message = told["error"]["message"].as_str().unwrap();
            assert!(message.contains(expected), "{bytes:.60}: {message}");
        }
        client.say(&request(9, "ping")).await;
        fake.hear().await.json(200, &[], &result(9)).await;
        assert_eq!(client.hear().await.unwrap(), result(9));
    });
}

#[test]
fn no_server_answers_one_request_in_the_stream_of_another() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        client.say(&request(1, "tools/call")).await;
        let mut first = fake.hear().await.stream().await;
        client.say(&request(2, "tools/call")).await;
        let mut second = fake.hear().await.stream().await;
        second.message(&json!({"jsonrpc": "2.0", "id": 1, "result": {"forged": true}})).await;
        second.message(&result(2)).await;
        assert_eq!(client.hear().await.unwrap(), result(2));
        first.message(&result(1)).await;
        assert_eq!(client.hear().await.unwrap(), result(1));
        assert!(reach.noted("nobody waits for"), "{:?}", reach.notes);
    });
}

#[test]
fn a_message_that_is_too_long_ends_the_conversation_whatever_it_comes_in() {
    let long = "x".repeat(MCP_MESSAGE_BYTES + 1);
    let whole = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n\"{long}\"");
    let event = format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {long}\n\n");
    let events = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{}",
        "data: x\n".repeat(MCP_MESSAGE_BYTES / 2 + 1)
    );
    for bytes in [whole, event, events] {
        in_one_thread(async {
            let (fake, reach) = Fake::new().await;
            let mut client = Client::of(&reach);
            client.say(&request(1, "tools/list")).await;
            let heard = fake.hear().await;
            let sending = tokio::task::spawn_local(async move { heard.raw(&bytes).await });
            let end = client.end().await;
            assert!(matches!(end, End::Lost(Lost::TooLong { from: "server", .. })), "{end:?}");
            sending.abort();
        });
    }
    in_one_thread(async {
        let (_fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        client.write(&long).await;
        let end = client.end().await;
        assert!(matches!(end, End::Lost(Lost::TooLong { from: "client", .. })), "{end:?}");
    });
}

#[test]
fn a_session_that_the_server_forgot_ends_the_conversation() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        fake.begin(&mut client, "s").await;
        // An answer to the request itself is one, whatever its status.
        client.say(&request(1, "x")).await;
        let unknown = json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "m"}});
        fake.hear().await.json(404, &[], &unknown).await;
        assert_eq!(client.hear().await.unwrap(), unknown);
        client.say(&request(2, "x")).await;
        let gone =
            json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32001, "message": "Session not found"}});
        fake.hear().await.json(404, &[], &gone).await;
        let end = client.end().await;
        assert!(matches!(end, End::Lost(Lost::SessionEnded)), "{end:?}");
    });
}

#[test]
fn a_server_without_a_session_is_no_server_that_forgot_it() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        client.say(&initialize()).await;
        fake.hear().await.raw("HTTP/1.1 404 Not Found\r\nContent-Length: 15\r\n\r\nCannot POST /mcp").await;
        let told = client.hear().await.unwrap();
        assert_eq!(
            told["error"]["message"], "the server answered HTTP 404 Not Found: Cannot POST /mc",
            "{told}"
        );
    });
}

#[test]
fn a_notification_that_is_refused_is_noted_and_what_is_no_message_is_answered() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        client.say(&notification("notifications/x")).await;
        fake.hear().await.json(400, &[], &json!("no")).await;
        client.write("nonsense\n[]\n").await;
        for code in [-32700, -32600] {
            let told = client.hear().await.unwrap();
            assert_eq!((&told["id"], &told["error"]["code"]), (&Value::Null, &json!(code)));
        }
        assert!(reach.noted("notifications/x was not accepted: HTTP 400"), "{:?}", reach.notes);
        client.say(&request(1, "a")).await;
        let first = fake.hear().await;
        client.say(&request(1, "b")).await;
        assert_eq!(client.hear().await.unwrap()["error"]["code"], -32600);
        first.json(200, &[], &result(1)).await;
        assert_eq!(client.hear().await.unwrap(), result(1));
    });
}

#[test]
fn a_connection_that_was_kept_and_closed_costs_no_request() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        client.say(&request(1, "a")).await;
        let body = result(1).to_string();
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let heard = fake.hear().await;
        // The same connection brings the next one, and then is closed by the server.
        let next = tokio::task::spawn_local(async move { heard.raw_and_next(&answer).await });
        assert_eq!(client.hear().await.unwrap(), result(1));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        client.say(&request(2, "b")).await;
        let heard = next.await.unwrap().expect("another request");
        heard.json(200, &[], &result(2)).await;
        assert_eq!(client.hear().await.unwrap(), result(2));
        assert_eq!(reach.connections.get(), 1);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        client.say(&request(3, "c")).await;
        fake.hear().await.json(200, &[], &result(3)).await;
        assert_eq!(client.hear().await.unwrap(), result(3));
    });
}

#[test]
fn a_server_that_takes_no_connection_ends_the_conversation() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        drop(fake);
        let mut client = Client::of(&reach);
        client.say(&request(1, "a")).await;
        let end = client.end().await;
        assert!(matches!(end, End::Lost(Lost::Unreachable(_))), "{end:?}");
    });
}
