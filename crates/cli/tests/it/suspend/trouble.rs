//! Suspended machines that are stopped, killed, or cannot be what they were.

use super::{IDLE, IDLE_FOR, suspended};
use crate::{
    faults::in_own_mounts,
    home::{Home, casemate, finish},
    live::{answer, assert_answers, call, folder, launch, process, server_log, stop},
    support::{eventually, is_alive, signal},
};
use casemate_testkit::may_mount;
use rustix::process::Signal;
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    thread,
};

#[test]
fn a_machine_that_is_stopped_while_it_sleeps_leaves_nothing() {
    let home = Home::new();
    launch(&home, "m", &["--idle", IDLE]);
    let record = suspended(&home, "m");
    stop(&home, "m");
    eventually("the supervisor's end", || (!is_alive(process(&record, "supervisor_pid"))).then_some(()));
    assert_eq!(home.leftovers(), [""; 0]);
    assert_eq!(home.machine_record("m")["state"], "stopped");
}

#[test]
fn a_supervisor_that_is_killed_while_its_machine_sleeps_leaves_nothing() {
    let home = Home::new();
    launch(&home, "m", &["--idle", IDLE]);
    let record = suspended(&home, "m");
    signal(process(&record, "supervisor_pid"), Signal::KILL);
    eventually("the supervisor's end", || (!is_alive(process(&record, "supervisor_pid"))).then_some(()));
    assert!(folder(&home, &record).join("suspended").exists());
    assert_eq!(casemate(&home, &["status"]).code, 0);
    assert_eq!(home.leftovers(), [""; 0]);
    let over = home.machine_record("m");
    assert_eq!(over["state"], "failed");
    assert_eq!(over["reason"], "supervisor ended without a word while suspended");
}

/// Fails the next call, and never answers it wrongly.
fn assert_is_refused(damage: impl FnOnce(&File)) {
    let home = Home::new();
    launch(&home, "m", &["--idle", IDLE]);
    assert_eq!(answer(&home, "m", "counter", "{}")["count"], 1);
    let record = suspended(&home, "m");
    damage(&File::options().read(true).write(true).open(folder(&home, &record).join("suspended")).unwrap());
    let called = call(&home, "m", "counter", "{}");
    assert_eq!(called.code, 5, "{called:?}");
    assert!(called.stderr.contains("cannot resume"), "{called:?}");
    eventually("the machine's end", || (home.machine_record("m")["state"] == "failed").then_some(()));
    let over = home.machine_record("m");
    assert!(over["reason"].as_str().unwrap().contains("cannot resume"), "{over}");
    eventually("nothing left", || home.leftovers().is_empty().then_some(()));
}

#[test]
fn a_bit_of_its_memory_on_disk_is_flipped() {
    assert_is_refused(|file| {
        let middle = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle).unwrap();
        file.write_all_at(&[byte[0] ^ 4], middle).unwrap();
    });
}

#[test]
fn its_memory_on_disk_is_cut_short() {
    assert_is_refused(|file| file.set_len(file.metadata().unwrap().len() / 2).unwrap());
}

/// What comes after the pages that belong to it is nobody's.
#[test]
fn its_memory_on_disk_has_grown() {
    assert_is_refused(|file| {
        let end = file.metadata().unwrap().len();
        let page = [[0; 8].as_slice(), [0xff; 4096].as_slice()].concat();
        file.write_all_at(&page, end).unwrap();
    });
}

#[test]
fn a_machine_that_cannot_go_on_is_started_anew_where_that_was_asked_for() {
    let home = Home::new();
    launch(&home, "m", &["--idle", IDLE, "--restart", "on-failure"]);
    let record = suspended(&home, "m");
    File::options().write(true).open(folder(&home, &record).join("suspended")).unwrap().set_len(0).unwrap();
    assert_eq!(call(&home, "m", "counter", "{}").code, 5);
    let again = eventually("a machine that was started anew", || {
        let record = home.machine_record("m");
        (record["restarts"] == 1 && record["state"] != "planned").then_some(record)
    });
    assert!(again["reason"].as_str().unwrap().contains("cannot resume"), "{again}");
    assert_eq!(answer(&home, "m", "counter", "{}")["count"], 1);
}

