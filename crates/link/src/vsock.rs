//! The guest's end of a multiplexed link whose device is a vsock.
//!
//! Streams are not vsock connections of their own, because the devices in use do not carry them whole:
//! Firecracker's and `vhost-device-vsock` turn a half-close into a close of both directions, and the latter
//! stops for good when both directions are full at once. A multiplexer reads always and has its own ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// A byte stream that never ends, made of the connection that the host made last.
///
/// While there is none, reads and writes wait. The multiplexer's synchronisation tells one host's bytes from
/// the next one's.
#[derive(Debug)]
pub struct VsockPort {
    listener: VsockListener,
    host: Option<VsockStream>,
}

impl VsockPort {
    /// Listens on a port.
    pub fn listen(port: u32) -> io::Result<Self> {
        Ok(Self { listener: VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?, host: None })
    }

    /// Goes over to the newest connection. Those from elsewhere than the host (a program inside the guest,
    /// over the loopback) are closed at once.
    fn poll_hosts(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(accepted) = self.listener.poll_accept(cx) {
            match accepted {
                Ok((stream, from)) if from.cid() == VMADDR_CID_HOST => self.host = Some(stream),
                Ok(_) => {}
                // One that was given up already, or descriptors ran out: the next look may succeed.
                Err(_) => return cx.waker().wake_by_ref(),
            }
        }
    }
}

impl AsyncRead for VsockPort {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_hosts(cx);
        let Some(host) = &mut self.host else { return Poll::Pending };
        let before = buf.filled().len();
        match Pin::new(host).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() > before => Poll::Ready(Ok(())),
            Poll::Ready(_) => {
                self.host = None;
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// The reader waits for hosts, so a writer without one need not.
impl AsyncWrite for VsockPort {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(host) = &mut self.host else { return Poll::Pending };
        match Pin::new(host).poll_write(cx, bytes) {
            Poll::Ready(Err(_)) => {
                self.host = None;
                Poll::Pending
            }
            written => written,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
