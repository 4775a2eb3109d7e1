//! Messages from the examples of the MCP schema, revision 2026-07-28, as `tests/vectors` has them.

use casemate_mcp::multiplex::{FromServer, Limits, Multiplexer, ToServer};
use casemate_mcp::{Envelope, Id, Message};
use serde_json::{Value, json};

use super::peer::{LONG, Peer, options, params, result};

macro_rules! vector {
    ($name:literal) => {
        include_str!(concat!("../vectors/", $name, ".json"))
    };
}

const DISCOVER: &str = vector!("server-discover-request");
const DISCOVERED: &str = vector!("discover-result-response");
const CALL: &str = vector!("call-tool-request");
const CALLED: &str = vector!("call-tool-result-response");
const LISTEN: &str = vector!("listen-for-list-changes");
const LISTENING: &str = vector!("listen-acknowledged");
const UPDATED: &str = vector!("file-resource-updated-notification");
const LISTENED: &str = vector!("listen-closed-response");
const PROGRESS: &str = vector!("progress-message");
const CANCELLED: &str = vector!("user-requested-cancellation");
const UNSUPPORTED: &str = vector!("unsupported-version");

fn message(text: &str) -> Message {
    Message::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn the_envelopes_are_read_as_they_are_meant() {
    let kind = |text| match message(text).envelope() {
        Envelope::Request { id, method, params } => {
            ("request", method.to_owned(), Some(id.clone()), params.is_some())
        }
        Envelope::Notification { method, params } => {
            ("notification", method.to_owned(), None, params.is_some())
        }
        Envelope::Response { id, .. } => ("response", String::new(), Some(id.clone()), false),
        Envelope::Error { id, .. } => ("error", String::new(), id.cloned(), false),
    };
    let id = |text: &str| Some(Id::String(text.into()));
    let method = str::to_owned;
    assert_eq!(kind(DISCOVER), ("request", method("server/discover"), id("discover-1"), true));
    assert_eq!(kind(CALL), ("request", method("tools/call"), id("call-tool-example"), true));
    assert_eq!(kind(CALLED), ("response", method(""), id("call-tool-example"), false));
    assert_eq!(kind(PROGRESS), ("notification", method("notifications/progress"), None, true));
    assert_eq!(kind(UNSUPPORTED), ("error", method(""), Some(Id::Integer("1".into())), false));
}

#[test]
fn through_the_multiplexer_and_back_nothing_changes() {
    for (request, answer, name) in [
        (DISCOVER, DISCOVERED, "\"discover-1\""),
        (CALL, CALLED, "\"call-tool-example\""),
        (LISTEN, LISTENED, "\"listen-1\""),
    ] {
        let mut multiplexer = Multiplexer::new(Limits::default());
        multiplexer.send('b', &message(r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#)).unwrap();
        let Ok(ToServer::Request { wire, text }) = multiplexer.send('a', &message(request)) else {
            panic!("{request}")
        };
        let on_the_wire = |text: &str| text.replace(name, &wire.to_string());
        assert_eq!(text, on_the_wire(request));
        if request == LISTEN {
            for notice in [LISTENING, UPDATED] {
                let FromServer::Notice(delivery) = multiplexer.receive(message(&on_the_wire(notice))) else {
                    panic!("{notice}")
                };
                assert_eq!((delivery.owner, delivery.text().as_str()), ('a', notice));
            }
        }
        let FromServer::Answer(delivery) = multiplexer.receive(message(&on_the_wire(answer))) else {
            panic!("{answer}")
        };
        assert_eq!((delivery.owner, delivery.text().as_str()), ('a', answer));
    }
}

#[test]
fn progress_and_cancellation_change_only_in_their_names() {
    let mut multiplexer = Multiplexer::new(Limits::default());
    let request =
        r#"{"jsonrpc":"2.0","id":"123","method":"x","params":{"_meta":{"progressToken":"oivaizmir"}}}"#;
    let Ok(ToServer::Request { wire, .. }) = multiplexer.send('a', &message(request)) else { panic!() };
    let progress = PROGRESS.replace("\"oivaizmir\"", &wire.to_string());
    let FromServer::Notice(delivery) = multiplexer.receive(message(&progress)) else { panic!("{progress}") };
    assert_eq!((delivery.owner, delivery.text().as_str()), ('a', PROGRESS));
    let cancelled = CANCELLED.replace("\"123\"", &wire.to_string());
    assert_eq!(multiplexer.send('a', &message(CANCELLED)), Ok(ToServer::Notification(cancelled)));
}

#[tokio::test]
async fn the_client_writes_what_the_examples_show() {
    let mut as_in_the_example = options();
    as_in_the_example.client_name = "ExampleClient".into();
    as_in_the_example.client_version = "1.0.0".into();
    let like = |mut request: Value, vector: &str| {
        let vector: Value = serde_json::from_str(vector).unwrap();
        request["id"] = vector["id"].clone();
        assert_eq!(request, vector);
    };
    let (mut peer, reader, writer) = Peer::new();
    let opened = casemate_mcp::Conversation::open(reader, writer, as_in_the_example);
    let serve = async {
        let request = peer.expect("initialize").await;
        let unsupported: Value = serde_json::from_str(UNSUPPORTED).unwrap();
        let refusal = json!({"jsonrpc": "2.0", "id": request["id"], "error": unsupported["error"]});
        peer.say(refusal.to_string()).await;
        let request = peer.expect("server/discover").await;
        like(request.clone(), DISCOVER);
        let discovered: Value = serde_json::from_str(DISCOVERED).unwrap();
        peer.answer(&request, discovered["result"].clone()).await;
    };
    let (conversation, ()) = tokio::join!(opened, serve);
    let conversation = conversation.unwrap();
    assert_eq!(conversation.server_info().unwrap().name, "ExampleServer");

    let given = params(json!({"name": "get_weather", "arguments": {"location": "New York"}}));
    let called: Value = serde_json::from_str(CALLED).unwrap();
    let serve = async {
        let request = peer.expect("tools/call").await;
        like(request.clone(), CALL);
        peer.answer(&request, called["result"].clone()).await;
    };
    let (answer, ()) = tokio::join!(conversation.request("tools/call", Some(&given), LONG), serve);
    assert_eq!(result(answer), called["result"]);
}
