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
}

impl Stream {
    /// A stream that is a Unix socket connection.
    pub fn from_unix(stream: UnixStream) -> Self {
        Self(Inner::Unix(stream))
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
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, AsyncRead::poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, AsyncWrite::poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, AsyncWrite::poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, AsyncWrite::poll_shutdown(cx))
    }
}
