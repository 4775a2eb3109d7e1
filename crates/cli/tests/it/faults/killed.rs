//! What a call is told whose machine is killed under it; what is left is the matter of [`crate::kill`].

use super::{assert_fails, assert_nothing_left, launch};
use crate::{
    home::{Home, casemate, finish},
    program::Program,
    support::{eventually, signal},
};
use casemate_testkit::LineClient;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, Instant},
};

/// A call of a minute, during which something is done; it ends long before.
fn interrupted_call(home: &Home, meanwhile: impl FnOnce(&Value)) -> crate::home::Finished {
    let record = home.machine_record("m");
    thread::scope(|scope| {
        let call = home.command(&["call", "m", "sleep", r#"{"ms": 60000}"#]);
        let call = scope.spawn(|| finish(call, b""));
        // The call is under way in the server; a call that has not come so far fails the same.
        thread::sleep(Duration::from_millis(300));
        let since = Instant::now();
        meanwhile(&record);
        let called = call.join().unwrap();
        assert!(since.elapsed() < Duration::from_secs(20), "told after {:?}", since.elapsed());
        called
    })
}

fn pid(record: &Value, whose: &str) -> u32 {
    u32::try_from(record[whose].as_u64().unwrap()).unwrap()
}

#[test]
fn a_supervisor_that_is_killed_while_a_call_waits() {
    let home = Home::new();
    launch(&home, "m");
    let called = interrupted_call(&home, |record| signal(pid(record, "supervisor_pid"), Signal::KILL));
    assert_fails(&called, 5, &["machine m gave no answer", "its supervisor was killed", "hint: "]);
    assert_eq!(casemate(&home, &["status"]).code, 0);
    assert_nothing_left(&home);
}

#[test]
fn a_vmm_that_is_killed_while_a_call_waits() {
    let home = Home::new();
    launch(&home, "m");
    let called = interrupted_call(&home, |record| signal(pid(record, "pid"), Signal::KILL));
    assert_fails(&called, 5, &["machine m gave no answer", "VMM ended (signal: 9 (SIGKILL))", "hint: "]);
    assert_nothing_left(&home);
}

#[test]
fn an_agent_that_dies_while_a_call_waits() {
    let home = Home::new();
    launch(&home, "m");
    let called = interrupted_call(&home, |record| {
        let agent = eventually("the agent", || Program::Agent.find(pid(record, "pid")));
        agent.kill();
        // It dies of whatever it does next.
        assert_eq!(casemate(&home, &["call", "m", "echo", r#"{"message": "?"}"#]).code, 5);
    });
    let why = ["machine m gave no answer", "Kernel panic - not syncing: Attempted to kill init!", "hint: "];
    assert_fails(&called, 5, &why);
    assert_nothing_left(&home);
}

/// A conversation that is over is not begun anew behind its client's back, whatever is configured for machines that
/// stay; the client is told why it is over.
#[test]
fn a_vmm_that_is_killed_under_a_run() {
    let home = Home::new();
    home.write("config.toml", "[defaults]\nrestart = \"on-failure\"\n");
    let mut client = LineClient::spawn(&mut home.command(&["run", "--", "builtin:probe"])).unwrap();
    client.initialize("2025-06-18", json!({})).unwrap();
    let record = home.records().into_iter().find(|record| record["state"] == "ready").unwrap();
    signal(pid(&record, "pid"), Signal::KILL);
    let ended = client.wait().unwrap();
    let told = client.stderr();
    assert_eq!(ended.code(), Some(5), "{told}");
    assert!(told.contains("VMM ended (signal: 9 (SIGKILL))"), "{told}");
    assert_nothing_left(&home);
}
