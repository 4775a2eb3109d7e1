use crate::{Limits, testing::*};
use http_body_util::BodyExt;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{sleep, timeout};

const LIST_CHANGED: &str = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;

fn progress(id: u32, token: impl Into<Value>, steps: u32) -> String {
    request(id, "progress", json!({"_meta": {"progressToken": token.into()}, "steps": steps}))
}

#[test]
fn the_form_of_an_answer_is_one_that_the_client_takes() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let ask = |accept: &str, body: String| {
            let mut request = post(Some(&session), &body);
            request.headers_mut().insert("accept", accept.parse().unwrap());
            world.ask(request)
        };
        let echo = || request(1, "echo", json!({}));
        let answer = ask(EITHER, echo()).await;
        assert_eq!(answer.header("content-type"), "application/json");
        let answer = ask("text/event-stream", echo()).await;
        assert_eq!(answer.events(), [json!({"jsonrpc": "2.0", "id": 1, "result": {}})]);
        // More than the answer, or one that takes its time, is a stream where one is taken.
        assert_eq!(ask(EITHER, progress(1, "t", 3)).await.events().len(), 4);
        let slow = || request(1, "sleep", json!({"ms": 1500}));
        assert_eq!(ask(EITHER, slow()).await.events().len(), 1);
        for body in [slow(), progress(1, "t", 3)] {
            let answer = ask("application/json", body).await;
            assert_eq!(
                (answer.header("content-type"), &answer.json()["id"]),
                ("application/json", &json!(1))
            );
        }
        let answer = ask("text/html", echo()).await;
        assert_eq!(answer.refused(), (406, -32000));
    });
}

#[test]
fn a_session_can_begin_with_a_stream() {
    local(async {
        let world = World::new();
        let mut begin = post(None, &initialize(LATEST));
        begin.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
        let begun = world.ask(begin).await;
        assert_eq!(begun.events()[0]["result"]["protocolVersion"], LATEST);
        let session = begun.header("mcp-session-id");
        let answer = world.post(Some(session), &request(1, "echo", json!({}))).await;
        assert_eq!(answer.status, StatusCode::OK);
    });
}

#[test]
fn progress_follows_its_request() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        // Neither is answered; what one asks for comes on its stream, whichever was there first.
        let silent = |id: u32, token: Value| {
            request(id, "progress", json!({"_meta": {"progressToken": token}, "steps": 2, "silent": true}))
        };
        let mut one = world.send(post(Some(&session), &silent(1, json!("t")))).await;
        let mut two = world.send(post(Some(&session), &silent(2, json!(7)))).await;
        for step in [1, 2] {
            assert_eq!(
                next(&mut two).await.unwrap()["params"],
                json!({"progressToken": 7, "progress": step})
            );
            assert_eq!(
                next(&mut one).await.unwrap()["params"],
                json!({"progressToken": "t", "progress": step})
            );
        }
        // That of a request which was answered goes to the session.
        let mut own = world.send(get(&session, None)).await;
        let late = json!({"jsonrpc": "2.0", "method": "notifications/progress",
            "params": {"progressToken": "gone", "progress": 1}});
        world.post(Some(&session), &request(3, "say", json!({"lines": [late]}))).await;
        assert_eq!(next(&mut own).await, Some(late));
    });
}

#[test]
fn a_request_of_the_server_goes_to_the_one_that_is_open_and_its_answer_back() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let mut own = world.send(get(&session, None)).await;
        let mut asking = world.send(post(Some(&session), &request(5, "ask", json!({})))).await;
        let question = next(&mut asking).await.unwrap();
        assert_eq!((&question["method"], &question["id"]), (&json!("elicitation/create"), &json!("q1")));
        let answer = r#"{"jsonrpc":"2.0","id":"q1","result":{"action":"accept"}}"#;
        assert_eq!(world.post(Some(&session), answer).await.status, StatusCode::ACCEPTED);
        let done = next(&mut asking).await.unwrap();
        assert_eq!(done, json!({"jsonrpc": "2.0", "id": 5, "result": {"action": "accept"}}));
        assert_eq!(piece(&mut asking).await, None);
        assert!(timeout(Duration::from_secs(1), next(&mut own)).await.is_err());
    });
}

