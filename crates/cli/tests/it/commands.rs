//! Commands that boot real machines, all with the built-in probe server. A home that is dropped stops its
//! machines and fails the test if anything of them is left.

use crate::home::{Home, casemate, finish};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, Instant},
};

const SERVER: &str = "[[servers]]\nid = \"probe\"\nsource = \"builtin:probe\"\n";

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

fn status(home: &Home) -> Value {
    parsed(&casemate(home, &["status", "--json"]).stdout)
}

/// The object that a tool of the probe server wrote as its only text.
fn answer(stdout: &str) -> Value {
    parsed(parsed(stdout)["content"][0]["text"].as_str().unwrap())
}

#[test]
fn the_seeds_walk_through_works() {
    let home = Home::new();
    let added = casemate(&home, &["mcp", "add", "my-server", "--url", "stdio", "--isolation", "microvm"]);
    assert_eq!(added.code, 0, "{}", added.stderr);
    assert!(added.stderr.contains("built-in probe server"), "{}", added.stderr);
    let launched =
        casemate(&home, &["mcp", "microvm", "launch", "my-server", "--memory", "128", "--vcpus", "2"]);
    assert_eq!(launched.code, 0, "{}", launched.stderr);

    let machines = status(&home);
    let machine = &machines[0];
    assert_eq!(machine["name"], "my-server");
    assert_eq!(machine["state"], "ready");
    assert_eq!((&machine["memory_mb"], &machine["vcpus"]), (&json!(128), &json!(2)));
    assert!((100..200).contains(&machine["cid"].as_u64().unwrap()));

    let echo = casemate(&home, &["mcp", "call", "my-server", "echo", r#"{"message": "hi"}"#, "--json"]);
    assert_eq!((echo.code, &answer(&echo.stdout)["message"]), (0, &json!("hi")), "{}", echo.stderr);
    let tools = parsed(&casemate(&home, &["tools", "my-server", "--json"]).stdout);
    assert!(tools.as_array().unwrap().iter().any(|tool| tool["name"] == "get_server_info"), "{tools}");

    let unknown = casemate(&home, &["call", "my-server", "nope", "--json"]);
    assert_eq!((unknown.code, &parsed(&unknown.stdout)["error"]["code"]), (1, &json!(-32602)));
    let failed = casemate(&home, &["call", "my-server", "read_file", r#"{"path": "/nowhere"}"#, "--json"]);
    assert_eq!((failed.code, &parsed(&failed.stdout)["isError"]), (1, &json!(true)));
    let again = casemate(&home, &["launch", "my-server"]);
    assert_eq!(again.code, 3, "{}", again.stderr);
    assert!(again.stderr.contains("hint: casemate stop my-server"), "{}", again.stderr);

    let stopped = casemate(&home, &["mcp", "microvm", "stop", "my-server"]);
    assert_eq!((stopped.code, stopped.stdout.as_str()), (0, "Stopped my-server\n"), "{}", stopped.stderr);
    assert_eq!(status(&home), json!([]));
    // A restored guest has nothing to say there; one that boots has.
    assert_eq!(casemate(&home, &["logs", "my-server", "--console"]).code, 0);
    let gone = casemate(&home, &["call", "my-server", "exit", r#"{"code": 7}"#, "--cold"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (5, ""), "{}", gone.stderr);
    let records = home.records();
    let ended = records.iter().rfind(|record| record["server"] == "my-server").unwrap();
    let console = casemate(&home, &["logs", ended["name"].as_str().unwrap(), "--console"]);
    assert!(console.code == 0 && !console.stdout.is_empty(), "{}", console.stderr);
}

#[test]
fn many_machines_answer_each_for_itself_and_stop_by_their_server() {
    let home = Home::new();
    home.write("config.toml", SERVER);
    let launched = casemate(&home, &["launch-many", "3", "--server", "probe", "--memory", "128", "--json"]);
    assert_eq!(launched.code, 0, "{}", launched.stderr);
    let machines = parsed(&launched.stdout);
    let cids: std::collections::BTreeSet<u64> =
        machines.as_array().unwrap().iter().map(|machine| machine["cid"].as_u64().unwrap()).collect();
    assert_eq!(cids.len(), 3);
    thread::scope(|scope| {
        let home = &home;
        for number in 1..=3 {
            scope.spawn(move || {
                let (name, message) =
                    (format!("probe-{number}"), format!("{{\"message\": \"to {number}\"}}"));
                let echo = casemate(home, &["call", &name, "echo", &message, "--json"]);
                assert_eq!(answer(&echo.stdout)["message"], format!("to {number}"), "{}", echo.stderr);
            });
        }
    });
    assert_eq!(casemate(&home, &["stop", "probe"]).code, 0);
    assert_eq!(status(&home), json!([]));
}

#[test]
fn a_call_starts_a_machine_of_its_own_and_leaves_none() {
    let home = Home::new();
    home.write("config.toml", SERVER);
    let line = ["call", "probe", "env", r#"{"name": "WHO"}"#, "--env", "WHO=me", "--memory", "128", "--json"];
    let called = casemate(&home, &line);
    assert_eq!(called.code, 0, "{}", called.stderr);
    assert!(called.stdout.contains("me"), "{}", called.stdout);
    assert_eq!(status(&home), json!([]));
}

#[test]
fn run_is_the_server_and_prints_nothing_else() {
    let home = Home::new();
    let call = |id: u32, tool: &str, arguments: Value| {
        let params = json!({"name": tool, "arguments": arguments});
        format!("{}\n", json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}))
    };
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
    let hello = format!("{hello}\n{}\n", json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));

    let said = hello.clone() + &call(2, "echo", json!({"message": "hi"}));
    let ended = finish(home.command(&["run", "--memory", "128", "--", "builtin:probe"]), said.as_bytes());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let lines: Vec<Value> = ended.stdout.lines().map(parsed).collect();
    assert_eq!(lines.iter().map(|line| line["id"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2)]);
    assert!(lines[1].to_string().contains("hi"), "{}", ended.stdout);

    // The client stays: the server's end is what ends this one.
    let mut command = home.command(&["run", "--memory", "128", "--", "builtin:probe"]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    command.stdin(reader);
    let child = command.spawn().unwrap();
    drop(command);
    let said = hello + &call(2, "exit", json!({"code": 7}));
    std::io::Write::write_all(&mut writer, said.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    drop(writer);
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("ended with exit code 7"), "{stderr}");
}

#[test]
fn an_interrupt_ends_a_start_and_leaves_nothing() {
    let home = Home::new();
    // Image and kernel first, so that the machine is there soon after the command.
    assert_eq!(casemate(&home, &["image", "build", "builtin:probe"]).code, 0);
    assert_eq!(casemate(&home, &["doctor"]).code, 0);
    let child = home.command(&["launch", "x", "--command", "builtin:probe"]).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while status(&home) == json!([]) {
        assert!(Instant::now() < until, "no machine appeared");
    }
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert_eq!(status(&home), json!([]));
    // The machine itself, or the one that was to become its template.
    let mut records = home.records();
    records.retain(|record| record["server"] == "x");
    assert!(!records.is_empty() && records.iter().all(|record| record["state"] == "stopped"), "{records:?}");
}

#[test]
fn a_server_that_ends_at_once_is_one_clear_error() {
    let home = Home::new();
    let failed = casemate(&home, &["launch", "x", "--command", "/bin/false", "--memory", "128"]);
    assert_eq!((failed.code, failed.stdout.as_str()), (5, ""), "{}", failed.stderr);
    assert_eq!(failed.stderr.matches("error: ").count(), 1, "{}", failed.stderr);
    assert!(failed.stderr.contains("status 1") && failed.stderr.contains("log: "), "{}", failed.stderr);
    assert_eq!(status(&home), json!([]));
}

#[test]
fn the_self_test_tells_the_truth_about_its_targets() {
    let home = Home::new();
    let tested = casemate(&home, &["test", "--json"]);
    let report = parsed(&tested.stdout);
    let met = report["targets"].as_object().unwrap().iter().all(|(name, target)| {
        let took = report[name].as_f64().unwrap();
        assert!(took > 0.0, "{report}");
        took <= target.as_f64().unwrap()
    });
    assert_eq!((tested.code, &report["passed"]), (i32::from(!met), &json!(met)), "{report}");
    assert!(report["first_connection_ms"].as_f64() >= report["launch_ms"].as_f64(), "{report}");
}

#[test]
fn doctor_finds_a_backend_that_runs() {
    let home = Home::new();
    let report = parsed(&casemate(&home, &["doctor", "--json"]).stdout);
    let names: Vec<&str> = report["backends"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backend| backend["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["firecracker", "qemu", "docker", "sandbox", "process"]);
    assert_eq!(
        (&report["default"], &report["backends"][1]["usable"]),
        (&json!("qemu"), &json!(true)),
        "{report}"
    );
}
