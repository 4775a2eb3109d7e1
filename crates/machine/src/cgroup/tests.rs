use super::{
    find::{Place, System, Version},
    *,
};
use casemate_testkit::cannot_run;
use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// As on a host with every controller of version 1 mounted by itself, and almost nothing on version 2.
const V1_SEPARATE: (&str, &str) = (
    "9:name=systemd:/\n8:pids:/\n4:memory:/jobs/7\n2:cpuacct:/\n1:cpu:/\n0::/\n",
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
     32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
     35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
     39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
);

/// Debian 10 and CentOS 7: systemd on version 1, cpu with cpuacct.
const V1_SYSTEMD: (&str, &str) = (
    "11:cpu,cpuacct:/user.slice\n9:pids:/user.slice/user-1000.slice/session-1.scope\n\
     4:memory:/user.slice\n1:name=systemd:/user.slice/user-1000.slice/session-1.scope\n\
     0::/user.slice/user-1000.slice/session-1.scope\n",
    "25 18 0:22 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
     26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n\
     27 25 0:24 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd\n\
     33 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:18 - cgroup cgroup rw,cpu,cpuacct\n\
     35 25 0:32 / /sys/fs/cgroup/pids rw,nosuid shared:20 - cgroup cgroup rw,pids\n\
     37 25 0:34 / /sys/fs/cgroup/memory rw,nosuid shared:22 - cgroup cgroup rw,memory\n",
);

/// Debian 12, Ubuntu 22.04, Fedora: a terminal of a desktop session.
const V2_SESSION: (&str, &str) = (
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope\n",
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 \
     rw,nsdelegate,memory_recursiveprot\n",
);

/// Docker with version 2 and a namespace of its own.
const V2_CONTAINER: (&str, &str) = (
    "0::/\n",
    "812 811 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup ro,nsdelegate\n",
);

/// Docker with version 1 and the host's cgroup namespace: only the container's part is mounted.
const V1_CONTAINER: (&str, &str) = (
    "5:pids:/docker/0a1b\n4:memory:/docker/0a1b\n2:cpu,cpuacct:/docker/0a1b\n",
    "812 811 0:26 /docker/0a1b /sys/fs/cgroup/memory ro,nosuid master:22 - cgroup cgroup rw,memory\n\
     813 811 0:27 /docker/0a1b /sys/fs/cgroup/pids ro,nosuid master:20 - cgroup cgroup rw,pids\n\
     814 811 0:28 /docker/0a1b /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:18 - cgroup cgroup rw,cpu,cpuacct\n",
);

fn locate(
    (cgroup, mountinfo): (&str, &str),
    controller: Controller,
) -> Result<(Version, String), Unavailable> {
    let place = System::parse(cgroup.as_bytes(), mountinfo.as_bytes()).locate(controller)?;
    Ok((place.version, place.dir.to_str().unwrap().to_owned()))
}

#[test]
fn the_own_group_is_found_on_every_kind_of_host() {
    use Controller::{Cpu, Memory, Pids};
    for (text, controller, version, dir) in [
        (V1_SEPARATE, Memory, Version::V1, "/sys/fs/cgroup/memory/jobs/7"),
        (V1_SEPARATE, Cpu, Version::V1, "/sys/fs/cgroup/cpu"),
        (V1_SYSTEMD, Cpu, Version::V1, "/sys/fs/cgroup/cpu,cpuacct/user.slice"),
        (V1_SYSTEMD, Pids, Version::V1, "/sys/fs/cgroup/pids/user.slice/user-1000.slice/session-1.scope"),
        (
            V2_SESSION,
            Memory,
            Version::V2,
            "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/\
             app-org.gnome.Terminal.slice/vte-spawn-1.scope",
        ),
        (V2_CONTAINER, Memory, Version::V2, "/sys/fs/cgroup"),
        (V1_CONTAINER, Memory, Version::V1, "/sys/fs/cgroup/memory"),
        (V1_CONTAINER, Cpu, Version::V1, "/sys/fs/cgroup/cpu,cpuacct"),
    ] {
        assert_eq!(locate(text, controller).unwrap(), (version, dir.to_owned()));
    }
}

#[test]
fn what_cannot_be_seen_is_said_to_be_so() {
    // A process that was moved out of its cgroup namespace's root.
    let outside = ("0::/../other\n", V2_CONTAINER.1);
    assert!(matches!(locate(outside, Controller::Memory), Err(Unavailable::OutOfSight { .. })));
    // Another part of the hierarchy is mounted than the process is in.
    let elsewhere = ("4:memory:/docker/ffff\n", V1_CONTAINER.1);
    assert!(matches!(locate(elsewhere, Controller::Memory), Err(Unavailable::OutOfSight { .. })));
    let none = locate(("0::/\n", "24 23 0:5 / /proc rw - proc proc rw\n"), Controller::Cpu);
    assert_eq!(none.unwrap_err().to_string(), "no cgroup hierarchy with the cpu controller is mounted");
}

