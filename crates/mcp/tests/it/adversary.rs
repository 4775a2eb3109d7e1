//! Servers that answer twice, never, late, as somebody else, too much, and what is no answer at all.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use casemate_mcp::client::{CloseReason, Event, OpenError, RequestError};
use casemate_mcp::{Answer, Conversation};
use serde_json::json;
use tokio::io::{AsyncRead, ReadBuf};

use super::peer::{LONG, SHORT, legacy, options, params, response, result};

#[tokio::test]
async fn a_second_answer_is_dropped() {
    let (conversation, mut peer) = legacy(options()).await;
    for round in 0..3 {
        let asked = conversation.request("x", None, LONG);
        let serve = async {
            let request = peer.expect("x").await;
            peer.answer(&request, json!({"round": round})).await;
            peer.answer(&request, json!({"round": "again"})).await;
        };
        let (answer, ()) = tokio::join!(asked, serve);
        assert_eq!(result(answer), json!({"round": round}));
    }
    let serve = async {
        let request = peer.expect("ping").await;
        peer.answer(&request, json!({})).await;
    };
    tokio::join!(async { conversation.ping(LONG).await.unwrap() }, serve);
    let routing = conversation.counters().routing;
    assert_eq!((routing.stray_answers, routing.late_answers), (3, 0));
}

#[tokio::test]
async fn answers_in_another_order_reach_who_asked() {
    let (conversation, mut peer) = legacy(options()).await;
    let serve = async {
        let first = peer.expect("x").await;
        let second = peer.expect("x").await;
        peer.say(response(&json!(999_999), json!("nobody's"))).await;
        peer.say(response(&json!(first["id"].to_string()), json!("a string is another id"))).await;
        for request in [second, first] {
            peer.answer(&request, request["params"]["who"].clone()).await;
        }
    };
    let (a, b) = (params(json!({"who": "a"})), params(json!({"who": "b"})));
    let (a, b, ()) = tokio::join!(
        conversation.request("x", Some(&a), LONG),
        conversation.request("x", Some(&b), LONG),
        serve
    );
    assert_eq!((result(a), result(b)), (json!("a"), json!("b")));
    assert_eq!(conversation.counters().dropped_answers(), 2);
}

#[tokio::test]
async fn a_late_answer_is_dropped_and_the_request_was_cancelled() {
    let (conversation, mut peer) = legacy(options()).await;
    let asked = conversation.request("slow", None, SHORT);
    let (answer, request) = tokio::join!(asked, peer.expect("slow"));
    assert!(matches!(answer, Err(RequestError::Timeout { .. })), "{answer:?}");
    let cancelled = peer.expect("notifications/cancelled").await;
    assert_eq!(cancelled["params"]["requestId"], request["id"]);

    let asked = conversation.request("x", None, LONG);
    let serve = async {
        peer.answer(&request, json!("late")).await;
        let request = peer.expect("x").await;
        peer.answer(&request, json!("in time")).await;
    };
    let (answer, ()) = tokio::join!(asked, serve);
    assert_eq!(result(answer), json!("in time"));
    assert_eq!(conversation.counters().routing.late_answers, 1);
}

#[tokio::test]
async fn garbage_is_counted_and_shown_and_does_no_harm() {
    let shown = Arc::new(Mutex::new(Vec::new()));
    let mut options = options();
    let seen = shown.clone();
    options.observer = Arc::new(move |event| {
        if let Event::Rejected(line) = event {
            seen.lock().unwrap().push(line.preview.clone());
        }
    });
    let (conversation, mut peer) = legacy(options).await;
    let asked = conversation.request("x", None, LONG);
    let serve = async {
        let request = peer.expect("x").await;
        peer.say("starting…\n[]\n{\"jsonrpc\":\"2.0\"}").await;
        peer.answer(&request, json!({})).await;
    };
    let (answer, ()) = tokio::join!(asked, serve);
    result(answer);
    let counters = conversation.counters();
    assert_eq!((counters.garbage_lines, counters.invalid_messages), (2, 1));
    assert_eq!(*shown.lock().unwrap(), ["starting…", "[]", "{\"jsonrpc\":\"2.0\"}"]);
}

#[tokio::test]
async fn a_line_of_100_mb_ends_the_conversation() {
    let (conversation, mut peer) = legacy(options()).await;
    let asked = conversation.request("big", None, LONG);
    let serve = async {
        peer.expect("big").await;
        let chunk = vec![b'x'; 1 << 20];
        let mut written = 0;
        while written < 100 && peer.try_say(&chunk).await.is_ok() {
            written += 1;
        }
        written
    };
    let (answer, written) = tokio::join!(asked, serve);
    let Err(RequestError::Closed { delivered: true, reason, .. }) = answer else { panic!("{answer:?}") };
    assert!(matches!(reason, CloseReason::TooLong { .. }));
    assert!((16..20).contains(&written), "{written} MiB were read");
    assert!(matches!(conversation.closed().await, CloseReason::TooLong { .. }));
}

