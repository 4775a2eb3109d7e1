//! A VMM is in a control group of its own, seen from outside.

use crate::live::{launch, probe_home, process, stop};
use casemate_testkit::cannot_run;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where a controller's group of a process is, by version 1 or else by version 2.
fn group(pid: u32, controller: &str) -> PathBuf {
    let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of = |names: &dyn Fn(&str) -> bool| {
        let mut fields = memberships.lines().map(|line| line.splitn(3, ':').skip(1));
        fields.find_map(|mut line| names(line.next()?).then(|| line.next()).flatten())
    };
    let mounted = |is_it: &dyn Fn(&str, &str) -> bool| {
        mounts.lines().find_map(|line| {
            let (place, system) = line.split_once(" - ")?;
            let mut system = system.split(' ');
            let (kind, options) = (system.next()?, system.nth(1)?);
            let mut place = place.split(' ').skip(3);
            is_it(kind, options).then(|| Some((place.next()?, place.next()?))).flatten()
        })
    };
    let has = |list: &str| list.split(',').any(|name| name == controller);
    let v1 = of(&has).zip(mounted(&|kind, options| kind == "cgroup" && has(options)));
    let v2 = || of(&str::is_empty).zip(mounted(&|kind, _| kind == "cgroup2"));
    let (path, (root, point)) = v1.or_else(v2).unwrap();
    let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(path));
    Path::new(point).join(below.strip_prefix("/").unwrap_or(below))
}

fn limit(dir: &Path, files: [&str; 2]) -> u64 {
    let text = files.iter().find_map(|file| fs::read_to_string(dir.join(file)).ok());
    text.unwrap_or_else(|| panic!("no limit in {}", dir.display())).trim().parse().unwrap()
}

#[test]
fn a_vmm_is_in_a_group_of_its_own_that_bounds_its_memory_and_threads() {
    let home = probe_home();
    let record = launch(&home, "m", &["--memory", "128"]);
    let vmm = process(&record, "pid");
    let dir = group(vmm, "memory");
    if !rustix::process::geteuid().is_root() && dir == group(std::process::id(), "memory") {
        return cannot_run("this user can make no groups");
    }
    let suffix = format!("-{}", record["id"].as_str().unwrap());
    for controller in ["memory", "cpu", "pids"] {
        let dir = group(vmm, controller);
        let name = dir.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("casemate-") && name.ends_with(&suffix), "{controller}: {}", dir.display());
        let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), vmm.to_string(), "{controller}");
    }
    // The guest's memory and room for the VMM's own, and not the host's.
    let bytes = limit(&dir, ["memory.limit_in_bytes", "memory.max"]);
    assert!((128 << 20..1 << 30).contains(&bytes), "{bytes}");
    let threads = limit(&group(vmm, "pids"), ["pids.max"; 2]);
    assert!((1..1000).contains(&threads), "{threads}");
    let groups = ["memory", "cpu", "pids"].map(|controller| group(vmm, controller));
    stop(&home, "m");
    assert!(groups.iter().all(|dir| !dir.exists()), "{groups:?}");
}
