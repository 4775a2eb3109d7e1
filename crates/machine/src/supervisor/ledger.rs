//! Which requests of a client's conversation are open: a machine with one is not idle.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashSet;

/// More than this are not told apart: the machine is in use until the conversation ends.
const MOST: usize = 1024;

/// Open requests, by the side that asked and their raw ids.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    open: HashSet<(Side, String)>,
    /// Some were not counted.
    overflown: bool,
}

/// Who said a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What of a message counts.
#[derive(Deserialize)]
struct Outline<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

impl Ledger {
    /// Counts a line; what is no message counts nothing.
    pub(super) fn note(&mut self, side: Side, line: &[u8]) {
        let Ok(message) = serde_json::from_slice::<Outline<'_>>(line) else { return };
        match (message.id, message.method) {
            (Some(id), Some(_)) if self.open.len() < MOST => {
                self.open.insert((side, id.get().to_owned()));
            }
            (Some(_), Some(_)) => self.overflown = true,
            (Some(id), None) => {
                self.open.remove(&(side.other(), id.get().to_owned()));
            }
            // A cancelled request need not be answered.
            (None, Some(method)) if method.get() == r#""notifications/cancelled""# => {
                #[derive(Deserialize)]
                #[serde(rename_all = "camelCase")]
                struct Cancelled<'a> {
                    #[serde(borrow)]
                    request_id: &'a RawValue,
                }
                let params = message
                    .params
                    .and_then(|params| serde_json::from_str::<Cancelled<'_>>(params.get()).ok());
                if let Some(cancelled) = params {
                    self.open.remove(&(side, cancelled.request_id.get().to_owned()));
                }
            }
            _ => {}
        }
    }

    /// Whether a request is open.
    pub(super) fn is_open(&self) -> bool {
        self.overflown || !self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_open_until_the_other_side_answers_or_its_own_cancels() {
        let mut ledger = Ledger::default();
        ledger.note(Side::Client, br#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#);
        ledger.note(Side::Server, br#"{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage"}"#);
        ledger.note(Side::Client, br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        ledger.note(Side::Client, b"nonsense");
        ledger.note(Side::Server, br#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
        assert!(ledger.is_open());
        ledger.note(Side::Client, br#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
        assert!(!ledger.is_open());
        ledger.note(Side::Client, br#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{}}"#);
        let cancelled = br#"{"method":"notifications/cancelled","params":{"requestId":"a","reason":"x"}}"#;
        ledger.note(Side::Client, cancelled);
        assert!(!ledger.is_open());
    }
}
