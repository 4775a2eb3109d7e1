//! The wall around installers, tried from inside with a shell. Where the test allows, the same script is run
//! without the wall, to show that it would notice.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use casemate_image::confine::{ConfineError, Confinement, Endpoint, Limits, Outcome};
use casemate_image::store::Store;

use crate::home::{Home, shared_home};
use crate::image::{again, built, eventually, request};

/// A root with `bash` and nothing else, and a folder that may be written.
struct Room {
    _home: Home,
    root: PathBuf,
    folder: tempfile::TempDir,
}

impl Room {
    fn new() -> Room {
        let home = shared_home();
        let store = Store::open(home.path()).unwrap();
        let root = store.unpacked(&built(&store, &request("bash")).unwrap()).unwrap();
        Room { _home: home, root, folder: tempfile::tempdir().unwrap() }
    }

    fn run(&self, script: &str, endpoints: &[Endpoint], limits: Limits) -> Result<Outcome, ConfineError> {
        let argv = ["/bin/bash", "-c", script].map(str::to_owned);
        let confinement = Confinement {
            root: &self.root,
            folders: &[(self.folder.path(), "/app")],
            argv: &argv,
            env: &[],
            cwd: "/app",
            endpoints,
            limits,
        };
        confinement.run(&mut std::io::sink())
    }

    fn says(&self, script: &str, endpoints: &[Endpoint]) -> Outcome {
        self.run(script, endpoints, Limits::default()).unwrap()
    }
}

fn without_wall(script: &str) -> String {
    let output = Command::new("/bin/bash").args(["-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A server that greets whoever connects, and where it is.
fn greeter() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut request = [0; 512];
                let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
                let count = stream.read(&mut request).unwrap_or(0);
                let first =
                    String::from_utf8_lossy(&request[..count]).lines().next().unwrap_or_default().to_owned();
                let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\ngreetings to [{first}]\n");
            });
        }
    });
    Endpoint { host: "127.0.0.1".to_owned(), port }
}

#[test]
fn sees_only_its_tree() {
    let secret = tempfile::tempdir().unwrap();
    let secret = secret.path().join("secret");
    std::fs::write(&secret, "the host's secret").unwrap();
    let script = format!(
        "shopt -s nullglob dotglob; echo \"secret=$(<{0})\" 2>&1; echo home=$HOME: $HOME/*; echo processes: /proc/[0-9]*; \
         echo roots: /*; echo devices: /dev/*; echo host=$HOSTNAME; env=(${{!CASEMATE*}} ${{!SSL*}}); echo env=${{env[*]}}; \
         echo > made && echo wrote; kill -9 {1} 2>/dev/null && echo killed",
        secret.display(),
        std::process::id(),
    );
    let inside = Room::new().says(&script, &[]).tail;
    assert!(!inside.contains("the host's secret"), "{inside}");
    assert!(inside.contains("home=/home/casemate:\n"), "{inside}");
    assert!(inside.contains("processes: /proc/1\n"), "{inside}");
    assert!(
        inside.contains("devices: /dev/full /dev/null /dev/random /dev/shm /dev/urandom /dev/zero\n"),
        "{inside}"
    );
    assert!(inside.contains("env=\n") && inside.contains("wrote") && !inside.contains("killed"), "{inside}");
    assert!(inside.contains("host=casemate-build"), "{inside}");

    let outside =
        without_wall(&format!("echo \"secret=$(<{})\"; echo processes: /proc/[0-9]*", secret.display()));
    assert!(outside.contains("the host's secret") && outside.contains("/proc/1 "), "{outside}");
}

#[test]
fn reaches_the_registries_only() {
    let (allowed, other) = (greeter(), greeter());
    let direct =
        |to: &Endpoint| format!("(exec 3<>/dev/tcp/127.0.0.1/{}) 2>/dev/null && echo reached", to.port);
    let through = |request: String| {
        format!(
            "exec 4<>/dev/tcp/127.0.0.1/3128; printf '{request}\\r\\n\\r\\n' >&4; while read -r -t 5 line <&4; do echo \"$line\"; done; exec 4>&-;"
        )
    };
    let tunnel = |to: &Endpoint| {
        format!(
            "exec 4<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT {to} HTTP/1.1\\r\\n\\r\\n' >&4; read -r line <&4; echo \"$line\"; \
             read -r line <&4; echo tunnelled >&4; while read -r -t 5 line <&4; do echo \"$line\"; done; exec 4>&-;"
        )
    };
    let room = Room::new();

    let inside = room.says(&direct(&allowed), std::slice::from_ref(&allowed));
    assert!(!inside.tail.contains("reached"), "{}", inside.tail);
    assert!(without_wall(&direct(&allowed)).contains("reached"));

    let inside = room.says(&tunnel(&allowed), std::slice::from_ref(&allowed));
    assert!(inside.tail.contains("greetings to [tunnelled]"), "{}", inside.tail);
    let plain = through(format!("GET http://{allowed}/x HTTP/1.1"));
    let inside = room.says(&plain, std::slice::from_ref(&allowed));
    assert!(inside.tail.contains("greetings to [GET /x HTTP/1.1]"), "{}", inside.tail);
    assert!(inside.refused.is_empty());

    let script =
        tunnel(&other) + &through(format!("GET http://{other}/ HTTP/1.1")) + &through("nonsense".to_owned());
    let inside = room.says(&script, std::slice::from_ref(&allowed));
    assert_eq!(inside.tail.matches("403 Forbidden").count(), 2, "{}", inside.tail);
    assert_eq!(inside.tail.matches("400 Bad Request").count(), 1, "{}", inside.tail);
    assert!(!inside.tail.contains("greetings"), "{}", inside.tail);
    assert_eq!(inside.refused.into_iter().collect::<Vec<_>>(), [other.to_string()]);
}

