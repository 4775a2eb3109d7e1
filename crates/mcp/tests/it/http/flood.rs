//! Many requests, many connections and many bytes at once: what is bounded, and what goes on beside it.

use std::time::Duration;

use casemate_proto::limits::{GUEST_STREAMS, STREAMS};
use serde_json::{Value, json};
use tokio::task::{JoinSet, spawn_local};

use super::fake::{Client, Fake, Heard, in_one_thread, notification, request, result};

/// Longer than what is expected to happen takes on a busy host.
const PAUSE: Duration = Duration::from_millis(300);

/// More than are open at once.
const MANY: u64 = 50;

/// Longer than what is held of a connection that nobody reads.
const LONG_BYTES: usize = 2 << 20;

fn modern(id: u64, method: &str) -> Value {
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {"_meta": meta}})
}

async fn answer_all(heard: Vec<Heard>) {
    for heard in heard {
        let answer = result(heard.body["id"].clone());
        heard.json(200, &[], &answer).await;
    }
}

#[test]
fn requests_leave_the_host_streams_and_a_ping_waits_for_none_of_them() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        for id in 1..=MANY {
            client.say(&request(id, "tools/call")).await;
        }
        let first = fake.hear_all(PAUSE).await;
        assert!(first.len() + 8 <= STREAMS - GUEST_STREAMS, "{}", first.len());
        for method in ["ping", "server/discover"] {
            client.say(&request(method, method)).await;
            let heard = fake.hear().await;
            assert_eq!(heard.body["method"], method);
            heard.json(200, &[], &result(method)).await;
            assert_eq!(client.hear().await.unwrap(), result(method));
        }
        // A client that begins anew waits for none either.
        fake.begin(&mut client, "s").await;
        let mut answered = first.len();
        answer_all(first).await;
        while answered < MANY as usize {
            let next = fake.hear_all(PAUSE).await;
            answered += next.len();
            answer_all(next).await;
        }
        for _ in 0..MANY {
            assert_eq!(client.hear().await.unwrap()["result"], json!({}));
        }
    });
}

#[test]
fn one_subscription_too_many_is_refused_and_requests_go_on() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        for id in 0..MANY {
            client.say(&modern(id, "subscriptions/listen")).await;
        }
        let open = fake.hear_all(PAUSE).await;
        for _ in open.len() as u64..MANY {
            let refused = client.hear().await.unwrap();
            assert_eq!(refused["error"]["message"], "too many subscriptions are open");
        }
        assert!(!open.is_empty());
        client.say(&modern(100, "tools/list")).await;
        let heard = fake.hear().await;
        assert_eq!(heard.body["method"], "tools/list");
        heard.json(200, &[], &result(100)).await;
        assert_eq!(client.hear().await.unwrap(), result(100));
    });
}

#[test]
fn streams_that_a_server_leaves_open_after_its_answers_are_few() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        let mut streams = Vec::new();
        for id in 0..6 {
            client.say(&request(id, "tools/call")).await;
            let mut events = fake.hear().await.stream().await;
            events.message(&result(id)).await;
            assert_eq!(client.hear().await.unwrap(), result(id));
            streams.push(events);
        }
        let mut open = 0;
        for stream in &mut streams {
            open += usize::from(!stream.is_closed(Duration::from_millis(50)).await);
        }
        assert!(open <= 2, "{open} are open");
    });
}

#[test]
fn an_answer_of_the_client_is_said_again_where_there_was_no_room() {
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        reach.full.set(3);
        client.say(&result("q")).await;
        let heard = fake.hear().await;
        assert_eq!(heard.body, result("q"));
        heard.status(202).await;
        // A request is for its client to repeat.
        reach.full.set(1);
        client.say(&request(1, "tools/list")).await;
        assert_eq!(client.hear().await.unwrap()["error"]["code"], -32000);
        client.say(&notification("notifications/initialized")).await;
        assert_eq!(fake.hear().await.body["method"], "notifications/initialized");
        assert!(reach.notes.borrow().is_empty(), "{:?}", reach.notes);
    });
}

/// Asks for long answers, and reads none of them for a while.
fn long_answers(in_streams: bool) {
    const ASKED: u64 = 4;
    in_one_thread(async {
        let (fake, reach) = Fake::new().await;
        let mut client = Client::of(&reach);
        let text = "x".repeat(LONG_BYTES);
        let mut sending = JoinSet::new();
        for id in 0..ASKED {
            client.say(&request(id, "tools/call")).await;
            let heard = fake.hear().await;
            let answer = json!({"jsonrpc": "2.0", "id": id, "result": text});
            sending.spawn_local(async move {
                if in_streams {
                    heard.stream().await.message(&answer).await;
                } else {
                    heard.json(200, &[], &answer).await;
                }
            });
        }
        // Two are read; the others wait for the client.
        for _ in 0..2 {
            sending.join_next().await.unwrap().unwrap();
        }
        tokio::time::sleep(2 * PAUSE).await;
        assert!(sending.try_join_next().is_none(), "more was read than the client wants");
        let rest = spawn_local(async move { sending.join_all().await });
        for _ in 0..ASKED {
            assert_eq!(client.hear().await.unwrap()["result"].as_str().unwrap().len(), LONG_BYTES);
        }
        rest.await.unwrap();
    });
}

#[test]
fn long_answers_wait_until_the_client_has_read_those_before() {
    long_answers(false);
}

#[test]
fn long_events_wait_until_the_client_has_read_those_before() {
    long_answers(true);
}
