//! A line from a client or a server: what passes is what it was, and what it says can be read again.
#![no_main]

use casemate_mcp::multiplex::{FromServer, Limits, Multiplexer, ToServer};
use casemate_mcp::{Envelope, Id, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::parse(bytes) else { return };
    assert_eq!(message.text().as_bytes(), bytes);
    if let Some(raw) = message.raw_id() {
        let id = Id::parse(raw).expect("a message has a valid id");
        match message.envelope() {
            Envelope::Request { id: read, .. } | Envelope::Response { id: read, .. } => assert_eq!(*read, id),
            Envelope::Error { id: read, .. } => assert_eq!(read, Some(&id)),
            Envelope::Notification { .. } => panic!("a notification with an id"),
        }
    }
    match message.envelope() {
        Envelope::Request { params: Some(body), .. }
        | Envelope::Notification { params: Some(body), .. }
        | Envelope::Response { result: body, .. }
        | Envelope::Error { error: body, .. } => {
            serde_json::from_str::<&serde_json::value::RawValue>(body).expect("a part of JSON is JSON");
        }
        Envelope::Request { params: None, .. } | Envelope::Notification { params: None, .. } => {}
    }

    let mut multiplexer = Multiplexer::new(Limits::default());
    if let Ok(ToServer::Request { wire, text }) = multiplexer.send('a', &message) {
        let sent = Message::parse(text).expect("a request with another id is a request");
        assert_eq!(sent.raw_id(), Some(&*wire.to_string()));
        let answer = format!(r#"{{"jsonrpc":"2.0","id":{wire},"result":{{}}}}"#);
        let answer = Message::parse(answer).expect("an answer");
        let FromServer::Answer(delivery) = multiplexer.receive(answer) else { panic!("no answer") };
        let answer = Message::parse(delivery.text()).expect("an answer with another id is an answer");
        assert_eq!(answer.raw_id(), message.raw_id());
    }
    let received = multiplexer.receive(message);
    assert!(!matches!(received, FromServer::Answer(_) | FromServer::Notice(_) | FromServer::Ended(_)));
});
