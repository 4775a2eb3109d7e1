//! A home folder for one test, and the program run in it.
//!
//! Kernels, images and the cache are shared by all tests of a checkout, so that they are fetched once; the
//! program's own locks arbitrate. When a home is dropped its machines are stopped, and a test that left
//! anything behind fails.

use crate::support::PROBE;
use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{FileTypeExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

/// Fetching a kernel over a slow network, building an image and booting on a busy host.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How long processes may take to vanish after `stop --all` has returned.
const VANISH: Duration = Duration::from_secs(3);

/// What homes share.
const SHARED: [&str; 3] = ["kernels", "images", "cache"];

/// What stays of a machine that ended.
const KEPT: [&str; 2] = ["machine.json", "logs"];

/// Folders of the host that machines hide with their own.
const HIDDEN: [&str; 3] = ["/tmp", "/run", "/var/tmp"];

/// A home folder of one test.
pub struct Home {
    dir: tempfile::TempDir,
    /// Where the probe server was copied to, if it had to be.
    probe: OnceLock<tempfile::TempDir>,
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; a negative signal number where one ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Home {
    /// A home that shares kernels, images and the cache with other tests.
    pub fn new() -> Self {
        let home = Self::isolated();
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared");
        for name in SHARED {
            // `scripts/kernel.sh` runs these tests on a kernel of casemate's own.
            let given = (name == "kernels").then(|| std::env::var_os("CASEMATE_TEST_KERNELS")).flatten();
            let target = given.map_or_else(|| shared.join(name), PathBuf::from);
            fs::create_dir_all(&target).unwrap();
            symlink(target, home.path().join(name)).unwrap();
        }
        home
    }

    /// An empty home that shares nothing.
    pub fn isolated() -> Self {
        // The system's folder for temporary files: a socket's path has to be short.
        Self::below(&std::env::temp_dir())
    }

    /// An empty home in a folder.
    pub fn below(folder: &Path) -> Self {
        Self { dir: temporary(folder), probe: OnceLock::new() }
    }

    /// The probe server as a program of the host, which casemate did not supply, and which a machine finds at the
    /// same path wherever this checkout lies.
    pub fn probe(&self) -> String {
        let path = Path::new(PROBE);
        let path = if HIDDEN.iter().any(|hidden| path.starts_with(hidden)) {
            let own = std::env::var_os("HOME").expect("the user's folder, which is not hidden");
            let folder = self.probe.get_or_init(|| temporary(Path::new(&own)));
            let copy = folder.path().join("casemate-probe");
            fs::copy(path, &copy).unwrap();
            copy
        } else {
            path.to_owned()
        };
        path.into_os_string().into_string().unwrap()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file of the home.
    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.path().join(name), content).unwrap();
    }

    /// Reads a file of the home.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap()
    }

    /// What is written down about the machine that last had this name.
    pub fn machine_record(&self, name: &str) -> serde_json::Value {
        let of_name = self.records().into_iter().rfind(|record| record["name"] == name);
        of_name.unwrap_or_else(|| panic!("no machine {name}"))
    }

    /// What is written down about machines, live and ended, oldest first.
    pub fn records(&self) -> Vec<serde_json::Value> {
        let mut records: Vec<serde_json::Value> = entries(&self.path().join("machines"))
            .filter_map(|machine| fs::read(machine.join("machine.json")).ok())
            .filter_map(|text| serde_json::from_slice(&text).ok())
            .collect();
        records.sort_by_key(|record| record["started_at"].as_str().unwrap_or_default().to_owned());
        records
    }

    /// The program in this home, to be run otherwise than by [`casemate`].
    pub fn command<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate"));
        command.args(args.iter().map(AsRef::as_ref)).env("CASEMATE_HOME", self.path());
        for name in ["CONFIG", "ISOLATION", "BACKEND", "MEMORY", "VCPUS", "IDLE", "RESTART"] {
            command.env_remove(format!("CASEMATE_{name}"));
        }
        for name in ["MEMORY_LIMIT", "SUSPEND_DISK", "HEALTH_INTERVAL"] {
            command.env_remove(format!("CASEMATE_{name}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What machines have left: processes, mounts, sockets, files.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = processes_of(self.path());
        let vmms = self.records().into_iter().filter_map(|record| record["pid"].as_u64());
        left.extend(vmms.filter(|&pid| is_vmm(pid, self.path())).map(|pid| format!("VMM {pid}")));
        let home = self.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(&home)).map(|line| format!("mount {line}")));
        for machine in entries(&self.path().join("machines")).filter(|path| path.is_dir()) {
            for path in entries(&machine) {
                let kept = path.file_name().is_some_and(|name| KEPT.iter().any(|kept| name == *kept));
                let is_socket = fs::symlink_metadata(&path).is_ok_and(|meta| meta.file_type().is_socket());
                if !kept || is_socket {
                    left.push(format!("file {}", path.display()));
                }
            }
        }
        left
    }
}

