//! What the probe does wrong on purpose.

use crate::support::{LATEST_LEGACY, command, stdio};
use casemate_testkit::{ClientError, LineClient};
use serde_json::json;
use std::time::Duration;

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}
"#;

fn misbehaving(mode: &str) -> LineClient {
    stdio(&["--misbehave", mode])
}

/// Long enough to see an answer that should not come, short enough to wait for nothing.
fn impatient(mode: &str) -> LineClient {
    misbehaving(mode).with_patience(Duration::from_millis(300))
}

#[test]
fn exit_at_once_ends_with_a_failure_and_a_word() {
    let mut client = misbehaving("exit-at-once");
    assert_eq!(client.wait().unwrap().code(), Some(1));
    assert!(matches!(client.recv(), Err(ClientError::Closed { .. })));
}

#[test]
fn never_answer_reads_on_and_ends_with_stdin() {
    let mut client = impatient("never-answer");
    client.send_bytes(INITIALIZE.as_bytes()).unwrap();
    assert!(matches!(client.recv(), Err(ClientError::Silent { .. })));
    let mut client = client.with_patience(casemate_testkit::PATIENCE);
    client.close_stdin();
    assert!(client.wait().unwrap().success());
}

#[test]
fn garbage_comes_before_each_answer() {
    let mut client = misbehaving("garbage");
    for _ in 0..2 {
        client.send_bytes(INITIALIZE.as_bytes()).unwrap();
        assert_eq!(client.line().unwrap(), b"Server starting...\n");
        let mut last = Vec::new();
        for _ in 0..6 {
            last = client.line().unwrap();
        }
        assert!(String::from_utf8(last).unwrap().contains("\"id\":1"));
    }
}

#[test]
fn long_line_comes_once_and_whole() {
    let mut client = misbehaving("long-line");
    client.send_bytes(INITIALIZE.as_bytes()).unwrap();
    assert_eq!(client.line().unwrap().len(), 100_000_001);
    assert_eq!(client.recv().unwrap()["id"], 1);
    assert!(client.request("ping", json!({})).unwrap().get("result").is_some());
}

#[test]
fn close_stdout_lives_on() {
    let mut client = misbehaving("close-stdout");
    assert!(matches!(client.line(), Err(ClientError::Closed { .. })));
    client.send_bytes(INITIALIZE.as_bytes()).unwrap();
    let mut client = client.with_patience(Duration::from_millis(100));
    assert!(matches!(client.wait(), Err(ClientError::Runs(_))));
    let mut client = client.with_patience(casemate_testkit::PATIENCE);
    client.close_stdin();
    assert!(client.wait().unwrap().success());
}

#[test]
fn ignore_stdin_outlives_it() {
    let mut client = impatient("ignore-stdin");
    client.close_stdin();
    assert!(matches!(client.wait(), Err(ClientError::Runs(_))));
}

#[test]
fn mirror_gives_back_what_no_message_could_be() {
    let mut client = misbehaving("mirror");
    client.send_bytes(b"{\"half\": \x00\xff\n").unwrap();
    assert_eq!(client.line().unwrap(), b"{\"half\": \x00\xff\n");
    client.close_stdin();
    assert!(client.wait().unwrap().success());
}

#[test]
fn stderr_flood_is_large_and_then_serves() {
    let mut client = misbehaving("stderr-flood");
    assert!(client.initialize(LATEST_LEGACY, json!({})).unwrap().get("result").is_some());
    assert_eq!(client.stderr().len(), 1 << 20, "as much as the client keeps");
}

#[test]
fn wrong_options_are_usage_errors() {
    for arguments in
        [&["--era", "old"][..], &["--http"], &["--tick"], &["--http", "0", "--misbehave", "garbage"]]
    {
        let output = command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty());
    }
    let help = command(&["--help"]).output().unwrap();
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("--misbehave"));
}
