//! Programs of the host that do a small piece of work: what they may take and say is bounded, and they end with
//! the command that started them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::confine;

/// What a program may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long it may run.
    pub time: Duration,
    /// How much it may print, on standard output and on standard error, in bytes each.
    pub output: usize,
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on standard output.
    pub stdout: Vec<u8>,
    /// What it printed on standard error.
    pub stderr: Vec<u8>,
}

/// Runs a program to its end, without input. It is killed when a bound is exceeded, which is an error, and by the
/// kernel when this process ends.
pub fn run(command: &mut Command, bounds: Bounds) -> io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Its own group: one that is a script ends with what it started.
    command.process_group(0);
    confine::die_with_parent(command);
    let mut child = Guard(command.spawn()?);
    attend(&mut child.0, bounds)
}

fn attend(child: &mut Child, bounds: Bounds) -> io::Result<Output> {
    let until = Instant::now() + bounds.time;
    let ended = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut stdout = Pipe::new(child.stdout.take(), bounds.output)?;
    let mut stderr = Pipe::new(child.stderr.take(), bounds.output)?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let text = format!("it did not end within {} s and was ended", bounds.time.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
        let open = [&stdout, &stderr].into_iter().filter_map(|pipe| pipe.open.as_ref());
        fds.extend(open.map(|open| PollFd::new(open, PollFlags::IN)));
        let timeout = rustix::time::Timespec::try_from(left).ok();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Asked before the last reading: what it said before its end is all there then. Not the pipes' ends: one
        // that it left running may keep them open.
        let status = child.try_wait()?;
        stdout.read()?;
        stderr.read()?;
        if let Some(status) = status {
            return Ok(Output { status, stdout: stdout.said, stderr: stderr.said });
        }
    }
}

/// One of a program's outputs.
struct Pipe {
    open: Option<File>,
    said: Vec<u8>,
    limit: usize,
}

impl Pipe {
    fn new(open: Option<impl Into<OwnedFd>>, limit: usize) -> io::Result<Self> {
        let open = open.map(|open| File::from(open.into()));
        if let Some(open) = &open {
            rustix::io::ioctl_fionbio(open, true)?;
        }
        Ok(Self { open, said: Vec::new(), limit })
    }

    /// Takes what is there.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 8192];
        while let Some(open) = &mut self.open {
            match open.read(&mut chunk) {
                Ok(0) => self.open = None,
                Ok(count) if self.said.len() + count > self.limit => {
                    let text = format!("it printed more than {} bytes and was ended", self.limit);
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
                }
                Ok(count) => self.said.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Ends the program's group when dropped, unless the program ended by itself.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // It is ours and not waited for, so its number is its own. That it is gone by now is no failure.
            let _ = rustix::process::kill_process_group(Pid::from_child(&self.0), Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { time: Duration::from_secs(60), output: 100_000 };

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn is_alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    /// Waits until no process has this number; a test's own deadline is long.
    fn is_gone_soon(pid: &str) -> bool {
        let until = Instant::now() + Duration::from_secs(20);
        while is_alive(pid) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        !is_alive(pid)
    }

    #[test]
    fn all_that_is_said_is_there_and_how_it_ended() {
        let output = run(&mut sh("seq 10000; echo no >&2; exit 3"), BOUNDS).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(output.stdout.ends_with(b"\n9999\n10000\n") && output.stdout.starts_with(b"1\n2\n"));
        assert_eq!(output.stderr, b"no\n");
    }

    #[test]
    fn one_that_hangs_is_ended_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("cd {}; sleep 1000 & echo $$ $! > pids; wait", folder.path().display());
        let began = Instant::now();
        let error = run(&mut sh(&script), Bounds { time: Duration::from_secs(2), ..BOUNDS }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(30));
        let pids = std::fs::read_to_string(folder.path().join("pids")).unwrap();
        let pids: Vec<&str> = pids.split_whitespace().collect();
        assert_eq!(pids.len(), 2);
        for pid in pids {
            assert!(is_gone_soon(pid), "{pid} stayed");
        }
    }

    #[test]
    fn one_that_says_too_much_is_ended() {
        let error = run(&mut sh("yes"), BOUNDS).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn one_that_leaves_something_running_is_not_waited_for() {
        let output = run(&mut sh("sleep 30 & echo $!"), BOUNDS).unwrap();
        let pid = String::from_utf8(output.stdout).unwrap();
        assert!(is_alive(pid.trim()));
        assert!(Command::new("kill").arg(pid.trim()).status().unwrap().success());
    }

    #[test]
    #[ignore = "started, and killed, by it_dies_with_the_process_that_started_it"]
    fn parent() {
        let file = std::env::var_os("CASEMATE_HELPER_PARENT").unwrap();
        let script = "echo $$ > \"$FILE.new\"; mv \"$FILE.new\" \"$FILE\"; exec sleep 1000";
        run(sh(script).env("FILE", file), Bounds { time: Duration::from_secs(1000), ..BOUNDS }).unwrap();
    }

    #[test]
    fn it_dies_with_the_process_that_started_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "helper::tests::parent"])
            .env("CASEMATE_HELPER_PARENT", &file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let pid = loop {
            match std::fs::read_to_string(&file) {
                Ok(pid) => break pid.trim().to_owned(),
                Err(_) => assert!(Instant::now() < until, "it was not started"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(is_alive(&pid));
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert!(is_gone_soon(&pid), "{pid} stayed");
    }
}
