//! The task that moves a link's bytes.

use super::LinkDown;
use super::shared::{Output, Shared};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read from the link at once.
const READ_BYTES: usize = 64 << 10;

/// Turns of reading and writing before other tasks of the thread get theirs.
const TURNS: usize = 16;

/// Moves the bytes of a link until it ends; resolves to the reason, which every stream has then.
///
/// Dropping it ends the link.
#[must_use = "a link does nothing until its driver is polled"]
pub struct Driver<T> {
    io: T,
    shared: Arc<Shared>,
    input: Box<[u8]>,
    output: Vec<u8>,
    written: usize,
    unflushed: bool,
    /// Kept between turns for its allocation; empty whenever the lock is taken.
    wakes: Vec<Waker>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(io: T, shared: Arc<Shared>) -> Self {
        let input = vec![0; READ_BYTES].into_boxed_slice();
        Self { io, shared, input, output: Vec::new(), written: 0, unflushed: false, wakes: Vec::new() }
    }

    /// Writes what there is; true if that made progress.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkDown> {
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
            let taken = self.shared.lock().take_output(&mut self.output, cx, &mut self.wakes);
            self.wakes.drain(..).for_each(Waker::wake);
            match taken {
                Output::Taken => {}
                Output::Nothing => return self.poll_flush(cx),
                Output::End(down) => return Err(down),
            }
        }
        match Pin::new(&mut self.io).poll_write(cx, &self.output[self.written..]) {
            Poll::Ready(Ok(0)) => Err(failed(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => {
                self.written += written;
                self.unflushed = true;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(failed(error)),
            Poll::Pending => match self.shared.lock().watch(cx) {
                Some(down) => Err(down),
                None => Ok(false),
            },
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkDown> {
        if self.unflushed {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(failed(error)),
                Poll::Pending => {}
            }
        }
        Ok(false)
    }

    /// Reads what there is; true if that made progress.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkDown> {
        let mut buf = ReadBuf::new(&mut self.input);
        match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => Err(LinkDown::Closed),
            Poll::Ready(Ok(())) => {
                let received =
                    self.shared.lock().receive(buf.filled(), &self.shared.offered, &mut self.wakes);
                self.wakes.drain(..).for_each(Waker::wake);
                if received.map_err(LinkDown::Violation)? {
                    // Meant for the host before this one; the new output begins with a delimiter.
                    self.output.clear();
                    self.written = 0;
                }
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(failed(error)),
            Poll::Pending => Ok(false),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = LinkDown;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LinkDown> {
        let this = &mut *self;
        for _ in 0..TURNS {
            let moved = this.poll_output(cx).and_then(|wrote| Ok(this.poll_input(cx)? || wrote));
            match moved {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(down) => {
                    this.shared.end(down);
                    return Poll::Ready(this.shared.lock().end());
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.shared.end(LinkDown::GivenUp);
    }
}

fn failed(error: io::Error) -> LinkDown {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => LinkDown::Closed,
        _ => LinkDown::Io(Arc::new(error)),
    }
}