#[test]
fn a_request_of_the_server_goes_to_the_session_where_its_cause_cannot_be_told() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let mut first = world.send(post(Some(&session), &request(1, "hang", json!({})))).await;
        // Nobody reads the session's own stream: the latest request's is better than none.
        let mut second = world.send(post(Some(&session), &request(2, "ask", json!({})))).await;
        assert_eq!(next(&mut second).await.unwrap()["method"], "elicitation/create");
        let mut own = world.send(get(&session, None)).await;
        let mut third = world.send(post(Some(&session), &request(3, "ask", json!({})))).await;
        assert_eq!(next(&mut own).await.unwrap()["method"], "elicitation/create");
        for stream in [&mut first, &mut second, &mut third] {
            assert!(timeout(Duration::from_secs(1), next(stream)).await.is_err());
        }
        // One that takes no stream is sent nothing but its answer.
        let mut alone = post(Some(&session), &request(4, "ask", json!({})));
        alone.headers_mut().insert("accept", "application/json".parse().unwrap());
        let alone = world.ask(alone);
        tokio::pin!(alone);
        assert!(timeout(Duration::from_secs(1), &mut alone).await.is_err());
        assert_eq!(next(&mut own).await.unwrap()["method"], "elicitation/create");
        world.post(Some(&session), r#"{"jsonrpc":"2.0","id":"q1","result":{}}"#).await;
        assert_eq!(alone.await.json()["id"], 4);
    });
}

#[test]
fn the_sessions_own_stream_has_one_reader_and_forgets_nothing_before_it() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let say = |id: u32| request(id, "say", json!({"lines": [LIST_CHANGED]}));
        // The client of a request that takes no stream is not told on it.
        let mut quiet = post(Some(&session), &say(1));
        quiet.headers_mut().insert("accept", "application/json".parse().unwrap());
        assert_eq!(world.ask(quiet).await.json()["id"], 1);
        let mut own = world.send(get(&session, None)).await;
        assert_eq!((own.status(), next(&mut own).await.is_some()), (StatusCode::OK, true));
        assert_eq!(world.ask(get(&session, None)).await.refused(), (409, -32000));
        let answer = world.post(Some(&session), &say(2)).await;
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(next(&mut own).await.unwrap()["method"], "notifications/tools/list_changed");
        drop(own);
        sleep(Duration::from_millis(10)).await;
        assert_eq!(world.send(get(&session, None)).await.status(), StatusCode::OK);
        let mut deaf = get(&session, None);
        deaf.headers_mut().insert("accept", "application/json".parse().unwrap());
        assert_eq!(world.ask(deaf).await.refused(), (406, -32000));
    });
}

#[test]
fn a_client_that_lost_its_connection_reads_on() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let mut lost = world.send(post(Some(&session), &request(1, "sleep", json!({"ms": 5000})))).await;
        let id = first_id(&mut lost).await;
        drop(lost);
        sleep(Duration::from_secs(6)).await;
        let rest = world.ask(get(&session, Some(&id))).await;
        assert_eq!(rest.events(), [json!({"jsonrpc": "2.0", "id": 1, "result": {}})]);
        // As often as it likes, for as long as it is kept.
        assert_eq!(world.ask(get(&session, Some(&id))).await.events().len(), 1);
        let other = world.begin().await;
        assert_eq!(world.ask(get(&other, Some(&id))).await.refused(), (400, -32000));
        for unknown in ["x", "1", "1-99", "77-0", "1-1-1"] {
            assert_eq!(world.ask(get(&session, Some(unknown))).await.refused(), (400, -32000), "{unknown}");
        }
    });
}

/// The name of the first event of a stream, which has no data.
async fn first_id(response: &mut hyper::Response<hyper::body::Incoming>) -> String {
    let primer = piece(response).await.unwrap();
    primer.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned()
}

