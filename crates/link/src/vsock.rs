//! The guest's end of a multiplexed link whose device is a vsock.
//!
//! Streams are not vsock connections of their own, because the devices in use do not carry them whole:
//! Firecracker's and `vhost-device-vsock` turn a half-close into a close of both directions, and the latter
//! stops for good when both directions are full at once. A multiplexer reads always and has its own ends.
//!
//! The guest calls and the host listens: a host that calls a guest which has not booted yet has
//! `vhost-device-vsock` run in circles, and one that gives up meanwhile ends it.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

/// After a call that nobody took, or that ended, before the next.
const PAUSE: Duration = Duration::from_millis(100);

/// A byte stream that never ends, made of one connection to the host after the other.
///
/// While there is none, reads and writes wait. The multiplexer's synchronisation tells one host's bytes from
/// the next one's.
pub struct VsockPort {
    port: u32,
    state: State,
}

enum State {
    Calling(Pin<Box<dyn Future<Output = io::Result<VsockStream>> + Send>>),
    Connected(VsockStream),
}

impl VsockPort {
    /// Calls the host on a port, from now on until it is dropped.
    pub fn call(port: u32) -> Self {
        Self { port, state: call(port, Duration::ZERO) }
    }

    /// The host hung up, or did not take the call.
    fn call_again(&mut self) {
        self.state = call(self.port, PAUSE);
    }
}

fn call(port: u32, after: Duration) -> State {
    State::Calling(Box::pin(async move {
        tokio::time::sleep(after).await;
        VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await
    }))
}

impl AsyncRead for VsockPort {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Calling(calling) => match ready!(calling.as_mut().poll(cx)) {
                    Ok(host) => self.state = State::Connected(host),
                    Err(_) => self.call_again(),
                },
                State::Connected(host) => {
                    let before = buf.filled().len();
                    match ready!(Pin::new(host).poll_read(cx, buf)) {
                        Ok(()) if buf.filled().len() > before => return Poll::Ready(Ok(())),
                        _ => self.call_again(),
                    }
                }
            }
        }
    }
}

impl AsyncWrite for VsockPort {
    /// Waits while there is no host. It is the reader that finds one; nothing is to be written before the
    /// host has said something.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let State::Connected(host) = &mut self.state else { return Poll::Pending };
        match ready!(Pin::new(host).poll_write(cx, bytes)) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(_) => {
                self.call_again();
                // The new call is the reader's to wait for.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for VsockPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = matches!(self.state, State::Connected(_));
        f.debug_struct("VsockPort").field("port", &self.port).field("connected", &connected).finish()
    }
}
