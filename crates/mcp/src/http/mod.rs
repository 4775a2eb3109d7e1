//! A client's side of Streamable HTTP: a server that listens is spoken with as if it had a stdin and a stdout.
//!
//! ```text
//!            ┌── lead ──> ask: POST, its answer as JSON or as a stream ──┐
//! client ────┤            tell: POST, accepted or not                    ├──> client
//!  (lines)   └── initialized ──> listen: GET, what the server says by itself (lines)
//! ```
//!
//! * Every message of the client is a POST of its own. Requests run at once; notifications and responses wait
//!   for each other, so that none overtakes another.
//! * Legacy (2025-03-26 to 2025-11-25): a session may be given with `initialize`, is named in each request and
//!   ended with DELETE; streams that break are resumed where the server numbers its events; a cancellation is
//!   a message.
//! * Modern (2026-07-28): each request stands for itself; headers repeat what it is about; to close its stream
//!   is to cancel it.
//! * A valid message passes as it was written. An answer is taken from the request's own POST alone, so no
//!   server can answer one client's question with another's.
//!
//! What the connections are made of, the caller says ([`Reach`]). Everything here lives in one thread.

mod answer;
mod bridge;
mod connections;
mod exchange;
mod headers;
mod listen;
mod params;
mod room;
mod schemas;
pub mod sse;

pub use bridge::{End, bridge};
pub use exchange::Lost;
pub use headers::stated_version;

use std::io;

use hyper::Uri;
use tokio::io::{AsyncRead, AsyncWrite};

/// Where the endpoint is unless something else is said.
pub const DEFAULT_PATH: &str = "/mcp";

/// The longest path of an endpoint, in bytes.
const PATH_BYTES: usize = 1024;

/// How a server that listens is reached, and what its host is to know of the conversation.
pub trait Reach: 'static {
    /// A connection to the server's port.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;
    /// Something is on its way until this is dropped.
    type Busy: 'static;

    /// Opens a connection. An error of kind [`io::ErrorKind::ResourceBusy`] fails one request, any other ends
    /// the conversation. May be cancelled.
    fn connect(&self, purpose: Purpose) -> impl Future<Output = io::Result<Self::Stream>>;

    /// A message is on its way.
    fn busy(&self) -> Self::Busy;

    /// Whether the server has ended; asked where it broke off, and may take a moment to find out.
    fn is_over(&self) -> impl Future<Output = bool>;

    /// Takes a sentence for the server's log.
    fn note(&self, sentence: &str);
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A message of the client.
    Message,
    /// To hear what the server says by itself: no reason to wake it.
    Listen,
}

/// Where a server's endpoint is.
#[derive(Debug, Clone)]
pub struct Endpoint {
    port: u16,
    path: Uri,
}

/// A text is no path of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no path: it begins with '/' and has neither spaces nor '#'")]
pub struct InvalidPath(pub String);

impl Endpoint {
    /// The endpoint at `path`, such as [`DEFAULT_PATH`], of a server that listens on `port`.
    pub fn new(port: u16, path: &str) -> Result<Self, InvalidPath> {
        let is_path = path.starts_with('/') && path.len() <= PATH_BYTES && !path.contains('#');
        let uri = is_path.then(|| path.parse().ok()).flatten();
        uri.map(|path| Self { port, path }).ok_or_else(|| InvalidPath(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_that_begins_with_a_slash() {
        for right in ["/mcp", "/", "/a/b?c=d", "/%20"] {
            assert_eq!(Endpoint::new(1, right).unwrap().path.to_string(), right);
        }
        let long = format!("/{}", "x".repeat(PATH_BYTES));
        for wrong in ["", "mcp", "http://evil.example/", "/a b", "/a\r\nEvil: 1", "/a#b", &long] {
            assert!(Endpoint::new(1, wrong).is_err(), "{wrong:?}");
        }
    }
}
