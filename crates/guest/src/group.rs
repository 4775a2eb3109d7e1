//! Everything that one child started, and ending it as a whole.
//!
//! A process group is not enough: whoever calls `setsid` has left it. In a machine with a kernel of its own
//! each child gets a control group, which nobody leaves and which the kernel kills as one. Elsewhere the
//! agent, which inherits all orphans, looks for the child's descendants until there are none.

use crate::reaper::lock;
use crate::{log, procfs, sys};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CGROUPS: &str = "/sys/fs/cgroup";
/// The parent of all children's groups; the machine's limits are set here.
const WORKLOAD: &str = "/sys/fs/cgroup/workload";

/// The file that stops a group, cgroup v2.
const FREEZE: &str = "cgroup.freeze";

/// Between two looks at whether everything is dead.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// After so many looks the dying is given up: what is left hangs inside the kernel.
const LOOKS: u32 = 1000;

/// Makes groups, and knows those that exist.
#[derive(Debug)]
pub struct Groups {
    /// Whether control groups are there.
    control: bool,
    next: Mutex<u64>,
    /// Leaders of the groups that exist.
    leaders: Mutex<BTreeSet<i32>>,
}

impl Groups {
    /// Groups by descent.
    pub fn by_descent() -> Self {
        Self { control: false, next: Mutex::new(0), leaders: Mutex::default() }
    }

    /// Control groups, limited together to `processes`, and to `memory_bytes` so that the agent and the
    /// kernel keep some. By descent where the kernel has none.
    pub fn control(processes: u64, memory_bytes: u64) -> Self {
        let control = match limit_workload(processes, memory_bytes) {
            Ok(()) => true,
            Err(error) => {
                log::warn(format_args!("set up control groups: {error}"));
                false
            }
        };
        Self { control, ..Self::by_descent() }
    }

    /// A group for a child that is still to be started, and what the child joins it by.
    pub fn prepare(self: &Arc<Self>) -> io::Result<(Prepared, Option<OwnedFd>)> {
        if !self.control {
            return Ok((Prepared { groups: self.clone(), folder: None }, None));
        }
        let number = {
            let mut next = lock(&self.next);
            *next += 1;
            *next
        };
        let folder = Path::new(WORKLOAD).join(number.to_string());
        std::fs::create_dir(&folder)?;
        let prepared = Prepared { groups: self.clone(), folder: Some(folder.clone()) };
        let join = std::fs::File::options().write(true).open(folder.join("cgroup.procs"))?;
        Ok((prepared, Some(join.into())))
    }
}

fn limit_workload(processes: u64, memory_bytes: u64) -> io::Result<()> {
    std::fs::write(Path::new(CGROUPS).join("cgroup.subtree_control"), "+pids +memory")?;
    match std::fs::create_dir(WORKLOAD) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let set = |name: &str, value: u64| std::fs::write(Path::new(WORKLOAD).join(name), value.to_string());
    set("pids.max", processes)?;
    set("memory.max", memory_bytes)
}

/// A group without its leader yet. Dropped, it is removed.
#[derive(Debug)]
pub struct Prepared {
    groups: Arc<Groups>,
    folder: Option<PathBuf>,
}

