//! A VMM that does not answer any more, and one that dies under a client.

use crate::home::{Home, casemate};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Longer than any boot.
const PATIENCE: Duration = Duration::from_secs(60);

fn signal(record: &serde_json::Value, signal: Signal) {
    let pid = Pid::from_raw(record["pid"].as_i64().unwrap() as i32).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn a_vmm_that_hangs_is_stopped_all_the_same() {
    let home = Home::new();
    let launched = casemate(&home, &["mcp", "microvm", "launch", "hung"]);
    assert_eq!(launched.code, 0, "{}", launched.stderr);
    signal(&home.machine_record("hung"), Signal::STOP);
    let stopped = casemate(&home, &["stop", "hung"]);
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    assert_eq!(home.machine_record("hung")["state"], "stopped");
}

#[test]
fn a_client_is_told_that_the_vmm_under_its_server_died() {
    let home = Home::new();
    // Its input stays open until the VMM was killed.
    let (input, keep) = std::io::pipe().unwrap();
    let mut command = home.command(&["run", "--", "builtin:probe"]);
    command.stdin(input);
    let output = thread::scope(|scope| {
        let running = scope.spawn(|| {
            let child = command.spawn().unwrap();
            child.wait_with_output().unwrap()
        });
        let until = Instant::now() + PATIENCE;
        let record = loop {
            let ready = home.records().into_iter().find(|record| record["state"] == "ready");
            match ready {
                Some(record) => break record,
                None if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
                None => panic!("no machine became ready"),
            }
        };
        // The client attaches once its machine is ready.
        thread::sleep(Duration::from_millis(500));
        signal(&record, Signal::KILL);
        let output = running.join().unwrap();
        drop(keep);
        output
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("VMM ended"), "{said}");
}
