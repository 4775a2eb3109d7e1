//! The ten test ideas of the first guide to this system, on real guests and with assertions that can fail:
//! launch, request and response, routing, health, several servers at once, shutdown, errors, CIDs, limits,
//! mounts.

use crate::home::{Finished, Home, casemate};
use casemate_machine::{Record, Session, supervise::Request};
use casemate_proto::control::Limits;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::Path,
    thread,
    time::{Duration, Instant},
};

fn ok(finished: Finished) -> String {
    assert_eq!(finished.code, 0, "{}\n{}", finished.stdout, finished.stderr);
    finished.stdout
}

fn status(home: &Home) -> Vec<Value> {
    serde_json::from_str(&ok(casemate(home, &["status", "--json"]))).unwrap()
}

/// Starts a machine of the built-in probe server.
fn launch(home: &Home, name: &str, options: &[&str]) {
    let mut args = vec!["mcp", "microvm", "launch", name];
    args.extend(options);
    ok(casemate(home, &args));
}

/// What a tool says in its first content, as JSON where it is.
fn call(home: &Home, machine: &str, tool: &str, arguments: &Value) -> Value {
    let stdout = ok(casemate(home, &["call", machine, tool, &arguments.to_string(), "--json"]));
    let result: Value = serde_json::from_str(&stdout).unwrap();
    let text = result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text in {stdout}"));
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn record(home: &Home, name: &str) -> Record {
    serde_json::from_value(home.machine_record(name)).unwrap()
}

fn in_session<T>(home: &Home, record: &Record, work: impl AsyncFnOnce(Session) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let machines = casemate_machine::Home::open(home.path()).unwrap();
        work(Session::open(&machines, record).await.unwrap()).await
    })
}

