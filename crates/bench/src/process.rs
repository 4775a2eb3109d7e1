//! Processes: those that are started here, and what `/proc` shows of any.

use crate::failure::Failure;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// How much of a command's complaint a failure carries.
const SAID_BYTES: usize = 600;

/// What runs and has to end with this program.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Whether this program was told to end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// A process group that is killed if this program is interrupted while this lives.
#[derive(Debug)]
pub struct Running(u32);

impl Running {
    /// Notes a process that was started as the leader of its group.
    pub fn note(pid: u32) -> Self {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        if is_ending() {
            kill(pid);
        }
        Self(pid)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Kills what was noted and still runs, and from now on what is noted.
pub fn kill_all() {
    ENDING.store(true, Ordering::SeqCst);
    for pid in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        kill(*pid);
    }
}

/// Whether this program was told to end.
pub fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

fn kill(group: u32) {
    if let Some(group) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        // Fails only where it has ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// What a command that ended well left.
#[derive(Debug)]
pub struct Finished {
    /// What it printed.
    pub stdout: Vec<u8>,
    /// From its spawn to its end.
    pub took: Duration,
}

/// Runs a command to its end; one that takes longer than `limit` is killed.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished, Failure> {
    let (output, took) = output(command, limit)?;
    if output.status.success() {
        return Ok(Finished { stdout: output.stdout, took });
    }
    Err(Failure::Command {
        command: line(command),
        status: output.status.to_string(),
        said: tail(&output.stderr),
    })
}

/// Runs a command to its end, however it ends; one that takes longer than `limit` is killed.
pub fn output(command: &mut Command, limit: Duration) -> Result<(Output, Duration), Failure> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let spawned = Instant::now();
    let child = command.spawn().map_err(|source| Failure::Start { program: line(command), source })?;
    let (pid, running) = (child.id(), Running::note(child.id()));
    let (done, watched) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let late = watched.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            kill(pid);
        }
        late
    });
    let output = child.wait_with_output();
    let took = spawned.elapsed();
    drop((done, running));
    if watchdog.join().unwrap_or(false) {
        return Err(Failure::Late { command: line(command), limit });
    }
    Ok((output.map_err(Failure::system("read a command's output"))?, took))
}

/// Finds a program, also in the folders that only an administrator's search path names.
pub fn find(program: &str) -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut programs = folders.map(|folder| folder.join(program));
    programs.find(|program| program.is_file()).ok_or_else(|| {
        Failure::Unavailable(format!("{program} is not installed; make setup-bench installs it"))
    })
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    command.get_args().fold(program, |line, argument| format!("{line} {}", argument.to_string_lossy()))
}

/// The end of what a program printed, in one line.
pub fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let skip = text.chars().count().saturating_sub(SAID_BYTES);
    text.chars().skip(skip).collect()
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Memory {
    /// Proportional: what it shares is divided by the number of those who share it.
    pub proportional: f64,
    /// Its own, whether it could be read from a file again or not.
    pub private: f64,
    /// Its own and written to.
    pub written: f64,
}

impl Memory {
    /// What the kernel says about a process.
    pub fn of(pid: u32) -> Result<Self, Failure> {
        fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .and_then(|text| parse_rollup(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData)))
            .map_err(|source| Failure::NoMemory { pid, source })
    }

    /// Of a process and its descendants, proportional.
    pub fn of_tree(pid: u32) -> Result<f64, Failure> {
        let mut sum = Self::of(pid)?.proportional;
        for pid in descendants(pid) {
            sum += Self::of(pid)?.proportional;
        }
        Ok(sum)
    }
}

fn parse_rollup(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()
    };
    let (clean, dirty) = (field("Private_Clean")?, field("Private_Dirty")?);
    Some(Memory {
        proportional: field("Pss")? / 1024.0,
        private: (clean + dirty) / 1024.0,
        written: dirty / 1024.0,
    })
}

/// The ids of all processes.
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process that cannot be taken for a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pid: u32,
    started: u64,
}

impl Identity {
    /// Of a process that lives: one that ended and waits to be reaped, by whoever inherited it, does not.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = stat(pid)?;
        (!matches!(stat.state, 'Z' | 'X')).then_some(Self { pid, started: stat.started })
    }

    /// Whether it lives still.
    pub fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Its id.
    pub fn pid(self) -> u32 {
        self.pid
    }
}

fn descendants(pid: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> =
        all().into_iter().filter_map(|pid| Some((pid, stat(pid)?.parent))).collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&ancestor) = found.get(next) {
        found.extend(parents.iter().filter(|(_, parent)| *parent == ancestor).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// What is used of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: u32,
    /// In clock ticks since boot.
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name before the fields may contain anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Stat { state, parent, started: fields.nth(17)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_roll_up() {
        let text = "5583-7fff ---p 00000000 00:00 0   [rollup]\nRss:  5844 kB\nPss:                4096 kB\n\
                    Pss_Dirty:           676 kB\nPrivate_Clean:      3072 kB\nPrivate_Dirty:       512 kB\n";
        let expected = Memory { proportional: 4.0, private: 3.5, written: 0.5 };
        assert_eq!(parse_rollup(text), Some(expected));
        assert_eq!(parse_rollup("Pss: 1 kB\n"), None);
        assert_eq!(parse_rollup(""), None);
    }

    #[test]
    fn this_process_has_memory_and_is_itself() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.proportional > 0.0 && memory.private >= memory.written);
        assert!(Identity::of(std::process::id()).unwrap().lives());
    }

    #[test]
    fn a_name_with_brackets_and_spaces_shifts_nothing() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8675309 1 2";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', parent: 7, started: 8_675_309 }));
        assert_eq!(parse_stat("42 (a"), None);
    }

    #[test]
    fn a_child_is_a_descendant_until_it_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let seen = descendants(std::process::id()).contains(&child.id());
        let identity = Identity::of(child.id());
        child.kill().unwrap();
        let _reaped_later = rustix::process::waitid(
            rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&child)),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        let zombie_lives = identity.unwrap().lives();
        child.wait().unwrap();
        assert!(seen && !zombie_lives);
        assert!(!identity.unwrap().lives());
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed() {
        let late = run(Command::new("sleep").arg("600"), Duration::from_millis(50));
        assert!(matches!(late, Err(Failure::Late { .. })), "{late:?}");
    }

    #[test]
    fn a_failure_says_what_the_command_said() {
        let failed = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), Duration::from_secs(60));
        let text = crate::failure::chain(&failed.unwrap_err());
        assert!(text.contains("why") && text.contains('3'), "{text}");
    }
}