#[test]
fn an_answer_that_is_too_long_to_be_kept_is_not_lost_in_silence() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let _before = world.send(post(Some(&session), &request(1, "sleep", json!({"ms": 5000})))).await;
        let long = request(2, "echo", json!({"x": "y".repeat(2 << 20)}));
        let mut lost = world.send(post(Some(&session), &long)).await;
        let id = first_id(&mut lost).await;
        drop(lost);
        sleep(Duration::from_secs(6)).await;
        let told = world.ask(get(&session, Some(&id))).await.events();
        assert_eq!((told.len(), &told[0]["id"]), (1, &json!(2)));
        let message = told[0]["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("the answer was too long to be kept"), "{message}");
    });
}

#[test]
fn a_question_finds_its_request_while_that_has_no_connection() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let mut own = world.send(get(&session, None)).await;
        let before = request(1, "sleep", json!({"ms": 5000}));
        let mut before = world.send(post(Some(&session), &before)).await;
        let mut lost = world.send(post(Some(&session), &request(2, "ask", json!({})))).await;
        let id = first_id(&mut lost).await;
        drop(lost);
        assert_eq!(next(&mut before).await.unwrap()["id"], 1);
        sleep(Duration::from_secs(1)).await;
        let mut back = world.send(get(&session, Some(&id))).await;
        assert_eq!(next(&mut back).await.unwrap()["method"], "elicitation/create");
        world.post(Some(&session), r#"{"jsonrpc":"2.0","id":"q1","result":{}}"#).await;
        assert_eq!(next(&mut back).await.unwrap()["id"], 2);
        assert!(timeout(Duration::from_secs(1), next(&mut own)).await.is_err());
    });
}

#[test]
fn a_server_whose_question_nobody_took_is_told_so() {
    local(async {
        let world = World::with(Limits { kept_bytes: 100, ..Limits::default() });
        let session = world.begin().await;
        let question = json!({"jsonrpc": "2.0", "id": "q7", "method": "elicitation/create",
            "params": {"message": "x".repeat(200)}});
        let mut quiet = post(Some(&session), &request(1, "say", json!({"lines": [question]})));
        quiet.headers_mut().insert("accept", "application/json".parse().unwrap());
        assert_eq!(world.ask(quiet).await.json()["id"], 1);
        sleep(Duration::from_millis(1)).await;
        let heard = world.servers.heard.borrow();
        let told: Value = serde_json::from_str(heard.last().unwrap()).unwrap();
        assert_eq!((&told["id"], &told["error"]["code"]), (&json!("q7"), &json!(-32000)), "{told}");
    });
}

#[test]
fn what_a_server_tells_of_a_request_goes_with_its_answer() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let mut own = world.send(get(&session, None)).await;
        let log = json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x"}});
        let list: Value = serde_json::from_str(LIST_CHANGED).unwrap();
        let say = request(1, "say", json!({"lines": [log, list]}));
        let told = world.post(Some(&session), &say).await.events();
        assert_eq!((told.len(), &told[0], &told[1]["id"]), (2, &log, &json!(1)));
        assert_eq!(next(&mut own).await, Some(list));
    });
}

#[test]
fn the_sessions_own_stream_is_read_on_and_taken_over() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let mut first = world.send(get(&session, None)).await;
        world.post(Some(&session), &request(1, "say", json!({"lines": vec![LIST_CHANGED; 3]}))).await;
        let seen = loop {
            let piece = piece(&mut first).await.unwrap();
            if let Some(id) = piece.lines().find_map(|line| line.strip_prefix("id: ").map(str::to_owned))
                && !events(&piece).is_empty()
            {
                break id;
            }
        };
        // The gateway has not noticed that the first connection is of no use any more.
        let mut second = world.send(get(&session, Some(&seen))).await;
        assert!(next(&mut second).await.is_some() && next(&mut second).await.is_some());
        assert!(timeout(Duration::from_secs(1), next(&mut second)).await.is_err());
        drop(first);
        world.post(Some(&session), &request(2, "say", json!({"lines": [LIST_CHANGED]}))).await;
        assert!(next(&mut second).await.is_some());
    });
}

