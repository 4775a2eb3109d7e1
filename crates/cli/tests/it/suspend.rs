//! Machines that nobody uses are suspended, and go on with their state when somebody does.

mod conversation;
mod trouble;

use crate::{
    home::{Home, casemate},
    live::{answer, assert_answers, call, folder, late_ms, launch, number, process, stop, template},
    support::{eventually, is_alive},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant, SystemTime},
};

/// After so long without a request machines of these tests are suspended.
const IDLE: &str = "400ms";
const IDLE_FOR: Duration = Duration::from_millis(400);

/// How wrong a clock may be that was set on a busy host.
const CLOCK_MS: i64 = 2000;

/// Waits until a machine is suspended, without asking it anything.
fn suspended(home: &Home, name: &str) -> Value {
    eventually("a suspended machine", || {
        let record = home.machine_record(name);
        assert!(record["state"] == "ready" || record["state"] == "suspended", "{record}");
        (record["state"] == "suspended").then_some(record)
    })
}

/// Memory of a process that is nobody else's, in KiB.
fn private_kb(pid: u32) -> u64 {
    let map = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let anonymous = map.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    anonymous.split_whitespace().next().unwrap().parse().unwrap()
}

/// Suspended and resumed several times: without a VMM meanwhile, with the state of before and the time of now.
fn assert_sleeps_and_wakes(home: &Home, name: &str) {
    for round in 1..=3 {
        let awake = home.machine_record(name);
        assert_eq!(answer(home, name, "counter", "{}")["count"], round);
        let asleep = suspended(home, name);
        assert!(!is_alive(process(&awake, "pid")), "its VMM still runs");
        assert!(asleep["pid"].is_null(), "{asleep}");
        let private = private_kb(process(&asleep, "supervisor_pid"));
        assert!(private < 3 << 10, "its supervisor has {private} KiB");
        let file = fs::metadata(folder(home, &asleep).join("suspended")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        assert_eq!(file.len(), number(&asleep, "suspend_bytes"));
        let status = casemate(home, &["status", name, "--json"]).stdout;
        let shown: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(
            (&shown[0]["state"], number(&shown[0], "suspend_bytes")),
            (&"suspended".into(), file.len())
        );

        // Later than any clock could be that goes on from where it stood.
        thread::sleep(Duration::from_millis(CLOCK_MS as u64 + 500));
        let before = SystemTime::now();
        let told = answer(home, name, "echo", r#"{"message": "?"}"#);
        assert!(late_ms(&told, before) > -CLOCK_MS, "{told} was told after {before:?}");
        assert!(late_ms(&told, SystemTime::now()) < CLOCK_MS, "{told}");
    }
}

#[test]
fn a_restored_machine_sleeps_and_wakes() {
    let home = Home::new();
    let record = launch(&home, "m", &["--idle", IDLE]);
    assert_eq!(record["start"], "restored");
    assert_sleeps_and_wakes(&home, "m");
    // What it has of its own, and no more.
    let own = number(&suspended(&home, "m"), "suspend_bytes");
    let all = fs::metadata(template(&home).join("memory")).map(|meta| blocks(&meta)).unwrap();
    assert!(own < all / 2, "{own} bytes of {all}");
}

fn blocks(meta: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(meta) * 512
}

#[test]
fn a_machine_that_booted_sleeps_and_wakes() {
    let home = Home::new();
    let record = launch(&home, "m", &["--idle", IDLE, "--cold"]);
    assert_eq!(record["start"], "cold");
    assert_sleeps_and_wakes(&home, "m");
}

#[test]
fn a_machine_without_an_idle_time_stays_awake() {
    let home = Home::new();
    let record = launch(&home, "m", &[]);
    thread::sleep(4 * IDLE_FOR);
    let now = home.machine_record("m");
    assert_eq!((&now["state"], &now["pid"]), (&"ready".into(), &record["pid"]));
}

#[test]
fn an_open_request_is_not_idleness() {
    let home = Home::new();
    let record = launch(&home, "m", &["--idle", IDLE]);
    let called = thread::scope(|scope| {
        let called = scope.spawn(|| call(&home, "m", "sleep", r#"{"ms": 4000}"#));
        // From before the call it may have been idle for long enough.
        thread::sleep(2 * IDLE_FOR);
        let vmm = eventually("a VMM", || home.machine_record("m")["pid"].as_u64());
        while !called.is_finished() {
            assert_ne!(home.machine_record("m")["state"], "suspended");
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(home.machine_record("m")["pid"].as_u64(), Some(vmm), "it was suspended meanwhile");
        called.join().unwrap()
    });
    assert_eq!(called.code, 0, "{called:?}");
    assert_eq!(called.stdout, "slept 4000 ms\n");
    suspended(&home, "m");
    drop(record);
}

#[test]
fn calls_that_come_just_when_it_falls_asleep_are_answered_once_each() {
    let home = Home::new();
    launch(&home, "m", &["--idle", "200ms"]);
    for count in 1..=20_u64 {
        assert_eq!(answer(&home, "m", "counter", "{}")["count"], count);
        // Around the time after which it is suspended, which takes a while too.
        thread::sleep(Duration::from_millis(100 + 37 * count % 400));
    }
}

#[test]
fn many_calls_at_once_wake_a_machine_once() {
    let home = Home::new();
    launch(&home, "m", &["--idle", IDLE]);
    suspended(&home, "m");
    let mut counts: Vec<u64> = thread::scope(|scope| {
        let calls: Vec<_> =
            (0..5).map(|_| scope.spawn(|| answer(&home, "m", "counter", "{}")["count"].as_u64())).collect();
        calls.into_iter().map(|call| call.join().unwrap().unwrap()).collect()
    });
    counts.sort_unstable();
    assert_eq!(counts, [1, 2, 3, 4, 5]);
}

#[test]
fn what_it_was_restored_from_may_go_while_it_sleeps() {
    let home = Home::new();
    launch(&home, "m", &["--idle", IDLE]);
    assert_eq!(answer(&home, "m", "counter", "{}")["count"], 1);
    suspended(&home, "m");
    fs::remove_dir_all(template(&home)).unwrap();
    assert_eq!(answer(&home, "m", "counter", "{}")["count"], 2);
    suspended(&home, "m");
    assert_eq!(answer(&home, "m", "counter", "{}")["count"], 3);
    stop(&home, "m");
}

/// Nothing that the supervisor does by itself is a use of the machine.
#[test]
fn a_machine_that_nobody_asks_stays_asleep() {
    let home = Home::new();
    launch(&home, "m", &["--idle", "200ms"]);
    suspended(&home, "m");
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        assert_eq!(home.machine_record("m")["state"], "suspended", "it woke by itself");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Others may take long to be written down.
#[test]
fn a_machine_that_waits_for_its_turn_to_sleep_answers_and_can_be_stopped() {
    let home = Home::new();
    launch(&home, "first", &[]);
    let turn = fs::File::create(home.path().join("machines/suspend.lock")).unwrap();
    turn.lock().unwrap();
    launch(&home, "m", &["--idle", IDLE]);
    let since = Instant::now();
    for _ in 0..2 {
        thread::sleep(2 * IDLE_FOR);
        assert_answers(&home, "m");
    }
    assert_eq!(home.machine_record("m")["state"], "ready");
    thread::sleep(2 * IDLE_FOR);
    stop(&home, "m");
    assert!(since.elapsed() < Duration::from_secs(15), "after {:?}", since.elapsed());

    launch(&home, "m", &["--idle", IDLE]);
    thread::sleep(2 * IDLE_FOR);
    drop(turn);
    suspended(&home, "m");
}

#[test]
fn machines_that_fall_asleep_at_once_do_so_in_turn_and_can_be_stopped_meanwhile() {
    let home = Home::new();
    let launched = casemate(&home, &["mcp", "microvm", "launch-many", "5", "--idle", IDLE]);
    assert_eq!(launched.code, 0, "{launched:?}");
    let names: Vec<String> = home
        .records()
        .iter()
        .filter(|record| record["state"] == "ready" || record["state"] == "suspended")
        .map(|record| record["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 5, "{names:?}");
    for name in &names {
        suspended(&home, name);
    }
    for name in &names {
        assert_answers(&home, name);
    }
    // Some are falling asleep again.
    thread::sleep(IDLE_FOR);
    let stopped = casemate(&home, &["stop", "--all"]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    assert_eq!(home.leftovers(), [""; 0]);
}
