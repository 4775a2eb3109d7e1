//! Homes that cannot be written, or not be entered by others.

use super::{assert_echoes, assert_nothing_left, echo, launch};
use crate::home::{Finished, Home, casemate, finish};
use casemate_testkit::may_mount;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

/// What every script begins with: `step NAME COMMAND…` runs a command and shows all that it says.
const STEPS: &str = r#"
step() { name=$1; shift; echo "== $name"; "$@" 2>&1; echo "exit $?"; }
casemate() { "$CASEMATE" "$@"; }
share() { for name in kernels images cache; do ln -s "$SHARED/$name" "$CASEMATE_HOME/$name"; done; }
"#;

/// Runs a script that mounts something at the home, where nobody else sees it.
pub(crate) fn in_own_mounts(home: &Home, script: &str) -> String {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{STEPS}{script}")]);
    command.env("CASEMATE", env!("CARGO_BIN_EXE_casemate")).env("CASEMATE_HOME", home.path());
    command.env("SHARED", Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let Finished { code, stdout, stderr } = finish(command, b"");
    assert_eq!(code, 0, "{stdout}\n{stderr}");
    stdout
}

/// Everything that a step said, and its exit code.
fn step<'a>(output: &'a str, name: &str) -> &'a str {
    let begin = format!("== {name}\n");
    let from = output.find(&begin).unwrap_or_else(|| panic!("no step {name} in:\n{output}")) + begin.len();
    output[from..].split("== ").next().unwrap_or_default()
}

fn assert_says(output: &str, name: &str, says: &[&str]) {
    for said in says {
        assert!(step(output, name).contains(said), "no {said:?} in step {name}:\n{output}");
    }
}

#[test]
fn a_disk_that_is_full_when_a_machine_starts_and_while_one_runs() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    // Kernel and image are there before.
    launch(&home, "first");
    let output = in_own_mounts(
        &home,
        r#"
        mount -t tmpfs -o size=256k none "$CASEMATE_HOME" && share
        step runs casemate mcp microvm launch m
        dd if=/dev/zero of="$CASEMATE_HOME/fill" bs=4k 2>/dev/null
        step call casemate call m echo '{"message": "hi there"}'
        step launch casemate mcp microvm launch n
        step add casemate add p "$CASEMATE"
        step status casemate status
        step stop casemate stop m
        step stopped casemate status
        rm "$CASEMATE_HOME/fill"
        step left find "$CASEMATE_HOME/" -type f -o -type s -o -name '*.new'
        step again casemate mcp microvm launch n
        step end casemate stop n
        "#,
    );
    assert_says(&output, "runs", &["m is ready", "exit 0"]);
    assert_says(&output, "call", &["hi there", "exit 0"]);
    let full = ["error: cannot use the home folder", "No space left on device", "hint: make room", "exit 4"];
    assert_says(&output, "launch", &full);
    assert_says(&output, "status", &["ready", "exit 0"]);
    assert_says(&output, "stop", &["Stopped m", "exit 0"]);
    assert_says(&output, "stopped", &["No machine runs", "exit 0"]);
    let kept = |line: &&str| line.contains("/logs/") || line.ends_with("/machine.json");
    let others: Vec<&str> = step(&output, "left").lines().filter(|line| !kept(line)).collect();
    // No template could be made for want of room; what it is locked by, and keyed with, stays.
    let template = |line: &str| {
        line.contains("/templates/") && (line.ends_with(".lock") || line.ends_with("/templates/secret"))
    };
    let expected = |line: &&str| {
        line.ends_with("/machines/lock") || line.ends_with("/config.toml.lock") || template(line)
    };
    assert!(others.iter().all(|line| expected(line) || *line == "exit 0"), "{others:?}");
    assert_says(&output, "again", &["n is ready", "exit 0"]);
    assert_says(&output, "end", &["Stopped n", "exit 0"]);
    assert_says(&output, "add", &["error: cannot write ", "No space left on device", "hint: "]);
    assert_eq!(casemate(&home, &["stop", "first"]).code, 0);
    assert_nothing_left(&home);
}

#[test]
fn a_disk_that_fills_up_while_an_image_is_built() {
    if !may_mount() {
        return;
    }
    let home = Home::isolated();
    let output = in_own_mounts(
        &home,
        r#"
        mount -t tmpfs -o size=1m none "$CASEMATE_HOME"
        step add casemate add big "$CASEMATE"
        step images find "$CASEMATE_HOME/images" "$CASEMATE_HOME/cache/work" -mindepth 1
        step list casemate list
        "#,
    );
    assert_says(&output, "add", &["error: ", "No space left on device", "exit 4"]);
    assert_eq!(step(&output, "images"), "exit 0\n", "{output}");
    assert_says(&output, "list", &["No servers yet", "exit 0"]);
}

#[test]
fn a_home_that_cannot_be_written() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let output = in_own_mounts(
        &home,
        r#"
        casemate status >/dev/null
        mount --bind "$CASEMATE_HOME" "$CASEMATE_HOME" && mount -o remount,bind,ro "$CASEMATE_HOME"
        step launch casemate mcp microvm launch m
        step call casemate call m echo
        step status casemate status
        step add casemate add p "$CASEMATE"
        step list casemate list
        "#,
    );
    for name in ["launch", "call", "status", "add"] {
        let says = ["error: cannot use the ", "Read-only file system", "hint: check owner, mode", "exit 3"];
        assert_says(&output, name, &says);
    }
    assert_says(&output, "list", &["exit 0"]);
    assert_nothing_left(&home);
}

#[test]
fn a_home_below_a_folder_that_others_may_not_enter() {
    let outside = Home::new();
    // Its kernel is copied: everything that the VMM needs is to lie below the folder.
    launch(&outside, "first");
    assert_eq!(casemate(&outside, &["stop", "first"]).code, 0);
    let closed = tempfile::Builder::new().prefix("casemate-test-").tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let home = Home::below(closed.path());
    let copied = Command::new("cp").arg("-rL").arg(outside.path().join("kernels")).arg(home.path()).status();
    assert!(copied.unwrap().success());
    launch(&home, "m");
    assert_echoes(&echo(&home, "m"));
    let vmm = home.machine_record("m")["pid"].as_u64().unwrap();
    let owner = fs::metadata(format!("/proc/{vmm}")).unwrap().uid();
    let is_root = rustix::process::geteuid().is_root();
    assert!(!is_root || owner >= 0x7000_0000, "the VMM runs as user {owner}");
}
