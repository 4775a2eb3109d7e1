//! A real server process, in both eras, well behaved and not.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use casemate_mcp::client::{CloseReason, Event, OpenError, RequestError};
use casemate_mcp::{Conversation, Options};
use casemate_testkit::probe_path;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::peer::{
    LONG, SHORT, assert_speaks, call, each_call_gets_its_own_answer, echo, eras, options, params, result,
};

/// A probe; the child is killed when dropped.
async fn open(arguments: &[&str], options: Options) -> (Result<Conversation, OpenError>, Child) {
    let mut command = Command::new(probe_path());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let (stdout, stdin) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    (Conversation::open(stdout, stdin, options).await, child)
}

async fn started(arguments: &[&str], options: Options) -> (Conversation, Child) {
    let (conversation, child) = open(arguments, options).await;
    (conversation.unwrap(), child)
}

#[tokio::test]
async fn both_eras_are_found_and_spoken() {
    for (era, options, expected) in eras() {
        let (conversation, mut child) = started(&["--era", era], options).await;
        assert_speaks(&conversation, expected).await;
        assert_eq!(conversation.server_info().unwrap().name, "casemate-probe");
        assert!(matches!(conversation.close(LONG).await, CloseReason::ServerClosed));
        assert!(child.wait().await.unwrap().success());
    }
}

#[tokio::test]
async fn calls_at_once_each_get_their_own_answer() {
    let (conversation, _child) = started(&[], options()).await;
    each_call_gets_its_own_answer(&conversation).await;
}

#[tokio::test]
async fn long_messages_pass_both_ways_at_once() {
    let (conversation, _child) = started(&[], options()).await;
    let long = "x".repeat(8 << 20);
    let (first, second) = tokio::join!(
        echo(&conversation, &long),
        call(&conversation, "big_reply", json!({"bytes": 8 << 20})),
    );
    assert!(first == long && second == long);
}

#[tokio::test]
async fn progress_arrives_and_a_dropped_call_ends_in_the_server() {
    for era in ["legacy", "modern"] {
        let (conversation, mut child) = started(&["--era", era], options()).await;
        let (reports, mut reported) = mpsc::channel(100);
        let given = params(json!({"name": "sleep", "arguments": {"ms": 3_600_000}}));
        let answer = conversation.request("tools/call", Some(&given), SHORT).await;
        assert!(matches!(answer, Err(RequestError::Timeout { .. })), "{answer:?}");
        let given = params(json!({"name": "sleep", "arguments": {"ms": 20}}));
        let slept = conversation.request_with_progress("tools/call", Some(&given), LONG, reports);
        assert_eq!(result(slept.await)["content"][0]["text"], "slept 20 ms");
        let report: Value = serde_json::from_str(reported.recv().await.unwrap().get()).unwrap();
        assert_eq!(report["total"], 20);
        // A server that still slept would not end with its input.
        assert!(matches!(conversation.close(LONG).await, CloseReason::ServerClosed));
        assert!(child.wait().await.unwrap().success());
    }
}

#[tokio::test]
async fn questions_of_the_server_are_refused_but_ping() {
    let (conversation, _child) = started(&["--era", "legacy"], options()).await;
    let pinged = call(&conversation, "ask_client", json!({"method": "ping"})).await;
    assert_eq!(serde_json::from_str::<Value>(&pinged).unwrap()["result"], json!({}));
    let asked = json!({"method": "sampling/createMessage", "force": true});
    let refused = call(&conversation, "ask_client", asked).await;
    assert_eq!(serde_json::from_str::<Value>(&refused).unwrap()["error"]["code"], -32601);
    assert_eq!(conversation.counters().routing.refused_requests, 1);
}

#[tokio::test]
async fn a_crash_fails_what_is_open_at_once() {
    let (conversation, _child) = started(&[], options()).await;
    let given = params(json!({"name": "crash", "arguments": {"kind": "abort"}}));
    let answer = conversation.request("tools/call", Some(&given), LONG).await;
    assert!(matches!(answer, Err(RequestError::Closed { delivered: true, .. })), "{answer:?}");
}

#[tokio::test]
async fn prints_and_announcements_are_told_apart_from_answers() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut options = options();
    let seen = told.clone();
    options.observer = Arc::new(move |event| {
        seen.lock().unwrap().push(match event {
            Event::Rejected(line) => line.preview.clone(),
            Event::Notification(message) => message.text().to_owned(),
            other => panic!("{other:?}"),
        });
    });
    let (conversation, _child) = started(&["--era", "legacy"], options).await;
    call(&conversation, "log_to_stdout", json!({"line": "a stray print"})).await;
    call(&conversation, "announce", json!({})).await;
    conversation.ping(LONG).await.unwrap();
    let told = told.lock().unwrap();
    assert_eq!((told.len(), told[0].as_str()), (2, "a stray print"));
    assert!(told[1].contains("notifications/tools/list_changed"));
    assert_eq!(conversation.counters().garbage_lines, 1);
}

#[tokio::test]
async fn misbehaviour_ends_in_an_error_that_says_what_it_was() {
    for (mode, expected) in
        [("exit-at-once", "server closed"), ("close-stdout", "server closed"), ("long-line", "too long")]
    {
        let (opened, _child) = open(&["--misbehave", mode], options()).await;
        let Err(OpenError::NoAnswer(RequestError::Closed { reason, .. })) = opened else {
            panic!("{mode}: {opened:?}")
        };
        let said = match reason {
            CloseReason::ServerClosed | CloseReason::WriteFailed(_) => "server closed",
            CloseReason::TooLong { .. } => "too long",
            other => panic!("{mode}: {other:?}"),
        };
        assert_eq!(said, expected, "{mode}");
    }
    for mode in ["never-answer", "ignore-stdin"] {
        let mut impatient = options();
        impatient.negotiate_timeout = SHORT;
        let (opened, _child) = open(&["--misbehave", mode], impatient).await;
        assert!(
            matches!(opened, Err(OpenError::NoAnswer(RequestError::Timeout { .. }))),
            "{mode}: {opened:?}"
        );
    }
    for mode in ["garbage", "stderr-flood"] {
        let (conversation, _child) = started(&["--misbehave", mode], options()).await;
        assert_eq!(echo(&conversation, "hi").await, "hi", "{mode}");
        assert_eq!(conversation.counters().garbage_lines > 0, mode == "garbage");
    }
}
