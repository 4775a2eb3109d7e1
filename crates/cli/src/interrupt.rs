//! Ctrl-C and its kin: the first signal cancels and cleans up, the second ends the process at once.

use crate::error::{Error, Kind};
use std::future::Future;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Runs work until it is done or a signal cancels it. What the work holds is released by being dropped (a
/// leased machine stops when its owner lets go); then `cleanup` waits until it is gone, and says what is left.
pub async fn guard<T>(
    work: impl Future<Output = Result<T, Error>>,
    cleanup: impl Future<Output = Option<String>>,
) -> Result<T, Error> {
    let listen =
        |kind| signal(kind).map_err(|error| Error::unavailable("cannot listen to signals").because(error));
    let mut signals = Signals {
        interrupt: listen(SignalKind::interrupt())?,
        terminate: listen(SignalKind::terminate())?,
        hangup: listen(SignalKind::hangup())?,
    };
    let first = {
        let work = std::pin::pin!(work);
        tokio::select! {
            result = work => return result,
            number = signals.next() => number,
        }
    };
    tokio::select! {
        left = cleanup => Err(Error::new(Kind::Interrupted(first), "interrupted").maybe_hint(left)),
        second = signals.next() => std::process::exit((128 + second).into()),
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// The number of the next signal.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}
