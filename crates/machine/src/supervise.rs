//! The supervisor's own protocol: one more port on its socket, beside those of the machine.
//!
//! A program connects to the socket, asks for a port with the [handshake](casemate_link::handshake) and
//! gets a stream: to the machine for `CONNECT 5252`, to the supervisor itself for [`PORT`]. There it sends
//! one request a line, with the version it speaks, and reads one [`Answer`] a line, in turn.

use crate::record::Record;
use casemate_proto::control::{Exit, Pong, Stats};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The version of this protocol. A supervisor of another version can only be stopped.
pub const VERSION: u32 = 1;

/// The port of the supervisor itself.
pub const PORT: u32 = 5250;

/// The socket's name in the machine's folder.
pub const SOCKET: &str = "supervisor.sock";

/// The longest request or answer: an MCP message and what is around it.
pub(crate) const MESSAGE_BYTES: usize = casemate_proto::limits::MCP_MESSAGE_BYTES + (64 << 10);

/// One line to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// The asker's [`VERSION`].
    pub version: u32,
    /// A [`Request`]; read only where the version is this one, or for its `stop`.
    pub request: Box<RawValue>,
}

/// What a host program may ask.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The machine's record and, for programs that open control streams, its epoch.
    Status,
    /// An MCP request in the conversation that the supervisor holds.
    Mcp {
        /// Such as `tools/call`.
        method: String,
        /// Its parameters.
        params: Option<Box<RawValue>>,
        /// How long the server may take.
        timeout_ms: u64,
    },
    /// Does the agent answer, and does the server, where the supervisor holds its conversation?
    Ping,
    /// Memory, processor and counters, as the guest tells them.
    Stats,
    /// Ends the machine. The only request whose form never changes.
    Stop {
        /// Why, for the record.
        reason: String,
    },
    /// Stops its processors.
    Pause,
    /// Lets them go on.
    Resume,
    /// Ends it at once, as a crash would.
    Kill,
    /// Cuts the link between host and guest.
    CutLink,
}

/// What the supervisor answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `Status`.
    Status {
        /// The record.
        record: Box<Record>,
        /// To be named in `hello` on a control stream.
        epoch: String,
    },
    /// To `Mcp`: the server's result, as it sent it.
    Result {
        /// The `result` member.
        result: Box<RawValue>,
    },
    /// To `Mcp`: the server's error, as it sent it.
    Error {
        /// The `error` member.
        error: Box<RawValue>,
    },
    /// To `Ping`.
    Pong {
        /// The agent's answer.
        agent: Pong,
        /// How long the agent took, in microseconds.
        agent_us: u64,
        /// How long the server took, in microseconds, where it was asked.
        server_us: Option<u64>,
    },
    /// To `Stats`.
    Stats(Stats),
    /// To everything else, once it is done.
    Done,
    /// It could not be done.
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// Operation and cause, in words.
        message: String,
        /// How the server ended, if that is why.
        exit: Option<Exit>,
    },
}

/// Kinds of failure that a caller may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The supervisor holds no conversation: a client speaks with this server.
    NoConversation,
    /// The server ended.
    ServerGone,
    /// No answer in time.
    Timeout,
    /// The server broke the protocol.
    Protocol,
    /// The agent or the VMM failed.
    Machine,
    /// The machine is suspended, and there is no memory for it to go on.
    NoMemory,
    /// This machine cannot do that.
    Incapable,
    /// The request has another version or the wrong form.
    Request,
}
