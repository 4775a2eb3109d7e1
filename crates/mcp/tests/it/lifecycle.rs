//! How requests and conversations end.

use casemate_mcp::Conversation;
use casemate_mcp::client::{CloseReason, RequestError};
use casemate_mcp::multiplex::Refused;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::peer::{LONG, Peer, SHORT, initialize_result, legacy, options, params, response, result};

#[tokio::test]
async fn a_server_that_dies_fails_the_open_request_at_once() {
    let (conversation, mut peer) = legacy(options()).await;
    let asked = conversation.request("x", None, LONG);
    let serve = async {
        peer.expect("x").await;
        drop(peer.close_output());
    };
    let (answer, ()) = tokio::join!(asked, serve);
    let Err(RequestError::Closed { delivered: true, reason, .. }) = answer else { panic!("{answer:?}") };
    assert!(matches!(reason, CloseReason::ServerClosed));
    let again = conversation.request("x", None, LONG).await;
    assert!(matches!(again, Err(RequestError::Closed { delivered: false, .. })), "{again:?}");
    let told = conversation.notify("x", None).await;
    assert!(matches!(told, Err(RequestError::Closed { .. })), "{told:?}");
}

#[tokio::test]
async fn a_server_that_closes_its_output_and_lives_loses_its_input_too() {
    let (conversation, peer) = legacy(options()).await;
    let mut input = peer.close_output();
    assert!(matches!(conversation.closed().await, CloseReason::ServerClosed));
    let mut rest = Vec::new();
    let read = input.read_to_end(&mut rest);
    tokio::time::timeout(LONG, read).await.expect("the input ends").unwrap();
}

#[tokio::test]
async fn a_server_that_closes_its_input_may_still_answer() {
    let (conversation, mut peer) = legacy(options()).await;
    let first = conversation.request("first", None, LONG);
    let serve = async {
        let request = peer.expect("first").await;
        let mut output = peer.close_input();
        let second = conversation.request("second", None, LONG).await;
        let Err(RequestError::Closed { delivered: true, reason, .. }) = second else { panic!("{second:?}") };
        assert!(matches!(reason, CloseReason::WriteFailed(_)));
        let third = conversation.request("third", None, LONG).await;
        assert!(matches!(third, Err(RequestError::Closed { delivered: false, .. })), "{third:?}");
        let line = format!("{}\n", response(&request["id"], json!("last words")));
        output.write_all(line.as_bytes()).await.unwrap();
        output
    };
    let (first, _output) = tokio::join!(first, serve);
    assert_eq!(result(first), json!("last words"));
    let closed = conversation.closed().await;
    assert!(matches!(closed, CloseReason::WriteFailed(_)), "{closed:?}");
}

#[tokio::test]
async fn a_dropped_request_is_cancelled() {
    let (conversation, mut peer) = legacy(options()).await;
    let request = tokio::select! {
        answer = conversation.request("x", None, LONG) => panic!("{answer:?}"),
        request = peer.expect("x") => request,
    };
    let cancelled = peer.expect("notifications/cancelled").await;
    assert_eq!(cancelled["params"], json!({"requestId": request["id"]}));
}

#[tokio::test]
async fn a_request_given_up_before_it_was_written_is_never_written() {
    let (conversation, mut peer) = legacy(options()).await;
    // More than the pipe holds, so the writer is stuck in it.
    let long = params(json!({"data": "x".repeat(1 << 20)}));
    conversation.notify("long", Some(&long)).await.unwrap();
    let abandoned = conversation.request("abandoned", None, SHORT).await;
    assert!(matches!(abandoned, Err(RequestError::Timeout { .. })), "{abandoned:?}");
    let asked = conversation.request("x", None, LONG);
    let serve = async {
        peer.expect("long").await;
        let request = peer.expect("x").await;
        peer.answer(&request, json!({})).await;
    };
    let (answer, ()) = tokio::join!(asked, serve);
    result(answer);
    assert_eq!(conversation.counters().dropped_answers(), 0);
}

#[tokio::test]
async fn a_request_that_was_not_written_when_the_server_died_was_not_delivered() {
    let (conversation, peer) = legacy(options()).await;
    let long = params(json!({"data": "x".repeat(1 << 20)}));
    conversation.notify("long", Some(&long)).await.unwrap();
    let asked = conversation.request("x", None, LONG);
    let serve = async {
        tokio::task::yield_now().await;
        drop(peer);
    };
    let (answer, ()) = tokio::join!(asked, serve);
    assert!(matches!(answer, Err(RequestError::Closed { delivered: false, .. })), "{answer:?}");
}

