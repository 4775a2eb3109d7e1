//! Why a session is over, in words for those who still wait.

use crate::backend::OpenError;
use casemate_machine::ConversationEnd;
use casemate_proto::control::Exit;
use serde_json::{Value, json};
use std::time::Duration;

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// Its client said so.
    Deleted,
    /// Nothing was said for too long.
    Idle,
    /// The gateway ends.
    Shutdown,
    /// Its client left before `initialize` was answered, or the answer was a refusal.
    Abandoned,
    /// There was no machine for it.
    NotOpened(OpenError),
    /// The server did not answer `initialize` in that time.
    Silent(Duration),
    /// The server said something that cannot be followed.
    Unreadable(String),
    /// The server broke off; for what reason, if that is known.
    Ended(Option<ConversationEnd>),
}

impl Over {
    /// The reason as a clause.
    pub fn sentence(&self) -> String {
        match self {
            Self::Deleted => "the session was ended".to_owned(),
            Self::Idle => "the session was idle for too long".to_owned(),
            Self::Shutdown => "the gateway is ending".to_owned(),
            Self::Abandoned => "the session did not begin".to_owned(),
            Self::NotOpened(error) => format!("the server could not be started: {error}"),
            Self::Silent(time) => {
                format!("the server did not answer initialize within {} s", time.as_secs())
            }
            Self::Unreadable(reason) => format!("the conversation with the server was broken off: {reason}"),
            Self::Ended(Some(ConversationEnd::Broken(reason))) => {
                format!("the conversation with the server was broken off: {reason}")
            }
            Self::Ended(Some(ConversationEnd::MachineEnded(reason))) => {
                format!("the server's machine ended: {reason}")
            }
            Self::Ended(Some(ConversationEnd::ServerExited(exit))) => {
                format!("the server ended {}", how(exit))
            }
            Self::Ended(None) => "the server broke off".to_owned(),
        }
    }

    /// What programs want to know of a server that ended.
    pub fn data(&self) -> Option<Value> {
        let Self::Ended(Some(ConversationEnd::ServerExited(exit))) = self else { return None };
        Some(json!({ "exitCode": exit.code, "signal": exit.signal, "stderr": exit.stderr_tail }))
    }
}

fn how(exit: &Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}
