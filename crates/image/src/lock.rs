//! Locks between commands. Nobody waits for one without end: the command that holds it may be stopped.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// The shortest and the longest time between two tries.
const POLL: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));

/// Waits for a file's exclusive lock, at most for `patience`, and calls `waiting` once if it has to wait. The lock
/// is given back when the file is closed.
///
/// That it took too long is an error of the kind `TimedOut`, whose text says who holds the lock.
pub fn within(file: &File, patience: Duration, waiting: impl FnOnce()) -> io::Result<()> {
    let began = Instant::now();
    let mut waiting = Some(waiting);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => {}
        }
        let waited = began.elapsed();
        if waited >= patience {
            return Err(held(file, patience));
        }
        if let Some(waiting) = waiting.take() {
            waiting();
        }
        // A decision is waited for closely, a build that takes minutes is not.
        let pause = (waited / 16).clamp(POLL.0, POLL.1);
        std::thread::sleep(pause.min(patience - waited));
    }
}

/// The error of a lock that somebody else held for all the time that one was ready to wait.
pub fn held(file: &File, patience: Duration) -> io::Error {
    let seconds = patience.as_secs();
    let text = match holder(file) {
        Some(pid) => format!(
            "process {pid} has held it for {seconds} s and may be stopped: let it go on (kill -CONT {pid}) or end it \
             (kill -KILL {pid})"
        ),
        None => {
            format!("another casemate command has held it for {seconds} s and may be stopped: ps shows it")
        }
    };
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// The process that took the lock of this file, where the kernel tells.
fn holder(file: &File) -> Option<u32> {
    let meta = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let object = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF; with -> after the number is one who waits.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_it = words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&object.as_str());
        words.get(4).filter(|_| is_it)?.parse().ok().filter(|pid| *pid != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_waited_for_said_and_given_up_with_the_holder_named() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let (first, second) = (path.reopen().unwrap(), path.reopen().unwrap());
        within(&first, Duration::ZERO, || panic!("it is free")).unwrap();
        let (mut said, began) = (0, Instant::now());
        let error = within(&second, Duration::from_millis(50), || said += 1).unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(50));
        assert_eq!((error.kind(), said), (io::ErrorKind::TimedOut, 1));
        let named = format!("process {} has held it", std::process::id());
        assert!(error.to_string().contains(&named), "{error}");
    }

    #[test]
    fn a_lock_that_becomes_free_is_taken() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let (first, second) = (path.reopen().unwrap(), path.reopen().unwrap());
        within(&first, Duration::ZERO, || {}).unwrap();
        within(&second, Duration::from_secs(60), || drop(first)).unwrap();
    }
}
