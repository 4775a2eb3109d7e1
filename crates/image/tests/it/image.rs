//! Building images in tests, and running what is in them.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use casemate_image::build::{BuildError, BuildRequest, build};
use casemate_image::progress::Progress;
use casemate_image::registry::address::Registries;
use casemate_image::source::Source;
use casemate_image::store::{Image, Store};

use crate::home::{Home, private_home, shared_home};

/// A generous bound on how long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Keeps what a build said.
#[derive(Default)]
pub struct Heard {
    pub steps: Mutex<Vec<String>>,
    pub notes: Mutex<Vec<String>>,
}

impl Progress for Heard {
    fn step(&self, what: &str) {
        self.steps.lock().unwrap().push(what.to_owned());
    }

    fn bytes(&self, _done: u64, _total: Option<u64>) {}

    fn note(&self, message: &str) {
        self.notes.lock().unwrap().push(message.to_owned());
    }
}

impl Heard {
    pub fn noted(&self, text: &str) -> bool {
        self.notes.lock().unwrap().iter().any(|note| note.contains(text))
    }
}

/// A home that shares downloads and what they were resolved to, and nothing that was made of them.
pub fn downloads_home() -> Home {
    let (shared, home) = (shared_home(), private_home());
    let cache = home.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    for folder in ["debian", "debs", "files", "lockfiles", "npm", "resolved", "runtimes", "uv"] {
        let shared = std::fs::canonicalize(shared.path().join("cache")).unwrap().join(folder);
        std::fs::create_dir_all(&shared).unwrap();
        std::os::unix::fs::symlink(shared, cache.join(folder)).unwrap();
    }
    home
}

/// A request for what would be typed in a shell.
pub fn request(line: &str) -> BuildRequest<'static> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let (source, args) = Source::from_command(&words).unwrap();
    BuildRequest { args, ..BuildRequest::new(source, b"no program") }
}

pub fn built(store: &Store, request: &BuildRequest<'_>) -> Result<Image, BuildError> {
    build(store, &Registries::default(), request, &Heard::default())
}

/// Addresses at which nobody listens: what works with them needs no network.
pub fn nowhere() -> Registries {
    let address = || Some("http://127.0.0.1:9/".to_owned());
    Registries { npm: address(), pypi: address(), debian: address() }
}

/// Runs a program of an unpacked image, in a root of its own, without privileges.
pub fn in_tree(tree: &Path, image: &Image, argv: &[String]) -> Command {
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--root"]).arg(tree);
    command.arg("--wd").arg(&image.meta.cwd).args(argv).env_clear().envs(&image.meta.env);
    command
}

/// What a program of an image prints.
pub fn output(store: &Store, image: &Image, argv: &[&str], input: &str) -> String {
    let argv: Vec<String> = argv.iter().map(|word| word.to_string()).collect();
    let mut command = in_tree(&store.unpacked(image).unwrap(), image, &argv);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What the image's server answers to `initialize`.
pub fn initialize(store: &Store, image: &Image) -> serde_json::Value {
    let mut command = in_tree(&store.unpacked(image).unwrap(), image, &image.meta.command);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let message = serde_json::json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    });
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{message}").unwrap();
    let mut output = child.stdout.take().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = Vec::new();
        let mut byte = [0];
        while output.read(&mut byte).is_ok_and(|count| count == 1) && byte != *b"\n" {
            line.push(byte[0]);
        }
        // The test may have given up waiting.
        let _ = send.send(line);
    });
    let line = receive.recv_timeout(ANSWER);
    child.kill().unwrap();
    child.wait().unwrap();
    serde_json::from_slice(&line.expect("no answer in time")).unwrap()
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs one test of this program again, as a process of its own, with another environment.
pub fn again(test: &str, env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).envs(env.iter().copied());
    command
}

/// A folder with the only programs that a build may use, for a `PATH` without Node, npm, Python and pip.
pub fn bare_path() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for program in ["mkfs.erofs", "fsck.erofs", "gpgv"] {
        let found =
            ["/usr/bin", "/usr/sbin", "/usr/local/bin"].map(|place| PathBuf::from(place).join(program));
        if let Some(path) = found.iter().find(|path| path.is_file()) {
            std::os::unix::fs::symlink(path, folder.path().join(program)).unwrap();
        }
    }
    folder
}