#[test]
fn only_clients_that_know_them_are_sent_events_without_data() {
    local(async {
        let world = World::new();
        for (version, primers) in [("2025-03-26", 0), ("2025-06-18", 0), (LATEST, 1)] {
            let session = world.begin_with("a", version).await;
            let answer = world.post(Some(&session), &progress(1, "t", 1)).await;
            assert_eq!(answer.body.matches("\ndata:\n").count(), primers, "{version}");
            assert_eq!(answer.events().len(), 2);
        }
    });
}

#[test]
fn a_cancelled_request_is_over_and_its_late_answer_is_nobodys() {
    local(async {
        let world = World::new();
        let session = world.begin().await;
        let mut slow = world.send(post(Some(&session), &request(1, "sleep", json!({"ms": 5000})))).await;
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        assert_eq!(world.post(Some(&session), cancel).await.status, StatusCode::ACCEPTED);
        let told = next(&mut slow).await.unwrap();
        assert_eq!(
            (&told["id"], told["error"]["message"].as_str()),
            (&json!(1), Some("the request was cancelled"))
        );
        assert_eq!(piece(&mut slow).await, None);
        // The same id again would get the late first answer, until that has come.
        let echo = request(1, "echo", json!({"again": true}));
        assert_eq!(world.post(Some(&session), &echo).await.refused(), (400, -32600));
        sleep(Duration::from_secs(6)).await;
        let again = world.post(Some(&session), &echo).await;
        assert_eq!(again.json()["result"], json!({"again": true}));
        assert!(world.servers.heard.borrow().iter().any(|line| line == cancel));
        let unclear =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"requestId":2}}"#;
        assert_eq!(world.post(Some(&session), unclear).await.refused(), (400, -32602));
    });
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_can_come_back() {
    local(async {
        let limits = Limits { kept_bytes: 10_000, ..Limits::default() };
        let world = World::with(limits);
        let session = world.begin().await;
        let mut own = world.send(get(&session, None)).await;
        let line = format!(r#"{{"jsonrpc":"2.0","method":"x","params":{{"x":"{}"}}}}"#, "y".repeat(1000));
        // Far more than the buffers between gateway and client take.
        let flood = request(1, "say", json!({"lines": vec![line.clone(); 2000]}));
        let mut flood = post(Some(&session), &flood);
        flood.headers_mut().insert("accept", "application/json".parse().unwrap());
        assert_eq!(world.ask(flood).await.json()["id"], 1);
        // What the buffers took is all there is: the connection is cut, with a piece half written.
        let mut got = 0;
        while let Some(Ok(_)) = timeout(Duration::from_secs(60), own.body_mut().frame()).await.unwrap() {
            got += 1;
        }
        assert!(got < 2000, "{got}");
        let mut back = world.send(get(&session, None)).await;
        let mut kept = 0;
        while timeout(Duration::from_secs(1), next(&mut back)).await.is_ok_and(|message| message.is_some()) {
            kept += 1;
        }
        assert!((1..=9).contains(&kept), "{kept}");
        let answer = world.post(Some(&session), &request(2, "echo", json!({}))).await;
        assert_eq!(answer.status, StatusCode::OK);
    });
}

#[test]
fn a_client_that_reads_slowly_gets_everything() {
    local(async {
        let world = World::with(Limits { kept_bytes: 10_000, ..Limits::default() });
        let session = world.begin().await;
        let line = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":"t","x":"{}"}}}}"#,
            "y".repeat(1000)
        );
        let params = json!({"_meta": {"progressToken": "t"}, "lines": vec![line; 1000]});
        let mut slow = world.send(post(Some(&session), &request(1, "say", params))).await;
        let mut text = String::new();
        while let Some(piece) = piece(&mut slow).await {
            text.push_str(&piece);
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(events(&text).len(), 1001);
    });
}