/// A server that never stops printing, on a stream that is always ready.
struct Endless;

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buffer.put_slice(b"x\n");
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_flood_that_never_pauses_leaves_others_their_turn() {
    let mut impatient = options();
    impatient.negotiate_timeout = SHORT;
    let opened = Conversation::open(Endless, tokio::io::sink(), impatient).await;
    assert!(matches!(opened, Err(OpenError::NoAnswer(RequestError::Timeout { .. }))), "{opened:?}");
}

#[tokio::test]
async fn a_flood_while_a_long_request_is_written_blocks_nobody() {
    let (conversation, mut peer) = legacy(options()).await;
    let long = params(json!({"data": "x".repeat(4 << 20)}));
    let asked = conversation.request("long", Some(&long), LONG);
    let serve = async {
        let noise = json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}).to_string();
        // The server reads nothing before all of it is taken.
        for _ in 0..(4 << 20) / noise.len() {
            peer.say(&noise).await;
        }
        let request = peer.expect("long").await;
        peer.answer(&request, json!({"got": request["params"]["data"].as_str().unwrap().len()})).await;
    };
    let (answer, ()) = tokio::join!(asked, serve);
    assert_eq!(result(answer), json!({"got": 4 << 20}));
}

#[tokio::test]
async fn a_server_that_asks_and_does_not_read_gets_few_replies() {
    let (conversation, mut peer) = legacy(options()).await;
    const ASKED: u64 = 20_000;
    for id in 0..ASKED {
        peer.say(json!({"jsonrpc": "2.0", "id": id, "method": "ping"}).to_string()).await;
    }
    let asked = conversation.request("x", None, LONG);
    let serve = async {
        let mut replies = 0;
        loop {
            let message = peer.hear().await.unwrap();
            if message["method"] == "x" {
                peer.answer(&message, json!({})).await;
                return replies;
            }
            assert_eq!(message["result"], json!({}));
            replies += 1;
        }
    };
    let (answer, replies) = tokio::join!(asked, serve);
    result(answer);
    // What the pipe holds, and the queue of 256.
    assert!(replies < 4_000, "{replies} replies were kept");
    assert!(conversation.counters().dropped_replies > ASKED / 2);
}

#[tokio::test]
async fn requests_of_the_server_are_refused_but_ping() {
    let refused = Arc::new(Mutex::new(Vec::new()));
    let mut options = options();
    let seen = refused.clone();
    options.observer = Arc::new(move |event| {
        if let Event::RefusedRequest { method } = event {
            seen.lock().unwrap().push(method.to_owned());
        }
    });
    let (conversation, mut peer) = legacy(options).await;
    peer.say(r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#).await;
    assert_eq!(peer.hear().await.unwrap(), json!({"jsonrpc": "2.0", "id": "p", "result": {}}));
    peer.say(r#"{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{}}"#).await;
    let reply = peer.hear().await.unwrap();
    assert_eq!((&reply["id"], &reply["error"]["code"]), (&json!(1), &json!(-32601)));
    assert_eq!(*refused.lock().unwrap(), ["sampling/createMessage"]);
    assert_eq!(conversation.counters().routing.refused_requests, 1);
}

#[tokio::test]
async fn an_error_is_an_answer() {
    let (conversation, mut peer) = legacy(options()).await;
    let asked = conversation.request("x", None, LONG);
    let serve = async {
        let request = peer.expect("x").await;
        peer.refuse(&request, -32602).await;
    };
    let (answer, ()) = tokio::join!(asked, serve);
    let answer = answer.unwrap();
    assert_eq!(answer.error().unwrap().code, -32602);
    assert!(matches!(answer, Answer::Error(error) if error.get().contains("\"message\":\"no\"")));
}

#[tokio::test]
async fn progress_goes_to_who_asked_for_it_and_is_bounded() {
    let (conversation, mut peer) = legacy(options()).await;
    let (reports, mut reported) = tokio::sync::mpsc::channel(2);
    let given = params(json!({"_meta": {"progressToken": "mine"}}));
    let asked = conversation.request_with_progress("long", Some(&given), LONG, reports);
    let serve = async {
        let request = peer.expect("long").await;
        let token = &request["params"]["_meta"]["progressToken"];
        assert!(token.is_u64());
        for token in [&json!("mine"), token, &json!(77), token, token] {
            let params = json!({"progressToken": token, "progress": 1});
            let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params});
            peer.say(progress.to_string()).await;
        }
        peer.answer(&request, json!({})).await;
    };
    let (answer, ()) = tokio::join!(asked, serve);
    result(answer);
    for _ in 0..2 {
        let report = reported.recv().await.unwrap();
        let report: serde_json::Value = serde_json::from_str(report.get()).unwrap();
        assert_eq!(report, json!({"progressToken": "mine", "progress": 1}));
    }
    assert!(reported.recv().await.is_none());
    let counters = conversation.counters();
    assert_eq!((counters.dropped_progress, counters.routing.stray_notifications), (1, 2));
}
