//! Bounds on what one machine may do with the outside.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Bounds of one machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections at once; fewer than the link lets a guest open, so that what is refused is told and logged.
    pub(super) streams: usize,
    /// Attempts a minute, refused ones too.
    pub(super) attempts: u32,
    /// Bytes of one connection, both ways together.
    pub(super) bytes: u64,
    /// How long nothing may pass on a connection.
    pub(super) idle: Duration,
    /// The same once the guest says no more: most that do so have gone, and few others wait long for an answer.
    pub(super) idle_after_end: Duration,
    /// Names looked up at once: each takes a thread.
    pub(super) lookups: usize,
    /// Where TLS is spoken, and its first message looked at.
    pub(super) tls_port: u16,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            streams: 32,
            attempts: 600,
            bytes: 4 << 30,
            idle: Duration::from_secs(300),
            idle_after_end: Duration::from_secs(30),
            lookups: 4,
            tls_port: 443,
        }
    }
}

/// How long attempts are counted together.
const WINDOW: Duration = Duration::from_secs(60);

/// Counts attempts, a minute at a time.
#[derive(Debug, Default)]
pub(super) struct Rate(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    attempts: u32,
}

/// Whether there may be another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may.
    Taken,
    /// There may not, and this is the first of this minute: worth a line in a log.
    FirstTooMany,
    /// There may not.
    TooMany,
}

impl Rate {
    /// Counts one more attempt.
    pub(super) fn take(&self, now: Instant, limit: u32) -> Turn {
        let mut window = lock(&self.0);
        if window.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            *window = Window { since: Some(now), attempts: 0 };
        }
        window.attempts = window.attempts.saturating_add(1);
        match window.attempts {
            attempts if attempts <= limit => Turn::Taken,
            attempts if attempts == limit.saturating_add(1) => Turn::FirstTooMany,
            _ => Turn::TooMany,
        }
    }
}

/// No thread panics while it holds one of these locks.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_a_minute_at_a_time() {
        let (rate, start) = (Rate::default(), Instant::now());
        let turns = |at: u64| rate.take(start + Duration::from_secs(at), 2);
        assert_eq!(
            [turns(0), turns(1), turns(2), turns(59)],
            [Turn::Taken, Turn::Taken, Turn::FirstTooMany, Turn::TooMany]
        );
        assert_eq!(turns(60), Turn::Taken);
    }
}
