//! What `doctor` finds out, and when.

use crate::home::{Home, casemate, finish};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

#[test]
fn a_qemu_that_hangs_is_found_out_within_seconds_and_ended() {
    let home = Home::new();
    // The kernel is there: what is timed is the rest.
    assert_eq!(casemate(&home, &["doctor"]).code, 0);
    let folder = tempfile::tempdir().unwrap();
    let wrapper = folder.path().join("qemu-system-x86_64");
    fs::write(&wrapper, format!("#!/bin/sh\n# {}\nexec sleep 1000\n", home.path().display())).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = home.command(&["doctor", "--json"]);
    command.env("PATH", format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap()));
    let began = Instant::now();
    let said = finish(command, b"");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let report: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    let qemu = &report["backends"][1];
    assert_eq!((&qemu["name"], &qemu["usable"]), (&"qemu".into(), &false.into()), "{report}");
    assert!(qemu["reason"].as_str().unwrap().contains("did not end within"), "{report}");
}
