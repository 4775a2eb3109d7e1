//! Processes of machines from outside: found, watched, killed.

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, Signal, kill_process},
    time::Timespec,
};
use std::{
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io::{BufRead, BufReader, Read},
    os::fd::AsFd,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// The probe server as it was built.
pub const PROBE: &str = env!("CASEMATE_EMBEDDED_PROBE");

/// Far beyond what any step takes; a test that reaches it hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a test's random choices depend on: what the variable says, else something new. It is printed.
pub fn seed(variable: &str) -> u64 {
    let seed = number(variable).unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("{variable}={seed}");
    seed
}

/// A number that a variable gives.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// SplitMix64: small, and good enough to choose with.
pub struct SplitMix(u64);

impl SplitMix {
    /// The numbers that a seed gives.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one, below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

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

/// What a program says, line by line, for which nobody waits without end.
pub struct Lines(Receiver<String>);

impl Lines {
    /// Begins to read.
    pub fn of(from: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        // Ends with the program, or with the test.
        thread::spawn(move || {
            BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self(lines)
    }

    /// The next line; nothing at the end.
    pub fn next(&self) -> Option<String> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("nothing is said for {PATIENCE:?}"),
        }
    }
}

/// Waits until a program says something, or nothing more.
pub fn await_output(from: &impl AsFd, patience: Duration) {
    let mut fds = [PollFd::new(from, PollFlags::IN)];
    let timeout = Timespec::try_from(patience).unwrap();
    assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1), "nothing is said for {patience:?}");
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