#[test]
fn a_machine_stays_awake_where_suspended_ones_may_take_no_more() {
    let home = Home::new();
    let mut command = home.command(&["mcp", "microvm", "launch", "m", "--idle", IDLE]);
    command.env("CASEMATE_SUSPEND_DISK", "256K");
    let launched = finish(command, b"");
    assert_eq!(launched.code, 0, "{launched:?}");
    let record = home.machine_record("m");
    eventually("a word of it", || server_log(&home, &record).contains("(suspend_disk)").then_some(()));
    assert!(server_log(&home, &record).contains("stays awake: suspended machines take "));
    let now = home.machine_record("m");
    assert_eq!((&now["state"], &now["pid"]), (&"ready".into(), &record["pid"]));
    assert!(!folder(&home, &record).join("suspended").exists());
    assert_answers(&home, "m");
}

/// What its devices were when it could not be suspended is not what they are when it can.
#[test]
fn a_machine_that_stayed_awake_is_suspended_later_as_it_is_then() {
    let home = Home::new();
    let other = home.path().join("machines/other");
    fs::create_dir_all(&other).unwrap();
    let lives = File::create(other.join("lock")).unwrap();
    lives.lock().unwrap();
    // More than suspended machines may take, and nothing on disk.
    File::create(other.join("suspended")).unwrap().set_len(1 << 40).unwrap();
    let record = launch(&home, "m", &["--idle", IDLE]);
    eventually("a word of it", || server_log(&home, &record).contains("(suspend_disk)").then_some(()));
    assert_eq!(answer(&home, "m", "counter", "{}")["count"], 1);
    fs::remove_dir_all(other).unwrap();
    for count in 2..=3 {
        suspended(&home, "m");
        assert_eq!(answer(&home, "m", "counter", "{}")["count"], count);
    }
}

#[test]
fn a_machine_stays_awake_where_the_disk_has_no_room_for_it() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    // Kernel and image are there before.
    launch(&home, "first", &["--cold"]);
    let script = format!(
        r#"
        mount -t tmpfs -o size=80m none "$CASEMATE_HOME" && share
        step launch casemate mcp microvm launch m --cold --idle {IDLE}
        step first casemate call m counter
        sleep {}
        step second casemate call m counter
        step status casemate status --json
        step log casemate logs m
        step left find "$CASEMATE_HOME/machines" -name suspended
        step stop casemate stop m
        "#,
        6.0 * IDLE_FOR.as_secs_f32()
    );
    let output = in_own_mounts(&home, &script);
    let step =
        |name: &str| output.split(&format!("== {name}\n")).nth(1).unwrap().split("== ").next().unwrap();
    assert!(step("second").contains(r#""count": 2"#), "{output}");
    assert!(step("status").contains(r#""state": "ready""#), "{output}");
    assert!(step("log").contains("stays awake: cannot write its memory: no storage space"), "{output}");
    assert_eq!(step("left"), "exit 0\n", "{output}");
    assert!(step("stop").contains("exit 0"), "{output}");
}

#[test]
fn a_vmm_that_is_killed_just_when_it_falls_asleep_is_noticed() {
    let home = Home::new();
    let record = launch(&home, "m", &["--idle", IDLE]);
    let file = folder(&home, &record).join("suspended");
    eventually("a file of its memory", || file.exists().then_some(()));
    signal(process(&record, "pid"), Signal::KILL);
    // It has either been written down by then, or is over.
    let after = eventually("what became of it", || {
        let record = home.machine_record("m");
        (record["state"] != "ready").then_some(record)
    });
    if after["state"] == "suspended" {
        assert_answers(&home, "m");
    } else {
        assert!(after["reason"].as_str().unwrap().contains("VMM ended"), "{after}");
    }
    thread::sleep(IDLE_FOR);
    let stopped = casemate(&home, &["stop", "m"]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
}
