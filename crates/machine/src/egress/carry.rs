//! Carries the bytes of one connection, within its bounds.

use super::budget::Bounds;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep},
};

/// What is moved at once; several hundred connections are possible on a host.
const BUFFER_BYTES: usize = 16 << 10;

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// Why, where its two ends did not end it.
    pub(super) reason: Option<String>,
    /// Bytes from the guest.
    pub(super) sent: u64,
    /// Bytes to the guest.
    pub(super) received: u64,
}

/// Carries both ways until both ends have ended, or a bound is reached. `first` was read from the guest
/// already.
pub(super) async fn carry(
    mut guest: impl AsyncRead + AsyncWrite + Unpin,
    outside: TcpStream,
    first: &[u8],
    bounds: &Bounds,
) -> Ended {
    let meter = Arc::new(Meter { sent: AtomicU64::new(0), received: AtomicU64::new(0), limit: bounds.bytes });
    let mut outside = Metered { io: outside, meter: Arc::clone(&meter) };
    let copying = async {
        outside.write_all(first).await?;
        tokio::io::copy_bidirectional_with_sizes(&mut guest, &mut outside, BUFFER_BYTES, BUFFER_BYTES).await
    };
    let reason = tokio::select! {
        copied = copying => copied.err().map(|error| error.to_string()),
        () = idle(&meter, bounds.idle) => Some(format!("nothing passed for {} s", bounds.idle.as_secs())),
    };
    Ended { reason, sent: meter.sent.load(Relaxed), received: meter.received.load(Relaxed) }
}

/// Resolves when nothing has passed for so long.
async fn idle(meter: &Meter, patience: Duration) {
    let (mut seen, mut since) = (meter.total(), Instant::now());
    while since.elapsed() < patience {
        sleep(patience / 4).await;
        let now = meter.total();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

#[derive(Debug)]
struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
    limit: u64,
}

impl Meter {
    fn total(&self) -> u64 {
        self.sent.load(Relaxed).saturating_add(self.received.load(Relaxed))
    }

    fn check(&self) -> io::Result<()> {
        if self.total() < self.limit {
            return Ok(());
        }
        Err(io::Error::other(format!("more than {} bytes passed", self.limit)))
    }
}

/// A connection whose bytes are counted, and which fails beyond its bound.
struct Metered {
    io: TcpStream,
    meter: Arc<Meter>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.meter.check()?;
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.meter.received.fetch_add((buf.filled().len() - before) as u64, Relaxed);
        polled
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.meter.check()?;
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.meter.sent.fetch_add(*written as u64, Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
