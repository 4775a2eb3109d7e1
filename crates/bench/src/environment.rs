//! Where and with what was measured.

use crate::{
    bench::Bench,
    process,
    server::{self, EVERYTHING},
};
use jiff::Timestamp;
use serde::Serialize;
use std::{collections::BTreeMap, fs, process::Command, time::Duration};

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where and with what was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// The day, in UTC.
    pub date: String,
    /// Processors and memory.
    pub machine: String,
    /// The host's kernel.
    pub host_kernel: String,
    /// The kernel of the guests.
    pub guest_kernel: String,
    /// What executes the guests' instructions.
    pub accelerator: String,
    /// The commit, and whether there was more.
    pub commit: String,
    /// Programs and servers with their versions.
    pub versions: BTreeMap<String, String>,
}

impl Environment {
    /// Looks around. What cannot be found out is called unknown.
    pub fn of(bench: &Bench) -> Self {
        let mut versions = BTreeMap::new();
        let mut version = |name: &str, program: &str, arguments: &[&str]| {
            versions.insert(name.to_owned(), said(program, arguments).unwrap_or_else(unknown));
        };
        version("casemate", &bench.layout.program().to_string_lossy(), &["--version"]);
        version("QEMU", "qemu-system-x86_64", &["--version"]);
        version("bubblewrap", "bwrap", &["--version"]);
        version("runc", "runc", &["--version"]);
        if let Some(tree) = bench.tree_if_unpacked(&EVERYTHING) {
            version("Node", "chroot", &[&tree.to_string_lossy(), "/usr/bin/node", "--version"]);
        }
        for server in server::ALL {
            let package = server.source.split_once(':').map_or(server.source, |(_, package)| package);
            let packages = bench.image_if_built(server).map(|image| image.packages.as_slice());
            let found = packages.unwrap_or_default().iter().find(|one| one.name == package);
            if let Some(found) = found {
                versions.insert(package.to_owned(), found.version.clone());
            }
        }
        Self {
            date: Timestamp::now().strftime("%Y-%m-%d").to_string(),
            machine: machine(),
            host_kernel: said("uname", &["-r"]).unwrap_or_else(unknown),
            guest_kernel: guest_kernel(bench).unwrap_or_else(unknown),
            accelerator: accelerator(bench).unwrap_or_else(unknown),
            commit: commit().unwrap_or_else(unknown),
            versions,
        }
    }
}

/// The load average of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// The memory that the host could still give, in MiB.
pub fn available_mib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kilobytes(&text, "MemAvailable").map_or(f64::NAN, |kilobytes| kilobytes / 1024.0)
}

fn kilobytes(meminfo: &str, field: &str) -> Option<f64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("a processor of unknown kind", |(_, model)| model);
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gibibytes = kilobytes(&memory, "MemTotal").unwrap_or_default() / 1_048_576.0;
    format!("{cores} × {model}, {gibibytes:.0} GiB")
}

fn guest_kernel(bench: &Bench) -> Option<String> {
    let kernels = fs::read_dir(bench.casemate.home().join("kernels")).ok()?;
    kernels.flatten().find_map(|kernel| {
        let text = fs::read(kernel.path().join("kernel.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
        record["version"].as_str().map(str::to_owned)
    })
}

fn accelerator(bench: &Bench) -> Option<String> {
    let machines: Vec<crate::casemate::Machine> = bench.casemate.json(&["status", "--all", "--json"]).ok()?;
    let machine =
        machines.into_iter().find(|machine| server::ALL.iter().any(|one| one.name == machine.server))?;
    Some(format!("{}, {}", machine.backend, machine.accelerator.unwrap_or_else(unknown)))
}

fn commit() -> Option<String> {
    let commit = said("git", &["rev-parse", "--short", "HEAD"])?;
    let changes = said("git", &["status", "--porcelain", "--untracked-files=no"]);
    Some(if changes.is_some() { format!("{commit}, with changes") } else { commit })
}

/// The first line that a program prints, if it ends well and prints any.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let finished = process::run(Command::new(process::find(program).ok()?).args(arguments), PATIENCE).ok()?;
    let text = String::from_utf8_lossy(&finished.stdout).lines().next()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn unknown() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernel_s_table() {
        assert_eq!(kilobytes("MemTotal:       24 kB\nMemAvailable:    12 kB\n", "MemAvailable"), Some(12.0));
        assert_eq!(kilobytes("MemTotal: 24 kB\n", "MemAvailable"), None);
    }

    #[test]
    fn this_host_is_described() {
        assert!(available_mib() > 0.0 && load() >= 0.0);
        assert!(!machine().starts_with('0'), "{}", machine());
    }
}