impl Prepared {
    /// The child that was started leads it.
    pub fn lead(mut self, leader: i32) -> Group {
        lock(&self.groups.leaders).insert(leader);
        Group { groups: self.groups.clone(), leader, folder: self.folder.take() }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            // An empty group that stays costs a few kilobytes.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// A child and everything that it started.
#[derive(Debug)]
pub struct Group {
    groups: Arc<Groups>,
    leader: i32,
    folder: Option<PathBuf>,
}

impl Group {
    /// Sends a signal to the leader's process group.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::signal_group(self.leader, signal)
    }

    /// Stops all of it where it stands, and returns once it does.
    pub async fn freeze(&self) -> io::Result<()> {
        let folder = self.control_folder()?;
        std::fs::write(folder.join(FREEZE), "1")?;
        for _ in 0..LOOKS {
            if std::fs::read_to_string(folder.join("cgroup.events"))?.lines().any(|line| line == "frozen 1") {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        // Something in it hangs inside the kernel.
        self.thaw()?;
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Lets all of it go on.
    pub fn thaw(&self) -> io::Result<()> {
        std::fs::write(self.control_folder()?.join(FREEZE), "0")
    }

    /// Processor time that all of it has used.
    pub fn cpu(&self) -> io::Result<Duration> {
        let stat = std::fs::read_to_string(self.control_folder()?.join("cpu.stat"))?;
        let microseconds = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        microseconds.map(Duration::from_micros).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The ids of all of it.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let listed = std::fs::read_to_string(self.control_folder()?.join("cgroup.procs"))?;
        Ok(listed.lines().filter_map(|line| line.parse().ok()).collect())
    }

    fn control_folder(&self) -> io::Result<&Path> {
        self.folder.as_deref().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Kills all of it and returns when nothing of it is left alive. With `orphans`, where descent is all
    /// there is to go by, also those that nobody can be said to have started.
    pub async fn kill(&self, orphans: bool) {
        // The group may be empty.
        let _ = self.signal(libc::SIGKILL);
        let done = match &self.folder {
            Some(folder) => kill_control_group(folder).await,
            None => self.kill_descendants(orphans).await,
        };
        if done {
            return;
        }
        log::warn(format_args!("processes of {} do not die", self.leader));
        if std::process::id() == 1 {
            sys::kill_everything_else();
        }
    }

    async fn kill_descendants(&self, orphans: bool) -> bool {
        for _ in 0..LOOKS {
            let others: BTreeSet<i32> =
                lock(&self.groups.leaders).iter().copied().filter(|&pid| pid != self.leader).collect();
            let members = members(self.leader, std::process::id() as i32, &others, orphans);
            if members.is_empty() {
                return true;
            }
            // Stopped first, so that none starts another while the rest is being killed.
            for signal in [libc::SIGSTOP, libc::SIGKILL] {
                for &pid in &members {
                    // It may have ended meanwhile. Its id cannot belong to a stranger: every process that
                    // the agent sees here is its own descendant, and ids are not used again so soon.
                    let _ = sys::signal_process(pid, signal);
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        false
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        lock(&self.groups.leaders).remove(&self.leader);
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

async fn kill_control_group(folder: &Path) -> bool {
    for _ in 0..LOOKS {
        match std::fs::read_to_string(folder.join("cgroup.events")) {
            Ok(events) if events.lines().any(|line| line == "populated 1") => {}
            _ => return true,
        }
        if let Err(error) = std::fs::write(folder.join("cgroup.kill"), "1") {
            log::warn(format_args!("kill control group: {error}"));
            return false;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    false
}

/// The living descendants of `leader`, those of its session, and, with `orphans`, descendants of `agent` that
/// descend from none of `others`.
fn members(leader: i32, agent: i32, others: &BTreeSet<i32>, orphans: bool) -> Vec<i32> {
    let all: BTreeMap<i32, procfs::Process> =
        procfs::processes().map(|process| (process.pid, process)).collect();
    let belongs = |process: &procfs::Process| {
        let mut at = process;
        // Parents are older than children but for reused ids; the bound is for those.
        for _ in 0..all.len() + 1 {
            if at.pid == leader || at.session == leader {
                return true;
            }
            if others.contains(&at.pid) || others.contains(&at.session) || at.pid == agent {
                return false;
            }
            if at.parent == agent {
                return orphans;
            }
            match all.get(&at.parent) {
                Some(parent) => at = parent,
                None => return false,
            }
        }
        false
    };
    all.values().filter(|process| !process.dead && belongs(process)).map(|process| process.pid).collect()
}
