//! What the program that starts casemate has open is not for casemate's processes that stay.

use crate::home::{Home, casemate, finish};
use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

/// What a process has open.
fn open_files(pid: u64) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

#[test]
fn descriptors_that_a_caller_left_open_reach_neither_supervisor_nor_vmm() {
    let home = Home::new();
    let secret = home.path().join("secret");
    fs::write(&secret, "not for guests").unwrap();
    let launch = home.command(&["mcp", "microvm", "launch", "narrow"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 9<\"$SECRET\""]).arg(launch.get_program()).args(launch.get_args());
    shell.env("SECRET", &secret);
    shell.envs(launch.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let finished = finish(shell, b"");
    assert_eq!(finished.code, 0, "{}", finished.stderr);

    let record = home.machine_record("narrow");
    for process in ["pid", "supervisor_pid"] {
        let files = open_files(record[process].as_u64().unwrap());
        assert!(!files.is_empty() && !files.contains(&secret), "{process}: {files:?}");
    }
    assert_eq!(casemate(&home, &["stop", "narrow"]).code, 0);
}
