//! The seam between sessions and what runs their servers.

use casemate_machine::{ConversationEnd, Leased};
use casemate_proto::port;
use std::{error::Error, fmt::Write as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

/// Starts servers.
pub trait Backend: 'static {
    /// What a server runs in.
    type Machine: Machine;

    /// Whether a server of that name is defined.
    fn knows(&self, server: &str) -> bool;

    /// Starts a server for one session. Never cancelled: whoever asked may be gone when it is there, and it is
    /// then stopped.
    fn open(&self, server: &str) -> impl Future<Output = Result<Self::Machine, OpenError>>;

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
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

impl Machine for Leased {
    type Stream = UnixStream;

    async fn connect(&mut self) -> Result<UnixStream, OpenError> {
        let connected = Self::connect(self, port::CONVERSATION).await;
        connected.map_err(|error| OpenError::Failed(chain(&error)))
    }

    async fn end(&mut self) -> Option<ConversationEnd> {
        self.conversation_end().await
    }

    async fn stop(self) {
        let _ = Self::stop(self).await;
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        // Writing to a string does not fail.
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}