fn alive(pid: u64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn launch_and_init() {
    let home = Home::new();
    launch(&home, "first", &[]);
    let machines = status(&home);
    assert_eq!(machines.len(), 1);
    let machine = &machines[0];
    assert_eq!((&machine["name"], &machine["state"]), (&json!("first"), &json!("ready")));
    assert_eq!((&machine["start"], &machine["cid"]), (&json!("restored"), &json!(100)));
    let pid = machine["pid"].as_u64().unwrap();
    let vmm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert!(vmm.starts_with("qemu-system"), "process {pid} is {vmm}");
    assert!(machine["rss_mb"].as_u64().unwrap() > 10);
    ok(casemate(&home, &["stop", "first"]));
    assert!(!alive(pid), "VMM {pid} outlived its machine");
    assert_eq!(home.machine_record("first")["state"], "stopped");
}

#[test]
fn request_and_response() {
    let home = Home::new();
    launch(&home, "m", &[]);
    let answer = call(&home, "m", "echo", &json!({"message": "grüße \u{1F980}\n\"quoted\""}));
    assert_eq!(answer["message"], "grüße \u{1F980}\n\"quoted\"");
    assert_eq!(call(&home, "m", "add", &json!({"a": 40, "b": 2}))["result"], 42);
    // One server process answers all of them: its counter goes on.
    let counted = [(); 3].map(|()| call(&home, "m", "counter", &json!({}))["count"].as_u64().unwrap());
    assert_eq!(counted, [1, 2, 3]);
    // What is no object never reaches a machine, and what the server refuses is told as it said it.
    assert_eq!(casemate(&home, &["call", "m", "echo", "[1]"]).code, 2);
    let refused = casemate(&home, &["call", "m", "no-such-tool", "{}", "--json"]);
    assert_eq!(refused.code, 1);
    let error: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(error["error"]["code"], -32602);
}

/// A call goes to a running machine that satisfies it, else to one of its own that is gone afterwards.
#[test]
fn service_routing_priority() {
    let home = Home::new();
    ok(casemate(&home, &["mcp", "add", "serving", "--url", "stdio", "--isolation", "microvm"]));
    let alone = [(); 2].map(|()| call(&home, "serving", "counter", &json!({}))["count"].as_u64().unwrap());
    assert_eq!(alone, [1, 1]);
    assert_eq!(status(&home), Vec::<Value>::new());
    ok(casemate(&home, &["launch", "serving"]));
    let kept = [(); 2].map(|()| call(&home, "serving", "counter", &json!({}))["count"].as_u64().unwrap());
    assert_eq!(kept, [1, 2]);
    // No weaker or other wall than the one asked for, and no machine by a name that was mistyped.
    let refused = casemate(&home, &["call", "serving", "counter", "{}", "--backend", "docker"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    let unknown = casemate(&home, &["launch", "servng"]);
    assert_eq!(unknown.code, 3);
    assert!(unknown.stderr.contains("serving"), "{}", unknown.stderr);
}

#[test]
fn health_check_monitoring() {
    let home = Home::new();
    launch(&home, "m", &[]);
    let machine = record(&home, "m");
    let healthy = in_session(&home, &machine, async |mut session| session.ping().await.unwrap());
    assert!(healthy.server.is_some(), "the server was not asked");
    // A machine whose processors stand still does not pass for healthy.
    in_session(&home, &machine, async |mut session| session.ask(&Request::Pause).await.unwrap());
    let paused = in_session(&home, &machine, async |mut session| session.ping().await);
    assert!(paused.is_err(), "a paused machine answered");
    in_session(&home, &machine, async |mut session| session.ask(&Request::Resume).await.unwrap());
    in_session(&home, &machine, async |mut session| session.ping().await.unwrap());
    // A VMM that is killed is noticed, and the machine is marked with the reason.
    let vmm = rustix::process::Pid::from_raw(machine.pid.unwrap() as i32).unwrap();
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while home.machine_record("m")["state"] != "failed" {
        assert!(Instant::now() < until, "the machine still looks alive");
        thread::sleep(Duration::from_millis(10));
    }
    let reason = home.machine_record("m")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("VMM ended"), "{reason}");
}

/// Eight machines at once answer interleaved calls, each with its own data.
#[test]
fn multiple_concurrent_servers() {
    let home = Home::new();
    ok(casemate(&home, &["mcp", "microvm", "launch-many", "8", "--memory", "128", "--batch", "4"]));
    let machines = status(&home);
    assert_eq!(machines.len(), 8);
    let cids: BTreeSet<u64> = machines.iter().map(|machine| machine["cid"].as_u64().unwrap()).collect();
    assert_eq!(cids.len(), 8, "{cids:?}");
    assert!(cids.iter().all(|cid| (100..=199).contains(cid)), "{cids:?}");
    let names: Vec<String> = machines.iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect();
    thread::scope(|scope| {
        for name in &names {
            let home = &home;
            scope.spawn(move || {
                for round in 1..=4u64 {
                    let own = format!("{name} {round}");
                    assert_eq!(call(home, name, "echo", &json!({"message": own}))["message"], own);
                    // Only this machine's calls were counted.
                    assert_eq!(call(home, name, "counter", &json!({}))["count"], round);
                    call(home, name, "write_file", &json!({"path": "/tmp/own", "content": own}));
                    let read = call(home, name, "read_file", &json!({"path": "/tmp/own"}));
                    assert_eq!(read["content"], own);
                }
            });
        }
    });
}

#[test]
fn graceful_shutdown_all() {
    let home = Home::new();
    ok(casemate(&home, &["mcp", "microvm", "launch-many", "3", "--memory", "128"]));
    let pids: Vec<u64> = status(&home).iter().map(|machine| machine["pid"].as_u64().unwrap()).collect();
    assert_eq!(pids.len(), 3);
    ok(casemate(&home, &["stop", "--all"]));
    for pid in pids {
        assert!(!alive(pid), "VMM {pid} was left");
    }
    assert_eq!(status(&home), Vec::<Value>::new());
    // A second stop has nothing to do, which is no failure.
    ok(casemate(&home, &["stop", "--all"]));
}

#[test]
fn error_recovery() {
    let home = Home::new();
    let embedded = "../../target/embedded/x86_64-unknown-linux-gnu/guest/casemate-probe";
    let probe = Path::new(env!("CARGO_MANIFEST_DIR")).join(embedded).canonicalize().unwrap();
    let probe = probe.to_str().unwrap();
    ok(casemate(&home, &["add", "broken", probe, "--", "--misbehave", "exit-at-once"]));
    let failed = casemate(&home, &["launch", "broken"]);
    assert_eq!(failed.code, 5, "{}", failed.stderr);
    assert!(failed.stderr.contains("server exited with status"), "{}", failed.stderr);
    assert_eq!(status(&home), Vec::<Value>::new());
    // What failed does not stand in the way of what works.
    launch(&home, "m", &[]);
    assert_eq!(call(&home, "m", "add", &json!({"a": 1, "b": 1}))["result"], 2);
}

#[test]
fn cid_allocation() {
    let home = Home::new();
    launch(&home, "a", &["--memory", "128"]);
    launch(&home, "b", &["--memory", "128"]);
    let cid = |name: &str| home.machine_record(name)["cid"].as_u64().unwrap();
    assert_eq!((cid("a"), cid("b")), (100, 101));
    // A CID is free again when its machine is gone, and not before.
    ok(casemate(&home, &["stop", "a"]));
    launch(&home, "c", &["--memory", "128"]);
    assert_eq!(cid("c"), 100);
}

#[test]
fn resource_limits_hold_inside() {
    let home = Home::new();
    launch(&home, "m", &["--memory", "192", "--vcpus", "2"]);
    let machine = &status(&home)[0];
    assert_eq!((&machine["memory_mb"], &machine["vcpus"]), (&json!(192), &json!(2)));
    let meminfo = call(&home, "m", "read_file", &json!({"path": "/proc/meminfo"}));
    let total =
        meminfo["content"].as_str().unwrap().split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    assert!((96 << 10..192 << 10).contains(&total), "{total} kB inside a machine of 192 MiB");
    let cpus = call(&home, "m", "read_file", &json!({"path": "/proc/cpuinfo"}));
    assert_eq!(cpus["content"].as_str().unwrap().matches("processor\t:").count(), 2);
    // A fork bomb ends at the limit of processes, which is a little below the kernel's own for so much memory, and
    // the machine lives on.
    let bomb = call(&home, "m", "fork_bomb", &json!({"limit": 5000}));
    assert!(bomb["forked"].as_u64().unwrap() <= Limits::default().processes, "{bomb}");
    assert!(bomb["refused"].is_string(), "{bomb}");
    assert_eq!(call(&home, "m", "add", &json!({"a": 1, "b": 1}))["result"], 2);
}

/// Nothing of the host is in the machine, and nothing in it can be changed but three small folders.
#[test]
fn mounts_and_hardening_inside() {
    let home = Home::new();
    launch(&home, "m", &[]);
    let who = call(&home, "m", "whoami", &json!({}));
    assert_ne!(who["uid"], 0, "{who}");
    assert_eq!((&who["no_new_privs"], &who["seccomp"]), (&json!(true), &json!(2)), "{who}");
    for set in ["effective", "permitted", "inheritable", "bounding", "ambient"] {
        assert_eq!(who["capabilities"][set], "0000000000000000", "{who}");
    }
    let done = |tool: &str, arguments: Value| {
        casemate(&home, &["call", "m", tool, &arguments.to_string()]).code == 0
    };
    let write = |path: &str| done("write_file", json!({"path": path, "content": "x"}));
    for path in ["/tmp/x", "/run/x", "/home/casemate/x"] {
        assert!(write(path), "{path} cannot be written");
    }
    for path in ["/x", "/usr/x", "/usr/bin/casemate-probe", "/etc/passwd", "/dev/vda", "/proc/sysrq-trigger"]
    {
        assert!(!write(path), "{path} was written");
    }
    let read = |path: &str| done("read_file", json!({"path": path}));
    assert!(read("/etc/passwd"));
    for path in
        ["/dev/vda", "/dev/vport0p1", "/dev/vport1p1", "/dev/mem", "/proc/1/environ", "/modules/order"]
    {
        assert!(!read(path), "{path} was read");
    }
    let interfaces = call(&home, "m", "read_file", &json!({"path": "/proc/net/dev"}));
    let devices: Vec<_> = interfaces["content"].as_str().unwrap().lines().skip(2).map(str::trim).collect();
    assert!(devices.iter().all(|line| line.starts_with("lo:")), "{devices:?}");
    // What a microVM cannot be given is refused and not dropped.
    let refused = casemate(&home, &["mcp", "microvm", "launch", "m2", "--mount", "/etc:/mnt:rw"]);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
}
