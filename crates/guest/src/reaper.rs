//! Takes the exit status of every child, whoever started it: the first process of a machine inherits all
//! orphans.

use rustix::process::{Pid, WaitOptions, WaitStatus};
use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Knows who waits for which child.
#[derive(Debug, Default)]
pub struct Reaper {
    waiting: Mutex<HashMap<i32, oneshot::Sender<WaitStatus>>>,
    reaped: AtomicU64,
}

impl Reaper {
    /// The signal that [`Reaper::run`] waits for; to be made before the first child is.
    pub fn signal() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    /// Gives a child's status once it ended. To be called before the agent waits for anything after the
    /// start of the child, or its status may be gone.
    pub fn expect(&self, pid: i32) -> oneshot::Receiver<WaitStatus> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(pid, sender);
        receiver
    }

    /// How many children were reaped.
    pub fn reaped(&self) -> u64 {
        self.reaped.load(Relaxed)
    }

    /// Reaps until the end of the program.
    pub async fn run(&self, mut children: Signal) {
        while children.recv().await.is_some() {
            while let Some((pid, status)) = next_dead() {
                self.reaped.fetch_add(1, Relaxed);
                if let Some(waiter) = lock(&self.waiting).remove(&pid.as_raw_nonzero().get()) {
                    // Nobody has to be interested.
                    let _ = waiter.send(status);
                }
            }
        }
    }
}

fn next_dead() -> Option<(Pid, WaitStatus)> {
    // An error says that there are no children at all.
    rustix::process::wait(WaitOptions::NOHANG).ok().flatten()
}

/// Locks a mutex of this crate; no code panics while it holds one, and the agent has one thread.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
