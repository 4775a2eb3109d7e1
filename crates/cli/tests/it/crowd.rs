//! Many machines at once: as many as there is memory for, and what becomes of them when some fail.

use crate::{
    home::{casemate, finish},
    live::{SMALL_PROBE, json_of, probe_home},
    support::{Lines, eventually},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[test]
fn as_many_machines_start_as_there_is_memory_for_and_the_rest_is_one_refusal() {
    let home = probe_home();
    // A clone of 128 MiB is expected to come to 136 MiB, the machine that becomes their template to 232.
    home.write("config.toml", &format!("{SMALL_PROBE}\n[limits]\nmemory_mb = 300\n"));
    let launched = casemate(&home, &["launch-many", "5", "--server", "probe", "--batch", "2"]);
    assert_eq!((launched.code, launched.stdout.as_str()), (4, "2 of 5 machines are ready\n"), "{launched:?}");
    assert_eq!(launched.stderr.matches("error: ").count(), 1, "{}", launched.stderr);
    assert!(launched.stderr.contains("3 of 5 machines did not start"), "{}", launched.stderr);
    assert!(launched.stderr.contains("of the configured 300 MiB 28 MiB are left"), "{}", launched.stderr);
    assert_eq!(launched.stderr.matches("is ready in").count(), 2, "{}", launched.stderr);
    // What was started answers, and all of one template.
    let machines = json_of(&home, &["status", "--json"]);
    let machines = machines.as_array().unwrap();
    assert!(machines.iter().all(|machine| machine["start"] == "restored"), "{machines:?}");
    assert_eq!(
        (machines.len(), json_of(&home, &["template", "list", "--json"]).as_array().unwrap().len()),
        (2, 1)
    );
    // The environment says more than the file.
    let mut more = home.command(&["launch-many", "1", "--server", "probe", "--json"]);
    more.env("CASEMATE_MEMORY_LIMIT", "500");
    let more = finish(more, b"");
    assert_eq!(more.code, 0, "{}", more.stderr);
    assert_eq!(serde_json::from_str::<Value>(&more.stdout).unwrap()[0]["name"], "probe-3");
    let stopped = casemate(&home, &["stop", "--all"]);
    assert_eq!((stopped.code, stopped.stdout.lines().count()), (0, 3), "{stopped:?}");
}

#[test]
fn a_machine_for_which_there_is_no_memory_stays_suspended_until_there_is() {
    let home = probe_home();
    // Memory for one clone of 128 MiB, which is expected to come to 136, beside the one that suspends.
    home.write("config.toml", &format!("{SMALL_PROBE}\n[limits]\nmemory_mb = 240\n"));
    let state_of = |name: &str| json_of(&home, &["status", name, "--json"])[0]["state"].clone();
    let first = casemate(&home, &["launch", "probe", "--idle", "100ms"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    eventually("a suspended machine", || (state_of("probe") == "suspended").then_some(()));
    let second = casemate(&home, &["launch-many", "1", "--server", "probe"]);
    assert_eq!(second.code, 0, "{}", second.stderr);

    let call = ["call", "probe", "echo", r#"{"message": "awake"}"#];
    let refused = casemate(&home, &call);
    assert_eq!((refused.code, refused.stdout.as_str()), (4, ""), "{}", refused.stderr);
    for said in ["machine probe stays suspended", "not enough memory", "hint: stop other machines"] {
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
    let machine = json_of(&home, &["status", "probe", "--json"])[0].clone();
    assert_eq!(machine["state"], "suspended");
    assert!(machine["reason"].as_str().unwrap().starts_with("stays suspended: not enough"), "{machine}");

    assert_eq!(casemate(&home, &["stop", "probe-1"]).code, 0);
    let woken = casemate(&home, &call);
    assert!(woken.code == 0 && woken.stdout.contains("awake"), "{woken:?}");
}

#[test]
fn an_interrupt_stops_what_was_starting_and_names_what_stays() {
    let home = probe_home();
    assert_eq!(casemate(&home, &["call", "probe", "echo", r#"{"message": "a"}"#]).code, 0);
    let mut command = home.command(&["launch-many", "200", "--server", "probe", "--batch", "2"]);
    let mut child = command.spawn().unwrap();
    let stderr = Lines::of(child.stderr.take().unwrap());
    while !stderr.next().expect("no machine became ready").contains("is ready in") {}
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    let rest: Vec<String> = std::iter::from_fn(|| stderr.next()).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    let live = json_of(&home, &["status", "--json"]);
    let live = live.as_array().unwrap();
    assert!(live.iter().all(|machine| machine["state"] == "ready"), "{live:?}");
    let said = rest.iter().find(|line| line.starts_with("hint: ")).unwrap();
    let count =
        if live.len() == 1 { "1 machine had".to_owned() } else { format!("{} machines had", live.len()) };
    assert!(said.starts_with(&format!("hint: {count} started and stay: probe-")), "{said}");
}

#[test]
fn machines_that_fail_in_the_same_way_are_one_error() {
    let home = probe_home();
    let line = ["launch-many", "3", "--server", "probe", "--cold", "--command", "/bin/false"];
    let failed = casemate(&home, &line);
    assert_eq!((failed.code, failed.stdout.as_str()), (5, "0 of 3 machines are ready\n"), "{failed:?}");
    assert_eq!(failed.stderr.matches("exited with status 1").count(), 1, "{}", failed.stderr);
    assert!(failed.stderr.contains("likewise: probe-"), "{}", failed.stderr);
    assert!(failed.stderr.contains("3 of 3 machines did not start"), "{}", failed.stderr);
}
