//! One stream of a link, whatever the link is made of.

use crate::mux::MuxStream;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// One bidirectional byte stream of a link.
///
/// `shutdown()` says that no more data will be written and leaves the other direction open. Dropping the
/// stream ends both directions; bytes that were written before a `shutdown()` still arrive.
///
/// Reads and writes are cancellation safe as those of a socket are: a future that is dropped before it is
/// ready has moved no byte (`read`, `write`), or an unknown number (`write_all`, `read_exact`).
#[derive(Debug)]
pub struct Stream(Inner);

#[derive(Debug)]
enum Inner {
    Mux(MuxStream),
    Unix(UnixStream),
    #[cfg(feature = "vsock")]
    Vsock(tokio_vsock::VsockStream),
}

impl Stream {
    /// A stream that is a Unix socket connection.
    pub fn from_unix(stream: UnixStream) -> Self {
        Self(Inner::Unix(stream))
    }

    /// A stream that is a vsock connection.
    #[cfg(feature = "vsock")]
    pub fn from_vsock(stream: tokio_vsock::VsockStream) -> Self {
        Self(Inner::Vsock(stream))
    }

    pub(crate) fn from_mux(stream: MuxStream) -> Self {
        Self(Inner::Mux(stream))
    }
}

/// Calls one poll function on whatever the stream is.
macro_rules! forward {
    ($self:ident, $trait:ident :: $method:ident ( $($argument:expr),* )) => {
        match &mut $self.get_mut().0 {
            Inner::Mux(stream) => $trait::$method(Pin::new(stream), $($argument),*),
            Inner::Unix(stream) => $trait::$method(Pin::new(stream), $($argument),*),
            #[cfg(feature = "vsock")]
            Inner::Vsock(stream) => $trait::$method(Pin::new(stream), $($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, AsyncRead::poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    /// An empty write moves nothing, and fails where nobody could read what is written.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        #[cfg(feature = "vsock")]
        if let (Inner::Vsock(stream), []) = (&mut self.0, bytes) {
            // Not after waiting for room: a peer that is gone makes none, and `poll` does not tell of it.
            return Poll::Ready(io::Write::write(stream, bytes));
        }
        forward!(self, AsyncWrite::poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, AsyncWrite::poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, AsyncWrite::poll_shutdown(cx))
    }
}