#[test]
fn a_mount_point_with_a_blank_is_understood() {
    let text = ("0::/a\n", "29 23 0:26 / /mnt/c\\040d\\134 rw - cgroup2 none rw\n");
    assert_eq!(locate(text, Controller::Memory).unwrap().1, "/mnt/c d\\/a");
}

proptest::proptest! {
    #[test]
    fn foreign_text_is_left_out(cgroup: Vec<u8>, mountinfo: Vec<u8>) {
        let _ = System::parse(&cgroup, &mountinfo).locate(Controller::Memory);
    }
}

/// A tree of files like those of version 2; only what the kernel itself does is missing.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(groups: &[(&str, &[(&str, &str)])]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (dir, files) in groups {
            let dir = tree.0.path().join(dir);
            fs::create_dir_all(&dir).unwrap();
            for (file, text) in
                [("cgroup.procs", ""), ("cgroup.controllers", "cpu memory pids\n")].iter().chain(*files)
            {
                fs::write(dir.join(file), text).unwrap();
            }
        }
        tree
    }

    fn choose(&self, own: &str) -> v2::Chosen {
        let top = self.0.path().to_owned();
        v2::choose_parent(&Place { version: Version::V2, dir: top.join(own), top }, &Controller::ALL)
    }
}

const ALL_GIVEN: (&str, &str) = ("cgroup.subtree_control", "cpu memory pids\n");
const INNER: (&str, &str) = ("cgroup.procs", "123\n");
const NOT_ROOT: (&str, &str) = ("cgroup.type", "domain\n");

#[test]
fn the_new_group_is_a_sibling_where_the_parent_gives_all() {
    let tree = Tree::new(&[
        ("", &[ALL_GIVEN]),
        ("slice", &[ALL_GIVEN, NOT_ROOT]),
        ("slice/scope", &[INNER, NOT_ROOT, ("memory.max", "max\n"), ("cpu.max", "max 100000\n")]),
    ]);
    let chosen = tree.choose("slice/scope");
    assert_eq!(chosen.dir, tree.0.path().join("slice"));
    assert_eq!(chosen.controllers, Controller::ALL);
    assert!(chosen.missing.is_empty());
}

#[test]
fn a_limited_group_is_not_left() {
    let tree =
        Tree::new(&[("", &[ALL_GIVEN]), ("service", &[INNER, NOT_ROOT, ("memory.max", "1073741824\n")])]);
    let chosen = tree.choose("service");
    assert_eq!(chosen.controllers, []);
    let words: Vec<String> = chosen.missing.iter().map(ToString::to_string).collect();
    assert!(words.iter().any(|word| word.ends_with("/service would escape its memory.max")), "{words:?}");
    assert!(words.iter().any(|word| word.contains("has processes of its own")), "{words:?}");
    assert!(chosen.missing.iter().all(|why| why.remedy().is_some()));
}

#[test]
fn controllers_are_enabled_where_nobody_lives() {
    let tree = Tree::new(&[
        ("", &[("cgroup.subtree_control", "\n"), INNER]),
        ("slice", &[NOT_ROOT, ("cgroup.subtree_control", "\n")]),
        ("slice/scope", &[INNER, NOT_ROOT]),
    ]);
    tree.choose("slice/scope");
    // A plain file holds what was written last; the kernel would have added all three.
    let written = fs::read_to_string(tree.0.path().join("slice/cgroup.subtree_control")).unwrap();
    assert_eq!(written, "+pids");
}

#[test]
fn the_tightest_limit_above_counts() {
    let tree = Tree::new(&[
        ("", &[]),
        ("a", &[("memory.max", "1000000\n"), ("memory.current", "700000\n")]),
        (
            "a/b",
            &[
                ("memory.max", "900000\n"),
                ("memory.current", "600000\n"),
                ("memory.stat", "anon 1\ninactive_file 100000\n"),
            ],
        ),
        ("a/b/c", &[("memory.max", "max\n"), ("memory.current", "5\n")]),
    ]);
    let top = tree.0.path().to_owned();
    let place = Place { version: Version::V2, dir: top.join("a/b/c"), top: top.clone() };
    let expected = Headroom { dir: top.join("a"), limit: 1_000_000, left: 300_000 };
    assert_eq!(headroom::tightest(&place), Some(expected));
}

#[test]
fn a_vmm_has_room_beside_its_guest() {
    let limits = Limits::of_vmm(crate::spec::Resources { vcpus: 2, ..Default::default() });
    assert_eq!(limits, Limits { memory_bytes: (256 + 8 + 256) << 20, cpu_percent: 250, pids: 98 });
}

/// A home with one machine's folder, whose groups are removed when the test ends, however it ends.
struct Machine {
    home: Home,
    dir: PathBuf,
    _root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(&root.path().join("home")).unwrap();
        let dir = home.machine("0123abcd");
        fs::create_dir(&dir).unwrap();
        Self { home, dir, _root: root }
    }

    /// The machine's group, or nothing, which is counted, where this user is given none with the controller.
    fn group(&self, limits: &Limits, needed: Controller) -> Option<Group> {
        let group = Group::create(&self.home, &self.dir, "0123abcd", limits);
        if !group.parts.iter().any(|part| part.controllers.contains(&needed)) {
            // Root makes groups wherever there are any: then it is casemate's fault, or a container's.
            assert!(!rustix::process::geteuid().is_root(), "{:?}", group.missing());
            cannot_run(&format!("this user can make no group with the {needed} controller"));
            return None;
        }
        Some(group)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        sweep(&self.dir);
    }
}

