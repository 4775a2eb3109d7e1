//! What a running request waits for: time, its cancellation, or the client's answer to a question.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Locks a mutex whose data is valid between any two statements, so that a panic elsewhere does not matter.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shared by a running request and whoever may interrupt it.
#[derive(Debug)]
pub struct Signal<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    cancelled: bool,
    delivered: Option<T>,
}

impl<T> Default for Signal<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State { cancelled: false, delivered: None }), changed: Condvar::new() }
    }
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited<T> {
    /// Something was delivered.
    Delivered(T),
    /// The request was cancelled.
    Cancelled,
    /// The time was over.
    Elapsed,
}

impl<T> Signal<T> {
    /// Interrupts the request.
    pub fn cancel(&self) {
        lock(&self.state).cancelled = true;
        self.changed.notify_all();
    }

    /// Hands something to the request.
    pub fn deliver(&self, value: T) {
        lock(&self.state).delivered = Some(value);
        self.changed.notify_all();
    }

    /// Whether the request was cancelled.
    pub fn is_cancelled(&self) -> bool {
        lock(&self.state).cancelled
    }

    /// Waits at most `duration`.
    pub fn wait(&self, duration: Duration) -> Waited<T> {
        let deadline = Instant::now() + duration;
        let mut state = lock(&self.state);
        loop {
            if state.cancelled {
                return Waited::Cancelled;
            }
            if let Some(value) = state.delivered.take() {
                return Waited::Delivered(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::Elapsed;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_wait_ends_by_whatever_comes_first() {
        let signal = Signal::<u8>::default();
        assert_eq!(signal.wait(Duration::from_millis(1)), Waited::Elapsed);
        thread::scope(|scope| {
            scope.spawn(|| signal.deliver(7));
            assert_eq!(signal.wait(Duration::from_secs(60)), Waited::Delivered(7));
            scope.spawn(|| signal.cancel());
            assert_eq!(signal.wait(Duration::from_secs(60)), Waited::Cancelled);
        });
        assert!(signal.is_cancelled());
    }
}
