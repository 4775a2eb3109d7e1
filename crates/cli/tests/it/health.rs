//! Machines that hang or die are marked, told about, and started anew where that was asked for.

use crate::{
    home::{Finished, Home, casemate, finish},
    live::{answer, assert_answers, call, process},
    support::{eventually, is_alive, signal},
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// How often machines of these tests are asked for a sign of life: longer than a busy host takes for one.
const INTERVAL: Duration = Duration::from_secs(2);

/// Starts a machine of the probe server that is asked often.
fn launch(home: &Home, name: &str, options: &[&str]) -> Value {
    start(home, name, home.command(&[&["mcp", "microvm", "launch", name], options].concat()))
}

fn start(home: &Home, name: &str, mut command: Command) -> Value {
    command.env("CASEMATE_HEALTH_INTERVAL", format!("{}ms", INTERVAL.as_millis()));
    let launched = finish(command, b"");
    assert_eq!(launched.code, 0, "{launched:?}");
    home.machine_record(name)
}

/// Waits until the record's reason says something; gives the record.
fn told(home: &Home, name: &str, what: &str) -> Value {
    eventually(what, || {
        let record = home.machine_record(name);
        record["reason"].as_str().is_some_and(|reason| reason.contains(what)).then_some(record)
    })
}

#[test]
fn a_vmm_that_hangs_is_marked_within_two_intervals_and_then_over() {
    let home = Home::new();
    let record = launch(&home, "m", &[]);
    signal(process(&record, "pid"), Signal::STOP);
    let since = Instant::now();
    let marked = told(&home, "m", "agent has not answered a ping");
    // A moment more: the host is busy.
    assert!(since.elapsed() < 2 * INTERVAL + INTERVAL / 2, "marked after {:?}", since.elapsed());
    assert_eq!(marked["state"], "ready", "{marked}");
    let over = eventually("the machine's end", || {
        let record = home.machine_record("m");
        (record["state"] == "failed").then_some(record)
    });
    assert!(over["reason"].as_str().unwrap().contains("agent did not answer within"), "{over}");
    assert_eq!(over["restarts"], 0);
    eventually("the VMM's end", || (!is_alive(process(&record, "pid"))).then_some(()));
    eventually("nothing left", || home.leftovers().is_empty().then_some(()));
}

#[test]
fn a_vmm_that_hangs_for_a_while_only_is_well_again() {
    let home = Home::new();
    let record = launch(&home, "m", &[]);
    signal(process(&record, "pid"), Signal::STOP);
    told(&home, "m", "agent has not answered a ping");
    signal(process(&record, "pid"), Signal::CONT);
    eventually("a machine that is well again", || {
        let record = home.machine_record("m");
        assert_eq!(record["state"], "ready", "{record}");
        record["reason"].is_null().then_some(())
    });
    assert_answers(&home, "m");
    assert_eq!(home.machine_record("m")["pid"], record["pid"]);
}

/// Starts a machine whose server then hangs.
fn launch_hanging(home: &Home, options: &[&str]) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/announcer");
    let added = casemate(home, &["add", "announcer", &format!("dir:{}", folder.display())]);
    assert_eq!(added.code, 0, "{added:?}");
    let record = start(home, "announcer", home.command(&[&["launch", "announcer"], options].concat()));
    let called = casemate(home, &["call", "announcer", "hang", "--timeout", "1"]);
    assert_eq!(called.code, 5, "{called:?}");
    record
}

/// A server that is busy is not dead: it may have much to do. Whoever looks at the machine learns of it.
#[test]
fn a_server_that_hangs_is_marked_and_not_killed() {
    let home = Home::new();
    let record = launch_hanging(&home, &[]);
    told(&home, "announcer", "server has not answered a ping");
    let until = Instant::now() + 3 * INTERVAL;
    while Instant::now() < until {
        let now = home.machine_record("announcer");
        assert_eq!((&now["state"], &now["pid"]), (&"ready".into(), &record["pid"]), "{now}");
        thread::sleep(Duration::from_millis(50));
    }
    let status = casemate(&home, &["status", "--json"]);
    assert!(status.stdout.contains("server has not answered a ping"), "{status:?}");
}

