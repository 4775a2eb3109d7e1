//! Streams as their users see them.

use super::shared::{Key, Shared, Unopened};
use super::{LinkDown, StreamLost};
use crate::connector::ConnectError;
use casemate_proto::mux::ResetCode;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One stream of a multiplexed link.
pub(crate) struct MuxStream {
    shared: Arc<Shared>,
    key: Key,
}

/// A stream that the other side has opened; refused when dropped.
pub(crate) struct MuxOffer {
    stream: MuxStream,
}

impl MuxStream {
    pub(super) async fn open(shared: &Arc<Shared>, port: u32) -> Result<Self, ConnectError> {
        let key = shared.change(|state| state.open(port)).map_err(|unopened| match unopened {
            Unopened::TooMany => ConnectError::TooMany,
            Unopened::NotSynced => ConnectError::Resynced { port },
            Unopened::Down(down) => ConnectError::LinkDown(down),
        })?;
        // From here on dropping it resets the half-open stream.
        let stream = Self { shared: Arc::clone(shared), key };
        poll_fn(|cx| stream.shared.lock().poll_opened(key, cx)).await.map_err(|lost| match lost {
            StreamLost::Reset { code, reason } => ConnectError::Refused { port, code, reason },
            StreamLost::Resynced => ConnectError::Resynced { port },
            StreamLost::LinkDown(down) => ConnectError::LinkDown(down),
        })?;
        Ok(stream)
    }
}

impl MuxOffer {
    /// The next offer with its port and the link's generation.
    pub(super) async fn next(shared: &Arc<Shared>) -> Result<(u32, u64, Self), LinkDown> {
        loop {
            let offered = shared.offered.notified();
            tokio::pin!(offered);
            // Before the look at the backlog, so that no offer falls between them.
            offered.as_mut().enable();
            {
                let mut state = shared.lock();
                if let Some(down) = state.down() {
                    return Err(down.clone());
                }
                if let Some((key, port)) = state.next_offer() {
                    let stream = MuxStream { shared: Arc::clone(shared), key };
                    return Ok((port, key.0, Self { stream }));
                }
            }
            offered.await;
        }
    }

    pub(crate) fn accept(self) -> MuxStream {
        self.stream.shared.change(|state| state.accept(self.stream.key));
        self.stream
    }

    pub(crate) fn refuse(self, code: ResetCode, reason: &str) {
        self.stream.shared.change(|state| state.reset(self.stream.key, code, reason));
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.shared.change(|state| state.poll_read(self.key, cx, buf)).map_err(io::Error::from)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.shared.change(|state| state.poll_write(self.key, cx, bytes)))?;
        Poll::Ready(written.ok_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }

    /// Does nothing: the driver writes whatever there is without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.change(|state| state.finish(self.key));
        Poll::Ready(Ok(()))
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.shared.change(|state| state.reset(self.key, ResetCode::Gone, "closed"));
    }
}

impl fmt::Debug for MuxStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MuxStream").field(&self.key).finish()
    }
}

impl fmt::Debug for MuxOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MuxOffer").field(&self.stream.key).finish()
    }
}
