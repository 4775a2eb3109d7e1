//! What a supervisor and the command that started it say to each other, one JSON document a line.
//!
//! The connection is the lease: at its end a leased machine stops, and so does one that is not ready yet.

use crate::{
    record::{Record, State},
    secret::Secrets,
    spec::Spec,
    template::Contents,
};
use casemate_proto::control::Exit;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The first line, from the command.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The home folder.
    pub home: PathBuf,
    /// What to make.
    pub spec: Spec,
    /// What was written down.
    pub record: Record,
    /// What is written down nowhere.
    pub secrets: Secrets,
}

/// What made a machine fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Culprit {
    /// The guest: it did not get up to its agent, though its VMM was started, or its VMM ended.
    Guest,
    /// The server: it ended, or did not answer.
    Server,
    /// This host: a disk is full, or a volume is somebody else's.
    Host,
    /// Something else, such as a template of no use; or nothing.
    Other,
}

/// Every other line, from the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report {
    /// The machine came to its next phase.
    Phase {
        /// Which.
        state: State,
    },
    /// It can be used.
    Ready {
        /// The record, brought up to date.
        record: Box<Record>,
    },
    /// The server ended; where a client speaks with it, that client's conversation ends too.
    ServerExited {
        /// How.
        exit: Exit,
    },
    /// The supervisor broke off a client's conversation.
    ConversationBroken {
        /// Why.
        reason: String,
    },
    /// The machine is over.
    Ended {
        /// `stopped` or `failed`.
        state: State,
        /// Why.
        reason: String,
        /// What the user may do.
        hint: Option<String>,
        /// What failed, if anything did.
        culprit: Culprit,
        /// What became of the template that the machine was to become.
        built: Option<Built>,
    },
}

/// What a builder leaves.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Built {
    /// A template, still to be published.
    Made(Contents),
    /// None, for a reason that will be the same next time.
    Refused {
        /// Why.
        reason: String,
    },
    /// None, though there could be one: it could not be written.
    Unwritten {
        /// Why.
        reason: String,
    },
}
