//! What goes wrong on real guests and hosts: each ends in one clear error (what, why, what to do, where the
//! log is), the right exit code, and nothing left behind.

mod disk;
mod killed;
mod servers;
mod signals;
mod supply;

pub(crate) use disk::in_own_mounts;

use crate::{
    home::{Finished, Home, casemate},
    support::eventually,
};
use serde_json::Value;
use std::path::PathBuf;

/// Starts a machine `NAME` of the built-in probe server.
fn launch(home: &Home, name: &str) {
    let launched = casemate(home, &["mcp", "microvm", "launch", name]);
    assert_eq!(launched.code, 0, "{launched:?}");
}

/// Defines a server that is the probe server with options.
fn add_probe(home: &Home, name: &str, options: &[&str]) {
    let added = casemate(home, &[&["add", name, &home.probe(), "--"], options].concat());
    assert_eq!(added.code, 0, "{added:?}");
}

/// Calls the tool that says what it is told; works if the server does.
fn echo(home: &Home, name: &str) -> Finished {
    casemate(home, &["call", name, "echo", r#"{"message": "hi there"}"#])
}

fn assert_echoes(asked: &Finished) {
    assert!(asked.code == 0 && asked.stdout.contains("hi there"), "{asked:?}");
}

/// One error with that exit code, which says all of this.
fn assert_fails(finished: &Finished, code: i32, says: &[&str]) {
    assert_eq!(finished.code, code, "{finished:?}");
    assert_eq!(finished.stdout, "", "{finished:?}");
    let errors = finished.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{finished:?}");
    for said in says {
        assert!(finished.stderr.contains(said), "no {said:?} in:\n{}", finished.stderr);
    }
}

/// The folder that an error names as the place of the logs; it is there.
fn logs(finished: &Finished) -> PathBuf {
    let named = finished.stderr.lines().find_map(|line| line.strip_prefix("log: "));
    let logs = PathBuf::from(named.unwrap_or_else(|| panic!("no log: in\n{}", finished.stderr)));
    assert!(logs.is_dir(), "{logs:?}");
    logs
}

/// Nothing remains, without any other command's help.
fn assert_nothing_left(home: &Home) {
    let mut left = Vec::new();
    eventually("the end of everything", || {
        left = home.leftovers();
        left.is_empty().then_some(())
    });
    let live = |record: &Value| record["state"] != "failed" && record["state"] != "stopped";
    assert_eq!(home.records().into_iter().filter(live).count(), 0);
}
