//! Ctrl-C and its kin: the first signal cancels and cleans up, or begins the end of a command that drains; the
//! second ends the process at once.

use crate::error::{Error, Kind};
use std::{cell::Cell, future::Future};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

/// How a command that has clients of its own hears of the first signal, and is given time.
#[derive(Debug, Default)]
pub struct Drain {
    wanted: Cell<bool>,
    begun: Notify,
}

impl Drain {
    /// Resolves at the first signal. Once it was asked for, that signal cancels nothing: the command ends by
    /// itself, or by the second.
    pub fn asked(&self) -> impl Future<Output = ()> {
        self.wanted.set(true);
        self.begun.notified()
    }
}

/// Runs work until it is done or a signal cancels it. What the work holds is released by being dropped (a
/// leased machine stops when its owner lets go); then `cleanup` waits until it is gone, and says what is left.
pub async fn guard<T>(
    work: impl Future<Output = Result<T, Error>>,
    cleanup: impl Future<Output = Option<String>>,
    drain: &Drain,
) -> Result<T, Error> {
    let listen =
        |kind| signal(kind).map_err(|error| Error::unavailable("cannot listen to signals").because(error));
    let mut signals = Signals {
        interrupt: listen(SignalKind::interrupt())?,
        terminate: listen(SignalKind::terminate())?,
        hangup: listen(SignalKind::hangup())?,
    };
    let first = {
        let mut work = std::pin::pin!(work);
        let first = tokio::select! {
            result = &mut work => return result,
            number = signals.next() => number,
        };
        if drain.wanted.get() {
            drain.begun.notify_one();
            tokio::select! {
                result = work => return result,
                second = signals.next() => std::process::exit((128 + second).into()),
            }
        }
        first
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