#[test]
fn a_server_that_hangs_is_started_anew_where_that_was_asked_for() {
    let home = Home::new();
    let record = launch_hanging(&home, &["--restart", "on-failure"]);
    let again = restarted(&home, "announcer", 1);
    assert!(again["reason"].as_str().unwrap().contains("server did not answer within"), "{again}");
    assert_ne!(again["pid"], record["pid"]);
    assert_answers(&home, "announcer");
}

#[test]
fn a_vmm_that_is_killed_is_started_anew_where_that_was_asked_for() {
    let home = Home::new();
    let mut record = launch(&home, "m", &["--restart", "on-failure"]);
    for restarts in 1..=2 {
        assert_eq!(answer(&home, "m", "counter", "{}")["count"], 1);
        signal(process(&record, "pid"), Signal::KILL);
        record = restarted(&home, "m", restarts);
        assert!(record["reason"].as_str().unwrap().contains("VMM ended (signal: 9 (SIGKILL))"), "{record}");
        assert_eq!(record["start"], "restored");
    }
    assert_answers(&home, "m");
}

#[test]
fn a_vmm_that_is_killed_is_over_where_nothing_was_asked_for() {
    let home = Home::new();
    let record = launch(&home, "m", &[]);
    signal(process(&record, "pid"), Signal::KILL);
    let over = told(&home, "m", "VMM ended (signal: 9 (SIGKILL))");
    assert_eq!((&over["state"], &over["restarts"]), (&"failed".into(), &0.into()), "{over}");
    eventually("nothing left", || home.leftovers().is_empty().then_some(()));
    // A call says that there is none, and starts none in silence.
    assert_eq!(call(&home, "m", "echo", "{}").code, 3);
}

#[test]
fn a_server_that_ends_well_is_not_started_anew() {
    let home = Home::new();
    launch(&home, "m", &["--restart", "on-failure"]);
    assert_eq!(call(&home, "m", "exit", r#"{"code": 0}"#).code, 5);
    let over = told(&home, "m", "exited with status 0");
    assert_eq!((&over["state"], &over["restarts"]), (&"failed".into(), &0.into()), "{over}");
}

#[test]
fn a_machine_that_always_fails_is_given_up() {
    let home = Home::new();
    launch(&home, "m", &["--restart", "on-failure"]);
    let mut restarts = 0;
    let over = eventually("the end", || {
        let record = home.machine_record("m");
        if record["state"] == "failed" {
            return Some(record);
        }
        if record["state"] == "ready" && record["restarts"] == restarts {
            let crashed: Finished = call(&home, "m", "crash", r#"{"kind": "abort"}"#);
            assert_eq!(crashed.code, 5, "{crashed:?}");
            restarts += 1;
        }
        None
    });
    assert_eq!(over["restarts"], 5);
    let reason = over["reason"].as_str().unwrap();
    let why = "5 times in a row it failed and was started anew; the last time: server was ended by signal 6";
    assert!(reason.contains(why), "{reason}");
    eventually("nothing left", || home.leftovers().is_empty().then_some(()));
}

/// While a machine waits to be started anew it can be stopped.
#[test]
fn a_machine_is_stopped_between_two_lives() {
    let home = Home::new();
    let record = launch(&home, "m", &["--restart", "on-failure"]);
    signal(process(&record, "pid"), Signal::KILL);
    told(&home, "m", "started anew in 1 s");
    let stopped = casemate(&home, &["stop", "m"]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    assert_eq!(home.machine_record("m")["state"], "stopped");
    eventually("nothing left", || home.leftovers().is_empty().then_some(()));
}

/// Waits until a machine is ready in another life.
fn restarted(home: &Home, name: &str, restarts: u64) -> Value {
    eventually("a machine that was started anew", || {
        let record = home.machine_record(name);
        assert_ne!(record["state"], "failed", "{record}");
        (record["state"] == "ready" && record["restarts"] == restarts).then_some(record)
    })
}