fn temporary(folder: &Path) -> tempfile::TempDir {
    tempfile::Builder::new().prefix("casemate-test-").tempdir_in(folder).unwrap()
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.path().join("machines").exists() {
            casemate(self, &["stop", "--all"]);
        }
        let until = Instant::now() + VANISH;
        let mut left = self.leftovers();
        while !left.is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
            left = self.leftovers();
        }
        // A second panic would hide the first.
        if !left.is_empty() && !thread::panicking() {
            panic!("left behind in {}:\n{}", self.path().display(), left.join("\n"));
        }
    }
}

/// Runs the program in a home until it ends.
pub fn casemate<S: AsRef<str>>(home: &Home, args: &[S]) -> Finished {
    finish(home.command(args), b"")
}

/// Runs a command until it ends, with something on its standard input.
pub fn finish(mut command: Command, input: &[u8]) -> Finished {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let stdout = gather(child.stdout.take().unwrap());
    let stderr = gather(child.stderr.take().unwrap());
    let status = wait(&mut child, &format!("{command:?}"));
    // A program that does not read its input closes it; that is its right.
    let _ = writer.join().unwrap();
    Finished { code: status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn gather(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, what: &str) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let until = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| -status.signal().unwrap_or_default());
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{what} did not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Processes that name a folder in their command line or environment, or have a file of it open.
fn processes_of(folder: &Path) -> Vec<String> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let mentions =
        |path: PathBuf| fs::read(path).is_ok_and(|text| text.windows(needle.len()).any(|w| w == needle));
    let mut found = Vec::new();
    for process in entries(Path::new("/proc")) {
        let pid =
            process.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid.filter(|&pid| pid != std::process::id()) else { continue };
        let holds = || {
            entries(&process.join("fd")).any(|fd| fs::read_link(fd).is_ok_and(|to| to.starts_with(folder)))
        };
        if mentions(process.join("cmdline")) || mentions(process.join("environ")) || holds() {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            found.push(format!("process {pid} {}", String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

/// Whether a process is a VMM, and of this home: it has no environment and nothing of the home in its
/// command line, but its supervisor has; the id of one that ended may be another home's VMM now.
fn is_vmm(pid: u64, home: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let stat = read("stat");
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // One that is dead is init's to reap, which may take its time.
    if !read("comm").starts_with("qemu-system") || fields.next() == Some("Z") {
        return false;
    }
    let parent: u64 = fields.next().and_then(|parent| parent.parse().ok()).unwrap_or_default();
    let is_supervisor = fs::read(format!("/proc/{parent}/cmdline"))
        .is_ok_and(|line| line.split(|&byte| byte == 0).any(|word| word == b"__supervisor"));
    let environment = fs::read(format!("/proc/{parent}/environ")).unwrap_or_default();
    let of_home = [b"CASEMATE_HOME=", home.as_os_str().as_encoded_bytes()].concat();
    !is_supervisor || environment.split(|&byte| byte == 0).any(|variable| variable == of_home)
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[test]
fn a_process_that_was_left_is_found() {
    let home = Home::isolated();
    let mut command = Command::new("sleep");
    let mut child = command.arg("60").env("CASEMATE_HOME", home.path()).spawn().unwrap();
    let found = home.leftovers();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(found.iter().any(|line| line.contains(&format!("process {}", child.id()))), "{found:?}");
}

#[test]
fn a_file_that_a_machine_left_is_found() {
    let home = Home::isolated();
    let machine = home.path().join("machines/abc");
    fs::create_dir_all(machine.join("logs")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(machine.join("supervisor.sock")).unwrap();
    assert_eq!(home.leftovers().len(), 1);
    fs::remove_file(machine.join("supervisor.sock")).unwrap();
    fs::remove_dir_all(machine).unwrap();
}
