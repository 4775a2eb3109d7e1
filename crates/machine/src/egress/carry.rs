//! Carries the bytes of one connection, within its bounds.

use super::{budget::Bounds, hello::HelloError};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep},
};

/// What is moved at once; several hundred connections are possible on a host.
const BUFFER_BYTES: usize = 16 << 10;

/// Carries both ways until both ends have ended, or a bound is reached; says why, where the two ends did not end
/// it. `first` was read from the guest already. Fails where the guest turns out to want another server.
pub(super) async fn carry(
    mut guest: impl AsyncRead + AsyncWrite + Unpin,
    mut outside: Metered,
    first: &[u8],
    bounds: &Bounds,
) -> Result<Option<String>, HelloError> {
    let meter = Arc::clone(&outside.meter);
    let copying = async {
        outside.write_all(first).await?;
        tokio::io::copy_bidirectional_with_sizes(&mut guest, &mut outside, BUFFER_BYTES, BUFFER_BYTES).await
    };
    let broken = tokio::select! {
        copied = copying => copied.err(),
        reason = idle(&meter, bounds) => return Ok(Some(reason)),
    };
    match broken.map(|error| (error.to_string(), error.downcast::<HelloError>())) {
        Some((_, Ok(other))) => Err(other),
        Some((reason, Err(_))) => Ok(Some(reason)),
        None => Ok(None),
    }
}

/// Resolves when nothing has passed for so long, and says so.
pub(super) async fn idle(meter: &Meter, bounds: &Bounds) -> String {
    let look = bounds.idle.min(bounds.idle_after_end) / 4;
    let (mut seen, mut since) = (meter.total(), Instant::now());
    let patience = loop {
        let patience =
            if meter.at_end.load(Relaxed) { bounds.idle.min(bounds.idle_after_end) } else { bounds.idle };
        if since.elapsed() >= patience {
            break patience;
        }
        sleep(look).await;
        let now = meter.total();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    };
    format!("nothing passed for {} s", patience.as_secs())
}

/// Counts the bytes of one connection, up to a limit.
#[derive(Debug)]
pub(super) struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
    /// The guest says no more.
    at_end: AtomicBool,
    limit: u64,
}

impl Meter {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            at_end: AtomicBool::new(false),
            limit,
        })
    }

    /// Bytes from the guest, and to it.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Relaxed), self.received.load(Relaxed))
    }

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
#[derive(Debug)]
pub(super) struct Metered {
    io: TcpStream,
    meter: Arc<Meter>,
}

impl Metered {
    pub(super) fn new(io: TcpStream, meter: Arc<Meter>) -> Self {
        Self { io, meter }
    }

    /// Counts its bytes.
    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
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
        self.meter.at_end.store(true, Relaxed);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
