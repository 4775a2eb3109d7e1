//! The seam between sessions and what runs their servers.

use casemate_machine::ConversationEnd;
use tokio::io::{AsyncRead, AsyncWrite};

/// Starts servers.
pub trait Backend: 'static {
    /// What is needed to start a server.
    type Plan;
    /// What a server runs in.
    type Machine: Machine;

    /// Whether a server of that name is defined.
    fn knows(&self, server: &str) -> bool;

    /// Gets everything that a server needs for one session. That may take long, and holds up no other server.
    /// Cancelled only when the gateway ends.
    fn plan(&self, server: &str) -> impl Future<Output = Result<Self::Plan, OpenError>>;

    /// Starts a server, while few others start. Cancelled only when the gateway ends and that would take longer
    /// than it has time; whoever asked may be gone when the server is there, and it is then stopped.
    fn open(&self, plan: Self::Plan) -> impl Future<Output = Result<Self::Machine, OpenError>>;

    /// Takes a sentence for whoever runs the gateway.
    fn note(&self, sentence: &str);
}

/// One running server, which belongs to one session.
pub trait Machine: 'static {
    /// The conversation with the server: a line is a message.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;

    /// Opens the conversation; called once.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Stream, OpenError>>;

    /// Why the conversation ended, asked after it did: within about a second, or not at all.
    fn end(&mut self) -> impl Future<Output = Option<ConversationEnd>>;

    /// Ends the server and what it runs in. Nothing of it is left when this returns.
    fn stop(self) -> impl Future<Output = ()>;
}

/// Why there is no server for a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The host has no room now, and may have later.
    #[error("{0}")]
    NoRoom(String),
    /// It failed, as the backend has told whoever runs the gateway where it knows more than this.
    #[error("{0}")]
    Failed(String),
}