/// A process that is killed when it is dropped. It begins when its standard input ends.
struct Guest(Child);

impl Guest {
    fn new(script: &str) -> Self {
        let script = format!("read -r line; {script}");
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn begin(&mut self) {
        drop(self.0.stdin.take());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const LIMITS: Limits = Limits { memory_bytes: 48 << 20, cpu_percent: 10, pids: 8 };

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_process_that_exceeds_its_memory_is_killed() {
    use std::os::unix::process::ExitStatusExt;
    let machine = Machine::new();
    let Some(mut group) = machine.group(&LIMITS, Controller::Memory) else { return };
    // Reads a line without an end into its memory.
    let mut guest = Guest::new("exec tail -n 1 /dev/zero");
    group.admit(guest.0.id());
    assert_eq!(group.oom_kills(), Some(0));
    guest.begin();
    assert_eq!(guest.0.wait().unwrap().signal(), Some(9));
    assert_eq!(group.oom_kills(), Some(1));
}

#[test]
fn a_process_that_wants_more_processor_time_waits() {
    let machine = Machine::new();
    let Some(mut group) = machine.group(&LIMITS, Controller::Cpu) else { return };
    let mut guest = Guest::new("while :; do :; done");
    group.admit(guest.0.id());
    guest.begin();
    let part = group.parts.iter().find(|part| part.controllers.contains(&Controller::Cpu)).unwrap();
    wait_until("throttling", || {
        let stat = fs::read_to_string(part.dir.join("cpu.stat")).unwrap();
        let throttled = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap();
        throttled.trim().parse::<u64>().unwrap() > 2
    });
}

#[test]
fn a_group_holds_so_many_threads_and_no_more() {
    let machine = Machine::new();
    let Some(mut group) = machine.group(&LIMITS, Controller::Pids) else { return };
    let mut guest = Guest::new("for n in 1 2 3 4 5 6 7 8 9; do sleep 60 & done; sleep 60");
    group.admit(guest.0.id());
    guest.begin();
    let part = group.parts.iter().find(|part| part.controllers.contains(&Controller::Pids)).unwrap();
    wait_until("a refused fork", || {
        let events = fs::read_to_string(part.dir.join("pids.events")).unwrap();
        events.lines().any(|line| line.strip_prefix("max ").is_some_and(|count| count != "0"))
    });
    // The sleeping ones, too, are gone with the group.
    assert!(sweep(&machine.dir));
    assert!(!part.dir.exists());
}

#[test]
fn a_group_that_a_killed_supervisor_left_is_removed_with_what_is_in_it() {
    let machine = Machine::new();
    let Some(mut group) = machine.group(&LIMITS, Controller::Memory) else { return };
    let mut guest = Guest::new("sleep 60");
    group.admit(guest.0.id());
    let dirs: Vec<PathBuf> = group.parts.iter().map(|part| part.dir.clone()).collect();
    assert!(dirs.iter().all(|dir| dir.exists()));
    drop(group);
    // What a registry of a later command does: it knows the folder and nothing else.
    crate::registry::tidy_ended(&machine.dir);
    assert!(dirs.iter().all(|dir| !dir.exists()));
    assert!(!guest.0.wait().unwrap().success());
    assert_eq!(fs::read_dir(&machine.dir).unwrap().count(), 0);
}

#[test]
fn a_group_can_be_made_again_and_a_probe_leaves_nothing() {
    let machine = Machine::new();
    let Some(first) = machine.group(&LIMITS, Controller::Memory) else { return };
    let second = machine.group(&LIMITS, Controller::Memory).unwrap();
    assert_eq!(first.parts.len(), second.parts.len());
    Group::probe(&machine.home, &LIMITS);
    let parent = first.parts[0].dir.parent().unwrap();
    let probe = name(&machine.home, &format!("probe{}", std::process::id()));
    assert!(!parent.join(probe).exists());
}

#[test]
fn a_note_that_names_foreign_folders_removes_nothing() {
    let machine = Machine::new();
    let other = tempfile::tempdir().unwrap();
    let dir = other.path().join("casemate-00000000-0123abcd");
    fs::create_dir(&dir).unwrap();
    let victim = Guest::new("sleep 60");
    fs::write(dir.join("cgroup.procs"), format!("{}\n", victim.0.id())).unwrap();
    remains::note(&machine.dir, &[&dir, Path::new("/sys/fs/cgroup")]).unwrap();
    assert!(sweep(&machine.dir));
    assert!(dir.exists() && Path::new(&format!("/proc/{}/exe", victim.0.id())).exists());
}
