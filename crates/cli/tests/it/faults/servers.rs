//! Servers and names that are no good.

use super::{add_probe, assert_echoes, assert_fails, assert_nothing_left, echo, launch, logs};
use crate::home::{Home, casemate};
use std::{fs, thread};

#[test]
fn a_server_that_exits_at_once() {
    let home = Home::new();
    add_probe(&home, "bad", &["--misbehave", "exit-at-once"]);
    let asked = echo(&home, "bad");
    let why = ["server exited with status 1", "exiting at once, as asked", "hint: casemate logs bad"];
    assert_fails(&asked, 5, &why);
    let log = fs::read_to_string(logs(&asked).join("server.log")).unwrap();
    assert!(log.contains("exiting at once"), "{log}");
    assert_nothing_left(&home);
}

#[test]
fn a_server_that_never_answers() {
    let home = Home::new();
    add_probe(&home, "bad", &["--misbehave", "never-answer"]);
    let asked = echo(&home, "bad");
    assert_fails(&asked, 5, &["machine was not ready within", "hint: the server may need longer"]);
    logs(&asked);
    assert_nothing_left(&home);
}

#[test]
fn a_server_that_answers_too_late() {
    let home = Home::new();
    launch(&home, "m");
    let asked = casemate(&home, &["call", "m", "sleep", r#"{"ms": 60000}"#, "--timeout", "1"]);
    assert_fails(
        &asked,
        5,
        &["machine m gave no answer", "no answer to tools/call within 1s", "--timeout SECONDS"],
    );
    // The machine is none the worse for it.
    assert_echoes(&echo(&home, "m"));
}

#[test]
fn a_server_that_prints_garbage_on_stdout() {
    let home = Home::new();
    add_probe(&home, "noisy", &["--misbehave", "garbage"]);
    assert_echoes(&casemate(&home, &["call", "noisy", "echo", r#"{"message": "hi there"}"#, "--keep"]));
    assert_echoes(&echo(&home, "noisy"));
    let log = casemate(&home, &["logs", "noisy"]).stdout;
    for garbage in ["not a message on stdout: Server starting...", r#"{"jsonrpc":"#, "[]", "null"] {
        assert!(log.contains(garbage), "no {garbage} in:\n{log}");
    }
}

#[test]
fn a_server_that_writes_a_line_of_100_megabytes() {
    let home = Home::new();
    add_probe(&home, "bad", &["--misbehave", "long-line"]);
    let asked = echo(&home, "bad");
    assert_fails(&asked, 5, &["server did not answer", "a message longer than 16777216 bytes", "hint: "]);
    let size: u64 =
        fs::read_dir(logs(&asked)).unwrap().flatten().map(|log| log.metadata().unwrap().len()).sum();
    assert!(size < 1 << 20, "logs of {size} bytes");
    assert_nothing_left(&home);
}

#[test]
fn a_server_that_closes_stdout_and_lives() {
    let home = Home::new();
    add_probe(&home, "bad", &["--misbehave", "close-stdout"]);
    let asked = echo(&home, "bad");
    assert_fails(&asked, 5, &["the server closed its output", "hint: "]);
    logs(&asked);
    assert_nothing_left(&home);
}

#[test]
fn a_server_that_floods_stderr() {
    let home = Home::new();
    add_probe(&home, "loud", &["--misbehave", "stderr-flood"]);
    assert_echoes(&casemate(&home, &["call", "loud", "echo", r#"{"message": "hi there"}"#, "--keep"]));
    let id = home.machine_record("loud")["id"].as_str().unwrap().to_owned();
    let folder = home.path().join("machines").join(id).join("logs");
    let size = |name: &str| fs::metadata(folder.join(name)).map_or(0, |meta| meta.len());
    let (current, before) = (size("server.log"), size("server.log.1"));
    assert!(current + before > 1 << 20, "the flood left no trace: {current} and {before} bytes");
    assert!(current <= 4 << 20 && before <= 4 << 20, "{current} and {before} bytes");
}

#[test]
fn a_server_that_dies_of_a_call() {
    let home = Home::new();
    launch(&home, "m");
    let asked = casemate(&home, &["call", "m", "exit", r#"{"code": 3}"#]);
    assert_fails(&asked, 5, &["machine m gave no answer", "exited with status 3"]);
    assert_nothing_left(&home);
}

#[test]
fn memory_too_small_to_boot() {
    let home = Home::new();
    let size = ["--memory", "80", "--vcpus", "32"];
    let launched = casemate(&home, &[&["mcp", "microvm", "launch", "m"][..], &size].concat());
    assert_fails(&launched, 5, &["VMM ended", "Kernel panic", "deadlocked on memory", "--memory 256"]);
    // The kernel's stack is in the log, not in the error.
    assert!(launched.stderr.lines().count() < 10, "{}", launched.stderr);
    logs(&launched);
    assert_nothing_left(&home);
}

#[test]
fn a_name_that_is_taken() {
    let home = Home::new();
    launch(&home, "m");
    let launched = casemate(&home, &["mcp", "microvm", "launch", "m"]);
    assert_fails(&launched, 3, &["a machine named m is already ready", "hint: casemate stop m"]);
    assert_echoes(&echo(&home, "m"));
}

#[test]
fn two_launches_of_one_name_at_once() {
    let home = Home::new();
    let mut launched: Vec<_> = thread::scope(|scope| {
        let both: Vec<_> =
            (0..2).map(|_| scope.spawn(|| casemate(&home, &["mcp", "microvm", "launch", "m"]))).collect();
        both.into_iter().map(|launch| launch.join().unwrap()).collect()
    });
    launched.sort_by_key(|launched| launched.code);
    assert_eq!(launched[0].code, 0, "{launched:?}");
    assert_fails(&launched[1], 3, &["a machine named m is already ", "hint: casemate stop m"]);
    // Beside it there is only the machine that its template was made of.
    assert_eq!(home.records().iter().filter(|record| record["name"] == "m").count(), 1);
    assert_echoes(&echo(&home, "m"));
}

#[test]
fn a_second_stop() {
    let home = Home::new();
    launch(&home, "m");
    for said in ["Stopped m\n", "m does not run\n"] {
        let stopped = casemate(&home, &["stop", "m"]);
        assert_eq!((stopped.code, stopped.stdout.as_str()), (0, said), "{stopped:?}");
        assert_nothing_left(&home);
    }
}
