//! Removing groups, from whichever process: where they are is noted in the machine's folder before they are
//! made, since another command may itself be in other groups than the supervisor that made them.

use super::PREFIX;
use crate::home::{HomeError, write_atomically};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The note's name in the machine's folder: a JSON list of paths.
pub(crate) const NOTE: &str = "cgroups";

/// How long killed processes may take to leave a group.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is looked for that they have.
const EMPTY_POLL: Duration = Duration::from_millis(2);

/// The `f_type` of the two file systems, from linux/magic.h.
const CGROUP_MAGIC: [i64; 2] = [0x0027_e0eb, 0x6367_7270];

/// Notes that a machine has, or is about to have, these groups.
pub(super) fn note(machine: &Path, dirs: &[&Path]) -> Result<(), HomeError> {
    let mut all: BTreeSet<PathBuf> = noted(machine).into_iter().collect();
    all.extend(dirs.iter().map(|&dir| dir.to_owned()));
    if all.is_empty() {
        return Ok(());
    }
    let path = machine.join(NOTE);
    let text = serde_json::to_vec(&all).map_err(|error| HomeError::io("write", &path)(error.into()))?;
    write_atomically(&path, &text)
}

/// Removes the groups of a machine that is over, and kills what is still in them; whether none is left.
pub(crate) fn sweep(machine: &Path) -> bool {
    let left = noted(machine).into_iter().filter(|dir| is_group_of(dir, machine)).filter(|dir| !remove(dir));
    let none_left = left.count() == 0;
    if none_left {
        // What is not there need not be removed.
        let _ = fs::remove_file(machine.join(NOTE));
    }
    none_left
}

fn noted(machine: &Path) -> Vec<PathBuf> {
    let text = fs::read(machine.join(NOTE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Whether a path is what [`super::name`] makes for this machine, on a cgroup file system: a note that
/// somebody else wrote must not get anything removed or killed.
fn is_group_of(dir: &Path, machine: &Path) -> bool {
    let id = machine.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let name = dir.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let named = !id.is_empty() && name.starts_with(PREFIX) && name.ends_with(&format!("-{id}"));
    named && rustix::fs::statfs(dir).is_ok_and(|fs| CGROUP_MAGIC.contains(&fs.f_type))
}

/// Kills what is in a group and removes it; whether it is gone.
fn remove(dir: &Path) -> bool {
    let until = Instant::now() + EMPTY_TIMEOUT;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => return false,
            Err(_) if Instant::now() >= until => return false,
            Err(_) => {
                kill_all(dir);
                std::thread::sleep(EMPTY_POLL);
            }
        }
    }
}

/// Kills every process of a group.
fn kill_all(dir: &Path) {
    // Version 2 since Linux 5.14: all at once, whatever forks meanwhile.
    if fs::File::options()
        .write(true)
        .open(dir.join("cgroup.kill"))
        .and_then(|mut f| io::Write::write_all(&mut f, b"1"))
        .is_ok()
    {
        return;
    }
    for pid in members(dir) {
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The descriptor names one process for good; that it is still in the group shows that it is not
        // another one that got the number since.
        if members(dir).contains(&pid) {
            let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
        }
    }
}

fn members(dir: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect()
}
