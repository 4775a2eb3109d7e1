//! Owners and a server that say anything in any order: an answer, and what belongs to a request, reaches
//! the one that asked, while it asks, and an answer does so once.
#![no_main]

use std::collections::HashMap;

use casemate_mcp::multiplex::{FromServer, Limits, Multiplexer, ToServer};
use casemate_mcp::{Envelope, Message};
use libfuzzer_sys::fuzz_target;

/// What happens; numbers pick among what there is by then.
#[derive(Debug, arbitrary::Arbitrary)]
enum Step<'a> {
    Ask { owner: u8, id: u8, kind: u8, token: bool },
    Cancel { owner: u8, id: u8 },
    Leave { owner: u8 },
    Abandon { wire: u8 },
    Answer { wire: u8 },
    Notice { wire: u8, kind: u8 },
    OwnerSays { owner: u8, text: &'a str },
    ServerSays { text: &'a str },
}

const LIMITS: Limits = Limits { open: 8, open_per_owner: 3 };

fn message(text: String) -> Message {
    Message::parse(text).expect("a message of this program's own")
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let mut multiplexer = Multiplexer::new(LIMITS);
    // The open requests: who asked, and under which name.
    let mut open: HashMap<u64, (u8, String)> = HashMap::new();
    let mut last = 0;
    for step in steps {
        let received = match step {
            Step::Ask { owner, id, kind, token } => {
                let method = ["initialize", "subscriptions/listen", "x"][usize::from(kind) % 3];
                let meta = if token { r#"{"progressToken":"t"}"# } else { "{}" };
                let params = format!(r#"{{"_meta":{meta}}}"#);
                let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#);
                owner_says(&mut multiplexer, &mut open, &mut last, owner, &message(text));
                continue;
            }
            Step::Cancel { owner, id } => {
                let params = format!(r#"{{"requestId":{id}}}"#);
                let method = "notifications/cancelled";
                let text = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#);
                owner_says(&mut multiplexer, &mut open, &mut last, owner, &message(text));
                continue;
            }
            Step::OwnerSays { owner, text } => {
                let Ok(message) = Message::parse(text) else { continue };
                owner_says(&mut multiplexer, &mut open, &mut last, owner, &message);
                continue;
            }
            Step::Leave { owner } => {
                multiplexer.leave(owner);
                open.retain(|_, (asked, _)| *asked != owner);
                assert_eq!(multiplexer.open(), open.len());
                continue;
            }
            Step::Abandon { wire } => {
                multiplexer.abandon(wire.into());
                open.remove(&u64::from(wire));
                assert_eq!(multiplexer.open(), open.len());
                continue;
            }
            Step::Answer { wire } => {
                let meta = format!(r#"{{"io.modelcontextprotocol/subscriptionId":{wire}}}"#);
                let result = format!(r#"{{"_meta":{meta}}}"#);
                message(format!(r#"{{"jsonrpc":"2.0","id":{wire},"result":{result}}}"#))
            }
            Step::Notice { wire, kind } => {
                let meta = format!(r#"{{"io.modelcontextprotocol/subscriptionId":{wire}}}"#);
                let (method, params) = match kind % 3 {
                    0 => ("notifications/progress", format!(r#"{{"progressToken":{wire}}}"#)),
                    1 => ("notifications/cancelled", format!(r#"{{"requestId":{wire}}}"#)),
                    _ => ("notifications/x", format!(r#"{{"_meta":{meta}}}"#)),
                };
                message(format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#))
            }
            Step::ServerSays { text } => {
                let Ok(message) = Message::parse(text) else { continue };
                message
            }
        };
        match multiplexer.receive(received) {
            FromServer::Answer(delivery) => {
                let wire = match delivery.message.envelope() {
                    Envelope::Response { id, .. } => id.as_u64(),
                    Envelope::Error { id, .. } => id.and_then(|id| id.as_u64()),
                    Envelope::Request { .. } | Envelope::Notification { .. } => None,
                };
                let asked = wire.and_then(|wire| open.remove(&wire)).expect("an answer to an open request");
                let text = message(delivery.text());
                assert_eq!((delivery.owner, text.raw_id()), (asked.0, Some(&*asked.1)));
            }
            FromServer::Notice(delivery) => {
                assert!(open.values().any(|(owner, _)| *owner == delivery.owner));
                message(delivery.text());
            }
            FromServer::Ended(delivery) => {
                message(delivery.text());
                let before = open.len();
                let wire = ended(&delivery.message).expect("a cancellation names a request");
                assert!(open.remove(&wire).is_some_and(|(owner, _)| owner == delivery.owner));
                assert_eq!(open.len() + 1, before);
            }
            FromServer::Reply(text) => drop(message(text)),
            FromServer::Shared(_) | FromServer::Dropped => {}
        }
        assert_eq!(multiplexer.open(), open.len());
    }
});

fn owner_says(
    multiplexer: &mut Multiplexer<u8>,
    open: &mut HashMap<u64, (u8, String)>,
    last: &mut u64,
    owner: u8,
    said: &Message,
) {
    match multiplexer.send(owner, said) {
        Ok(ToServer::Request { wire, text }) => {
            assert!(wire > *last, "an id was used again");
            *last = wire;
            assert_eq!(message(text).raw_id(), Some(&*wire.to_string()));
            open.insert(wire, (owner, said.raw_id().expect("a request has an id").to_owned()));
            assert!(open.len() <= LIMITS.open);
        }
        Ok(ToServer::Notification(text)) => {
            if let Some(wire) = ended(&message(text)) {
                assert!(
                    open.remove(&wire).is_some_and(|(asked, _)| asked == owner),
                    "another's was cancelled"
                );
            }
        }
        Ok(ToServer::Nothing) | Err(_) => {}
    }
    assert_eq!(multiplexer.open(), open.len());
}

/// Which request a cancellation names.
fn ended(message: &Message) -> Option<u64> {
    let Envelope::Notification { method: "notifications/cancelled", params } = message.envelope() else {
        return None;
    };
    let params: serde_json::Value = serde_json::from_str(params?).ok()?;
    params["requestId"].as_u64()
}
