//! A repository that a real server reads, and that nothing in its machine can write to.

use super::{mount, state};
use crate::home::{Home, casemate};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

/// Runs the host's git in a repository, without the settings of whoever tests.
fn git(repository: &Path, words: &[&str]) {
    let ended = Command::new("git")
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.test", "-C"])
        .arg(repository)
        .args(words)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .output()
        .unwrap_or_else(|error| panic!("git, which `make setup` installs: {error}"));
    assert!(ended.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn pypis_git_server_reads_a_repository_and_the_guests_kernel_refuses_it_a_commit() {
    let home = Home::new();
    let repository = home.path().join("repository");
    fs::create_dir(&repository).unwrap();
    git(&repository, &["init", "-q", "-b", "main"]);
    fs::write(repository.join("notes"), "first\n").unwrap();
    git(&repository, &["add", "notes"]);
    git(&repository, &["commit", "-q", "-m", "The first commit"]);
    // Something to be committed, and something that git was not told of.
    fs::write(repository.join("notes"), "first\nsecond\n").unwrap();
    git(&repository, &["add", "notes"]);
    fs::write(repository.join("stray"), "").unwrap();
    let before = state(&repository);

    let mount = mount(&repository, "/repository");
    let add = ["add", "git", "pypi:mcp-server-git", "--mount", &mount, "--", "--repository", "/repository"];
    let added = casemate(&home, &add);
    assert_eq!(added.code, 0, "{}", added.stderr);
    let launched = casemate(&home, &["launch", "git"]);
    assert_eq!(launched.code, 0, "{}", launched.stderr);
    let ask = |tool: &str, mut arguments: Value| {
        arguments["repo_path"] = json!("/repository");
        let called = casemate(&home, &["call", "git", tool, &arguments.to_string()]);
        (called.code, called.stdout + &called.stderr)
    };
    for (tool, expected) in [
        ("git_status", &["On branch main", "Changes to be committed", "modified:   notes", "stray"][..]),
        ("git_log", &["Author: Ada", "The first commit"]),
        ("git_diff_staged", &["+second"]),
    ] {
        let (code, said) = ask(tool, json!({}));
        let missing = expected.iter().find(|text| !said.contains(**text));
        assert!(code == 0 && missing.is_none(), "{tool}: {said}");
    }
    for (tool, arguments) in
        [("git_commit", json!({"message": "From inside"})), ("git_add", json!({"files": ["stray"]}))]
    {
        let (code, said) = ask(tool, arguments);
        assert!(code == 1 && said.contains("Read-only file system"), "{tool}: {said}");
    }
    assert_eq!(state(&repository), before);
}
