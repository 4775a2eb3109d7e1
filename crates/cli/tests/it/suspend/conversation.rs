//! Clients whose machine is suspended under them: they do not notice.

use super::IDLE;
use crate::{
    home::{Home, casemate},
    support::{eventually, is_alive},
};
use casemate_testkit::LineClient;
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

const PATIENCE: Duration = Duration::from_secs(120);

fn client(home: &Home, args: &[&str]) -> LineClient {
    let line = [&["run", "--idle", IDLE], args].concat();
    LineClient::spawn(&mut home.command(&line)).unwrap().with_patience(PATIENCE)
}

fn suspended(home: &Home) -> Value {
    eventually("a suspended machine", || {
        home.records().into_iter().find(|record| record["state"] == "suspended")
    })
}

fn count(client: &mut LineClient) -> Value {
    let answer = client.call("counter", json!({})).unwrap();
    serde_json::from_str(answer["result"]["content"][0]["text"].as_str().unwrap()).unwrap()
}

#[test]
fn a_client_does_not_notice_that_its_machine_was_suspended() {
    let home = Home::new();
    let mut client = client(&home, &["--", "builtin:probe"]);
    client.initialize("2025-06-18", json!({})).unwrap();
    let first = count(&mut client);
    for round in 2..=4 {
        suspended(&home);
        let now = count(&mut client);
        assert_eq!((&now["count"], &now["pid"]), (&json!(round), &first["pid"]));
    }
    suspended(&home);
    // Not even a large message.
    let large = "x".repeat(3 << 20);
    let echoed = client.call("echo", json!({ "message": large })).unwrap();
    assert!(echoed["result"]["content"][0]["text"].as_str().unwrap().contains(&large));
    // Nor is a request that is open for longer than the machine may be idle.
    let slept = client.call("sleep", json!({"ms": 2000})).unwrap();
    assert_eq!(slept["result"]["content"][0]["text"], "slept 2000 ms");

    suspended(&home);
    client.close_stdin();
    assert_eq!(client.wait().unwrap().code(), Some(0), "{}", client.stderr());
    assert_eq!(home.leftovers(), [""; 0]);
}

#[test]
fn a_client_that_goes_while_its_machine_sleeps_takes_it_along() {
    let home = Home::new();
    let mut client = client(&home, &["--", "builtin:probe"]);
    client.initialize("2025-06-18", json!({})).unwrap();
    let supervisor = suspended(&home)["supervisor_pid"].as_u64().unwrap() as u32;
    drop(client);
    eventually("the supervisor's end", || (!is_alive(supervisor)).then_some(()));
    assert_eq!(home.leftovers(), [""; 0]);
}

/// What a server says by itself while its machine falls asleep comes before it sleeps, or after it woke.
#[test]
fn what_a_server_says_meanwhile_is_neither_lost_nor_told_twice() {
    const MESSAGES: u64 = 12;
    let home = Home::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/announcer");
    let added = casemate(&home, &["add", "announcer", &format!("dir:{}", folder.display())]);
    assert_eq!(added.code, 0, "{added:?}");
    let mut client = client(&home, &["announcer"]);
    client.initialize("2025-06-18", json!({})).unwrap();
    // Just as often as it is suspended.
    client.call("announce", json!({"count": MESSAGES, "every_ms": 405})).unwrap();
    // Time passes in it only while it is awake, and each time for about as long as one message takes.
    for _ in 0..MESSAGES + 4 {
        suspended(&home);
        client.request("ping", json!({})).unwrap();
    }
    let heard: Vec<Value> = (0..MESSAGES).map(|_| client.recv().unwrap()["params"]["data"].take()).collect();
    assert_eq!(heard, (0..MESSAGES).map(Value::from).collect::<Vec<_>>());
    // None comes twice.
    let last = client.start("ping", json!({})).unwrap();
    assert_eq!(client.recv().unwrap()["id"], last);
}
