//! The multiplexed link: many streams over one byte stream, see [`casemate_proto::mux`].
//!
//! ```text
//! MuxStream ─┐                    ┌─ poll_write: into the output, one quantum a round
//! MuxStream ─┼─ Shared (a lock) ──┤
//! MuxHandle ─┘        │           └─ poll_read: out of the stream's inbox, granting credit
//!                  Driver ══ io     one task: reads always, takes the output whenever the last is written
//! ```
//!
//! - **Memory** is bounded: an inbox by the window, the output by one quantum of each stream and the answers
//!   that the state machine bounds itself.
//! - **Fairness.** Each time that the driver takes the output a round begins, and in one round no stream
//!   writes more than a quantum. A stream that could write and does not, delays nobody.
//! - **A reader that stops** uses up its own window and stops its own writer.
//! - **The end** comes with a reason ([`LinkDown`]) that every stream, `open` and `accept` reports.

mod driver;
mod shared;
mod stream;

pub use driver::Driver;
pub(crate) use stream::{MuxOffer, MuxStream};

use crate::connector::ConnectError;
use crate::listener::Incoming;
use crate::stream::Stream;
use casemate_proto::mux::{Nonce, ResetCode, Role, Violation};
use shared::Shared;
use std::fmt;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// Why a link is over.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkDown {
    /// The other side of the byte stream went away.
    #[error("other side closed the link")]
    Closed,
    /// This side was told to end it, or has neither handle nor stream left.
    #[error("link was given up on this side")]
    GivenUp,
    /// The byte stream failed.
    #[error("link failed")]
    Io(#[source] Arc<io::Error>),
    /// The guest broke the multiplexer's rules.
    #[error("guest broke the rules of the link")]
    Violation(#[source] Violation),
}

/// Why a stream is over; inside the [`io::Error`] of a read or write, of kind `ConnectionReset`, or
/// `ConnectionAborted` where the whole link is down.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamLost {
    /// The other side ended it.
    #[error("other side reset the stream ({code:?}): {reason}")]
    Reset {
        /// Why, for programs.
        code: ResetCode,
        /// Why, for people; foreign text without control characters.
        reason: String,
    },
    /// Another host attached to this guest; what the last one had opened is gone.
    #[error("another host attached to the link")]
    Resynced,
    /// The link is over.
    #[error("link is down")]
    LinkDown(#[source] LinkDown),
}

impl From<StreamLost> for io::Error {
    fn from(lost: StreamLost) -> Self {
        let kind = match lost {
            StreamLost::Reset { .. } | StreamLost::Resynced => io::ErrorKind::ConnectionReset,
            StreamLost::LinkDown(_) => io::ErrorKind::ConnectionAborted,
        };
        io::Error::new(kind, lost)
    }
}

/// Attaches as the host: everything that the guest sent before it answers this nonce is discarded.
///
/// The nonce has to be random and new. Nothing happens until the driver is polled: spawn it.
pub fn attach_host<T: AsyncRead + AsyncWrite + Unpin>(io: T, nonce: Nonce) -> (MuxHandle, Driver<T>) {
    attach(io, Role::Host { nonce })
}

/// Waits for hosts on a guest's device.
///
/// A device that reports end of file while no host is connected (as a virtio serial port does) has to be
/// wrapped so that it waits instead: for the driver, end of file is the end.
pub fn attach_guest<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> (MuxHandle, Driver<T>) {
    attach(io, Role::Guest)
}

fn attach<T: AsyncRead + AsyncWrite + Unpin>(io: T, role: Role) -> (MuxHandle, Driver<T>) {
    let shared = Arc::new(Shared::new(role));
    (MuxHandle { shared: Arc::clone(&shared) }, Driver::new(io, shared))
}

/// A multiplexed link. Clones are the same link; it is given up when the last handle and the last stream
/// are gone.
pub struct MuxHandle {
    shared: Arc<Shared>,
}

impl MuxHandle {
    /// Opens a stream to a port of the other side, as soon as the link is synchronised, and waits for its
    /// answer without a bound ([`Connector::connect`](crate::Connector::connect) has one).
    ///
    /// Cancellation safe: a stream that was half open is reset.
    pub async fn open(&self, port: u32) -> Result<Stream, ConnectError> {
        self.synced().await.map_err(ConnectError::LinkDown)?;
        MuxStream::open(&self.shared, port).await.map(Stream::from_mux)
    }

    /// The next stream that the other side opens. Cancellation safe.
    ///
    /// While it is not called, the other side's `open` waits.
    pub async fn accept(&self) -> Result<Incoming, LinkDown> {
        let (port, generation, offer) = MuxOffer::next(&self.shared).await?;
        Ok(Incoming::mux(port, generation, offer))
    }

    /// Waits until host and guest have found each other. Cancellation safe.
    pub async fn synced(&self) -> Result<(), LinkDown> {
        let waiting = self.resyncs().wait_for(|&generation| generation > 0).await.is_ok();
        if waiting { Ok(()) } else { Err(self.shared.lock().end()) }
    }

    /// How many times the link was synchronised: on a guest, how many hosts have attached.
    pub fn generation(&self) -> u64 {
        self.shared.lock().generation()
    }

    /// Follows [`MuxHandle::generation`]; `changed()` fails once the link is down.
    pub fn resyncs(&self) -> watch::Receiver<u64> {
        self.shared.lock().subscribe()
    }

    /// Why the link is over, if it is.
    pub fn down(&self) -> Option<LinkDown> {
        self.shared.lock().down().cloned()
    }

    /// Ends the link now: streams fail, and the driver drops the byte stream. Output that was not written
    /// yet is lost.
    pub fn give_up(&self) {
        self.shared.end(LinkDown::GivenUp);
    }
}

impl Clone for MuxHandle {
    fn clone(&self) -> Self {
        self.shared.lock().add_handle();
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for MuxHandle {
    fn drop(&mut self) {
        self.shared.drop_handle();
    }
}

impl fmt::Debug for MuxHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("MuxHandle")
            .field("generation", &state.generation())
            .field("down", &state.down())
            .finish_non_exhaustive()
    }
}
