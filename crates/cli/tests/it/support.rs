//! Processes of machines from outside: found, watched, killed.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs, thread,
    time::{Duration, Instant},
};

/// The probe server, to be added as a command with arguments.
pub const PROBE: &str = env!("CASEMATE_EMBEDDED_PROBE");

/// Far beyond what any step takes; a test that reaches it hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for something to be seen.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "{what}: not seen for {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal; a process that is gone already does not get it.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// Whether a process runs, which one that is dead and not yet reaped does not.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// Whether a process is a supervisor, and not another one that got the number of one that ended.
pub fn is_supervisor(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    is_alive(pid) && line.split(|&byte| byte == 0).any(|word| word == b"__supervisor")
}

/// The first child of a process' main thread.
pub fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().filter_map(|child| child.parse().ok()).find(|&child| is_alive(child))
}