#[tokio::test]
async fn the_last_handle_ends_the_conversation() {
    let (conversation, peer) = legacy(options()).await;
    let clone = conversation.clone();
    drop(conversation);
    assert_eq!(clone.era().version(), "2025-11-25");
    drop(clone);
    assert_eq!(peer.drain().await, "");
}

#[tokio::test]
async fn closing_writes_what_is_queued_and_waits_for_the_server() {
    let (conversation, peer) = legacy(options()).await;
    conversation.notify("last", None).await.unwrap();
    let (reason, rest) = tokio::join!(conversation.close(LONG), peer.drain());
    assert!(matches!(reason, CloseReason::ServerClosed), "{reason:?}");
    assert_eq!(rest, "{\"jsonrpc\":\"2.0\",\"method\":\"last\"}\n");
    let after = conversation.request("x", None, LONG).await;
    assert!(matches!(after, Err(RequestError::Closed { delivered: false, .. })), "{after:?}");
}

#[tokio::test]
async fn closing_ends_one_direction_of_a_stream_that_has_two() {
    let (ours, theirs) = tokio::io::duplex(1 << 10);
    let (reader, writer) = tokio::io::split(ours);
    let serve = async {
        let (input, mut output) = tokio::io::split(theirs);
        let mut lines = BufReader::new(input).lines();
        let request: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        let line = format!("{}\n", response(&request["id"], initialize_result("2025-11-25")));
        output.write_all(line.as_bytes()).await.unwrap();
        let mut heard = 0;
        while lines.next_line().await.unwrap().is_some() {
            heard += 1;
        }
        assert_eq!(heard, 1, "the server hears that it is initialised, then the end");
    };
    let lead = async {
        let conversation = Conversation::open(reader, writer, options()).await.unwrap();
        conversation.close(LONG).await
    };
    let (reason, ()) = tokio::join!(lead, serve);
    assert!(matches!(reason, CloseReason::ServerClosed), "{reason:?}");
}

#[tokio::test]
async fn a_server_that_does_not_close_is_left_after_the_grace() {
    let (conversation, mut peer) = legacy(options()).await;
    let waiting = conversation.clone();
    let asked = tokio::spawn(async move { waiting.request("x", None, LONG).await });
    tokio::task::yield_now().await;
    assert!(matches!(conversation.close(SHORT).await, CloseReason::Closed));
    assert!(matches!(asked.await.unwrap(), Err(RequestError::Closed { .. })));
    // The handle is still there, but nobody reads any more.
    while peer.try_say(b"noise\n").await.is_ok() {}
    assert_eq!(conversation.counters().garbage_lines, 0);
}

#[tokio::test]
async fn open_requests_are_bounded() {
    let mut options = options();
    options.open_requests = 2;
    let (conversation, _peer) = legacy(options).await;
    let third = async {
        tokio::task::yield_now().await;
        conversation.request("third", None, LONG).await
    };
    let answer = tokio::select! {
        biased;
        _ = conversation.request("first", None, LONG) => panic!("answered"),
        _ = conversation.request("second", None, LONG) => panic!("answered"),
        answer = third => answer,
    };
    assert!(matches!(answer, Err(RequestError::Refused { reason: Refused::TooManyOpen, .. })), "{answer:?}");
}

#[tokio::test]
async fn what_would_be_no_message_is_not_sent() {
    let (conversation, peer) = legacy(options()).await;
    let list = params(json!([1]));
    let answer = conversation.request("x", Some(&list), LONG).await;
    assert!(matches!(answer, Err(RequestError::Invalid { .. })), "{answer:?}");
    let huge = params(json!({"data": "x".repeat(16 << 20)}));
    let answer = conversation.request("x", Some(&huge), LONG).await;
    assert!(matches!(answer, Err(RequestError::TooLong { .. })), "{answer:?}");
    drop(conversation);
    assert_eq!(peer.drain().await, "");
}

#[tokio::test]
async fn line_breaks_in_params_do_not_break_the_line() {
    let (conversation, mut peer) = legacy(options()).await;
    let pretty = serde_json::value::RawValue::from_string("{\n  \"a\":\r\n \"b\\n\"\n}".into()).unwrap();
    conversation.notify("x", Some(&pretty)).await.unwrap();
    assert_eq!(peer.expect("x").await["params"], json!({"a": "b\n"}));
}

#[tokio::test]
async fn an_opening_that_is_dropped_ends_the_conversation() {
    let (mut peer, reader, writer) = Peer::new();
    tokio::select! {
        opened = Conversation::open(reader, writer, options()) => panic!("{opened:?}"),
        _ = peer.expect("initialize") => {}
    }
    assert_eq!(peer.drain().await, "");
}
