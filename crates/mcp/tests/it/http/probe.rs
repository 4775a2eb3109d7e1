//! A real server process behind the bridge, in both eras.

use std::process::Stdio;

use casemate_mcp::client::RequestError;
use casemate_mcp::http::End;
use casemate_mcp::{Conversation, Options};
use casemate_testkit::probe_path;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, split};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::fake::{Tcp, bridged, in_one_thread};
use crate::peer::{
    LONG, SHORT, assert_speaks, call, each_call_gets_its_own_answer, echo, eras, options, params, result,
};

/// A probe that listens; killed when dropped.
async fn listening(era: &str) -> (Child, Tcp) {
    let mut command = Command::new(probe_path());
    command
        .args(["--http", "0", "--era", era])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = timeout(LONG, lines.next_line()).await.unwrap().unwrap().unwrap();
    let address = said.split("http://").nth(1).unwrap().trim_end_matches("/mcp").parse().unwrap();
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, Tcp::to(address))
}

async fn opened(reach: &Tcp, options: Options) -> (Conversation, JoinHandle<End>) {
    let (near, bridge) = bridged(reach);
    let (reader, writer) = split(near);
    (Conversation::open(reader, writer, options).await.unwrap(), bridge)
}

#[test]
fn both_eras_are_found_and_spoken_and_end_in_peace() {
    in_one_thread(async {
        for (era, options, expected) in eras() {
            let (_child, reach) = listening(era).await;
            let (conversation, bridge) = opened(&reach, options).await;
            assert_speaks(&conversation, expected).await;
            assert_eq!(reach.busy.get(), 0);
            conversation.close(LONG).await;
            assert!(matches!(bridge.await.unwrap(), End::Client), "{era}");
            assert!(!reach.noted("not accepted"), "{:?}", reach.notes);
        }
    });
}

#[test]
fn calls_at_once_each_get_their_own_answer_and_long_messages_pass() {
    for era in ["legacy", "modern"] {
        in_one_thread(async {
            let (_child, reach) = listening(era).await;
            let (conversation, _bridge) = opened(&reach, options()).await;
            each_call_gets_its_own_answer(&conversation).await;
            let long = "x".repeat(4 << 20);
            let (first, second) = tokio::join!(
                echo(&conversation, &long),
                call(&conversation, "big_reply", json!({"bytes": 4 << 20})),
            );
            assert!(first == long && second == long);
        });
    }
}

#[test]
fn one_after_the_other_calls_share_a_connection() {
    in_one_thread(async {
        let (_child, reach) = listening("modern").await;
        let (conversation, _bridge) = opened(&reach, options()).await;
        echo(&conversation, "first").await;
        let before = reach.connections.get();
        for _ in 0..20 {
            echo(&conversation, "again").await;
        }
        assert!(reach.connections.get() - before <= 1, "{} connections", reach.connections.get() - before);
    });
}

#[test]
fn progress_arrives_and_a_dropped_call_is_forgotten() {
    for era in ["legacy", "modern"] {
        in_one_thread(async {
            let (_child, reach) = listening(era).await;
            let (conversation, bridge) = opened(&reach, options()).await;
            let given = params(json!({"name": "sleep", "arguments": {"ms": 3_600_000}}));
            let answer = conversation.request("tools/call", Some(&given), SHORT).await;
            assert!(matches!(answer, Err(RequestError::Timeout { .. })), "{answer:?}");
            let (reports, mut reported) = mpsc::channel(100);
            let given = params(json!({"name": "sleep", "arguments": {"ms": 20}}));
            let slept = conversation.request_with_progress("tools/call", Some(&given), LONG, reports);
            assert_eq!(result(slept.await)["content"][0]["text"], "slept 20 ms");
            let report: Value = serde_json::from_str(reported.recv().await.unwrap().get()).unwrap();
            assert_eq!(report["total"], 20);
            // What still waited for an answer would keep the bridge open.
            conversation.close(LONG).await;
            assert!(matches!(bridge.await.unwrap(), End::Client));
            assert_eq!(reach.busy.get(), 0);
        });
    }
}

#[test]
fn questions_of_the_server_reach_the_client_and_its_answers_the_server() {
    in_one_thread(async {
        let (_child, reach) = listening("legacy").await;
        let (conversation, _bridge) = opened(&reach, options()).await;
        let pinged = call(&conversation, "ask_client", json!({"method": "ping"})).await;
        assert_eq!(serde_json::from_str::<Value>(&pinged).unwrap()["result"], json!({}));
        let asked = json!({"method": "sampling/createMessage", "force": true});
        let refused = call(&conversation, "ask_client", asked).await;
        assert_eq!(serde_json::from_str::<Value>(&refused).unwrap()["error"]["code"], -32601);
    });
}

#[test]
fn the_end_of_the_process_is_the_end_of_the_conversation() {
    in_one_thread(async {
        let (mut child, reach) = listening("legacy").await;
        let (conversation, bridge) = opened(&reach, options()).await;
        reach.over.set(true);
        child.kill().await.unwrap();
        let given = params(json!({"name": "echo", "arguments": {"message": "x"}}));
        let answer = conversation.request("tools/call", Some(&given), LONG).await;
        assert!(matches!(answer, Err(RequestError::Closed { .. })), "{answer:?}");
        assert!(matches!(bridge.await.unwrap(), End::Lost(casemate_mcp::http::Lost::Over)));
    });
}