#[test]
fn has_no_privileges() {
    let script = "while read -r line; do echo \"$line\"; done < /proc/self/status; echo uid=$EUID; \
                  for place in /x /usr/x /etc/passwd /dev/x /proc/sys/kernel/hostname; do (echo x > $place) 2>/dev/null && echo wrote $place; done; \
                  echo limits: $(ulimit -c) $(ulimit -n)";
    let inside = Room::new().says(script, &[]).tail;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(inside.contains(&format!("{set}:\t0000000000000000")), "{inside}");
    }
    assert!(inside.contains("NoNewPrivs:\t1") && inside.contains("uid=65533"), "{inside}");
    assert!(inside.contains("Groups:\t\n") || inside.contains("Groups:\n"), "{inside}");
    assert!(!inside.contains("wrote"), "{inside}");
    assert!(inside.contains("limits: 0 8192"), "{inside}");
}

#[test]
fn is_stopped_in_time() {
    let room = Room::new();
    let limits = Limits { time: Duration::from_secs(1), ..Limits::default() };
    let result = room.run("while :; do :; done", &[], limits);
    assert!(matches!(result, Err(ConfineError::Time { .. })), "{result:?}");

    let limits = Limits { tree_bytes: 1 << 20, ..Limits::default() };
    let script = "text=$(printf '%01000000d' 1); while :; do echo $text >> file; done";
    let result = room.run(script, &[], limits);
    assert!(matches!(result, Err(ConfineError::Size { .. })), "{result:?}");

    let limits = Limits { file_bytes: 4096, ..Limits::default() };
    let outcome = room.run("printf '%09000d' 1 > big; echo survived", &[], limits).unwrap();
    assert!(
        !outcome.status.success() || std::fs::metadata(room.folder.path().join("big")).unwrap().len() <= 4096
    );

    let mut log = Vec::new();
    let argv =
        ["/bin/bash", "-c", "for i in {1..2000}; do echo 0123456789; done; echo last"].map(str::to_owned);
    let limits = Limits { output_bytes: 100, ..Limits::default() };
    let confinement = Confinement {
        root: &room.root,
        folders: &[],
        argv: &argv,
        env: &[],
        cwd: "/",
        endpoints: &[],
        limits,
    };
    let outcome = confinement.run(&mut log).unwrap();
    assert_eq!(log.len(), 100);
    assert!(outcome.tail.ends_with("last\n"));
}

#[test]
fn what_cannot_start_says_why() {
    let room = Room::new();
    let run = |root: &Path, program: &str| {
        let argv = [program.to_owned()];
        let limits = Limits::default();
        Confinement { root, folders: &[], argv: &argv, env: &[], cwd: "/", endpoints: &[], limits }
            .run(&mut std::io::sink())
            .unwrap_err()
    };
    let error = run(&room.root, "/bin/none");
    assert!(matches!(&error, ConfineError::Start { program, .. } if program == "/bin/none"), "{error}");
    let error = run(Path::new("/no/such/root"), "/bin/bash");
    assert!(matches!(&error, ConfineError::Wall { step, .. } if step == "mount the build root"), "{error}");
}

/// Processes of this host whose command line holds the marker.
fn processes(marker: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let command_lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    command_lines.filter(|line| String::from_utf8_lossy(line).contains(marker)).count()
}

#[test]
fn nothing_outlives_it() {
    let room = Room::new();
    let marker = format!("casemate-test-left-{}", std::process::id());
    let script = format!("(while :; do :; done) & (trap '' TERM INT HUP; while :; do :; done) & : {marker}");
    let outcome = room.says(&script, &[]);
    assert!(outcome.status.success());
    assert_eq!(processes(&marker), 0);
}

#[test]
fn it_ends_with_a_killed_caller() {
    const MARKER: &str = "CASEMATE_TEST_KILLED_CALLER";
    if let Ok(marker) = std::env::var(MARKER) {
        // The caller: confined for ever, until it is killed.
        let _ = Room::new().run(&format!("while :; do :; done; : {marker}"), &[], Limits::default());
        return;
    }
    let marker = format!("casemate-test-killed-{}", std::process::id());
    let mut caller = again("confine::it_ends_with_a_killed_caller", &[(MARKER, &marker)]).spawn().unwrap();
    eventually("the confined program", || processes(&marker) > 0);
    caller.kill().unwrap();
    caller.wait().unwrap();
    eventually("its end", || processes(&marker) == 0);
}
