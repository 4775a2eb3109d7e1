//! What is left of machines that were stopped: processes, mounts, sockets, files, control groups.

use crate::{
    bench::Bench,
    casemate::Machine,
    process::{self, Identity},
};
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// What stays of a machine on purpose.
const KEPT: [&str; 2] = ["machine.json", "logs"];

/// How deep control groups are looked for.
const CGROUP_DEPTH: usize = 5;

/// What to look for.
#[derive(Debug)]
pub struct Leftovers {
    home: PathBuf,
    program: PathBuf,
    processes: Vec<Identity>,
    ids: Vec<String>,
}

impl Leftovers {
    /// Notes the processes of machines that run.
    pub fn watch(bench: &Bench, machines: &[Machine]) -> Self {
        let vmms = machines.iter().filter_map(Machine::vmm);
        let supervisors = machines.iter().filter_map(|machine| bench.casemate.supervisor(machine).ok());
        Self {
            home: bench.casemate.home().to_owned(),
            program: bench.layout.program(),
            processes: vmms.chain(supervisors).collect(),
            ids: machines.iter().map(|machine| machine.id.clone()).collect(),
        }
    }

    /// Everything that is still there, in words.
    pub fn find(&self) -> Vec<String> {
        let mut found = self.processes();
        found.extend(self.lines("/proc/self/mountinfo", "mount"));
        found.extend(self.lines("/proc/net/unix", "socket"));
        for machine in entries(&self.home.join("machines")) {
            found.extend(left_of_machine(&machine));
        }
        found.extend(self.cgroups(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH));
        found
    }

    fn processes(&self) -> Vec<String> {
        let noted = self.processes.iter().filter(|process| process.lives()).map(|process| process.pid());
        let others = process::all().into_iter().filter(|pid| {
            let exe = fs::read_link(format!("/proc/{pid}/exe"));
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (exe.is_ok_and(|exe| exe == self.program) || self.names_home(&line))
                && Identity::of(*pid).is_some()
        });
        let mut pids: Vec<u32> = noted.chain(others).collect();
        pids.sort_unstable();
        pids.dedup();
        let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        pids.iter().map(|pid| format!("process {pid} {}", name(pid).trim())).collect()
    }

    fn names_home(&self, line: &[u8]) -> bool {
        String::from_utf8_lossy(line).contains(&*self.home.to_string_lossy())
    }

    fn lines(&self, file: &str, what: &str) -> Vec<String> {
        let text = fs::read(file).unwrap_or_default();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| self.names_home(line));
        lines.map(|line| format!("{what} {}", String::from_utf8_lossy(line))).collect()
    }

    fn cgroups(&self, folder: &Path, depth: usize) -> Vec<String> {
        let folders = entries(folder).into_iter().filter(|entry| entry.is_dir() && !entry.is_symlink());
        let mut found = Vec::new();
        for folder in folders {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if self.ids.iter().any(|id| name.contains(id.as_str())) {
                found.push(format!("control group {}", folder.display()));
            }
            if depth > 0 {
                found.extend(self.cgroups(&folder, depth - 1));
            }
        }
        found
    }
}

/// What of a machine's folder should not be there any more. Files beside the folders are the registry's own.
fn left_of_machine(folder: &Path) -> Vec<String> {
    if !folder.is_dir() {
        return Vec::new();
    }
    let kept = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_socket = fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
        KEPT.contains(&name.as_str()) && !is_socket
    };
    let left = entries(folder).into_iter().filter(|path| !kept(path));
    left.map(|path| format!("file {}", path.display())).collect()
}

/// The disk that a folder takes, in MiB: holes count nothing.
pub fn disk_mib(folder: &Path) -> f64 {
    let mut bytes = 0.0;
    for entry in entries(folder) {
        let Ok(data) = fs::symlink_metadata(&entry) else { continue };
        bytes += if data.is_dir() { disk_mib(&entry) * 1048576.0 } else { data.blocks() as f64 * 512.0 };
    }
    bytes / 1048576.0
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn nothing_in(home: &Path) -> Leftovers {
        Leftovers { home: home.to_owned(), program: home.join("casemate"), processes: vec![], ids: vec![] }
    }

    #[test]
    fn a_record_and_logs_are_no_leftovers() {
        let home = tempfile::tempdir().unwrap();
        let machine = home.path().join("machines/0123456789ab");
        fs::create_dir_all(machine.join("logs")).unwrap();
        fs::write(machine.join("machine.json"), "{}").unwrap();
        fs::write(home.path().join("machines/lock"), "").unwrap();
        assert_eq!(nothing_in(home.path()).find(), Vec::<String>::new());
    }

    #[test]
    fn sockets_files_and_processes_are_leftovers() {
        let home = tempfile::tempdir().unwrap();
        let machine = home.path().join("machines/0123456789ab");
        fs::create_dir_all(&machine).unwrap();
        fs::write(machine.join("memory"), "").unwrap();
        let _listener = UnixListener::bind(machine.join("supervisor.sock")).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut leftovers = nothing_in(home.path());
        leftovers.processes.extend(Identity::of(child.id()));
        let found = leftovers.find();
        child.kill().unwrap();
        child.wait().unwrap();
        let kinds = |kind: &str| found.iter().filter(|one| one.starts_with(kind)).count();
        // The socket's file, and the socket that listens on it.
        assert_eq!((kinds("file"), kinds("socket"), kinds("process")), (2, 1, 1), "{found:?}");
    }

    #[test]
    fn holes_take_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        let file = fs::File::create(folder.path().join("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(disk_mib(folder.path()) < 1.0);
    }
}
