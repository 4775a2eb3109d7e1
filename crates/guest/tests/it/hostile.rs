//! Nonsense and floods.

use crate::support::*;
use casemate_proto::control::{Failure, FailureCode, Inventory, Request, ServerState};
use casemate_proto::limits::{CONTROL_MESSAGE_BYTES, STREAMS};
use casemate_proto::port;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn refusal(control: &mut Control, line: &str) -> Failure {
    control.send(line).await;
    control.reply().await.unwrap().error.unwrap()
}

#[tokio::test]
async fn nonsense_is_refused_and_the_next_request_answered() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let mut control = machine.control().await;
    for (line, code) in [
        ("", FailureCode::Parse),
        ("nonsense", FailureCode::Parse),
        ("{\"jsonrpc\":", FailureCode::Parse),
        ("[1,2,3]", FailureCode::Request),
        ("null", FailureCode::Request),
        ("{\"jsonrpc\":\"2.0\",\"id\":-1,\"method\":\"ping\"}", FailureCode::Request),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"nothing\"}", FailureCode::Method),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"exec\",\"params\":7}", FailureCode::Params),
        (
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"signal\",\"params\":{\"signal\":1e99}}",
            FailureCode::Params,
        ),
    ] {
        assert_eq!(refusal(&mut control, line).await.code, code, "{line:?}");
    }
    control.done::<Value>(Request::Ping).await;
}

#[tokio::test]
async fn a_request_without_end_ends_the_stream_alone() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    for _ in 0..3 {
        let control = machine.control().await;
        let (mut input, mut output) = tokio::io::split(control.stream);
        let flood = tokio::spawn(async move {
            let chunk = vec![b'x'; 64 << 10];
            // Fails as soon as the agent has had enough.
            for _ in 0..1000 {
                if output.write_all(&chunk).await.is_err() {
                    return true;
                }
            }
            false
        });
        let mut answer = Vec::new();
        // A closed socket with unread bytes may lose the answer: the end is what counts.
        let _ = patiently(input.read_to_end(&mut answer)).await;
        assert!(patiently(flood).await.unwrap(), "the agent took {CONTROL_MESSAGE_BYTES} bytes and more");
    }
    machine.control().await.done::<Value>(Request::Ping).await;
}

#[tokio::test]
async fn many_silent_streams_and_abandoned_requests_do_not_keep_others_out() {
    for over in [Over::Sockets, Over::Multiplexer] {
        let machine = Machine::configured(over, &["cat"]).await;
        // Half a request, then nothing.
        for _ in 0..STREAMS / 2 {
            let mut stream = machine.connect(port::CONTROL).await;
            stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\"").await.unwrap();
        }
        for _ in 0..20 {
            let mut control = machine.control().await;
            control.send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"inventory\"}").await;
        }
        machine.control().await.done::<Value>(Request::Ping).await;
    }
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_given_up() {
    let machine = Machine::start(Over::Sockets).await;
    let mut silent = machine.connect(port::CONTROL).await;
    assert_eq!(patiently(silent.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_flood_of_requests_is_answered_one_by_one() {
    let machine = Machine::configured(Over::Multiplexer, &["cat"]).await;
    let control = machine.control().await;
    let (input, mut output) = tokio::io::split(control.stream);
    let requests = "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ping\"}\n".repeat(20_000);
    let writing = async {
        output.write_all(requests.as_bytes()).await.unwrap();
        output.shutdown().await.unwrap();
    };
    let mut input = input;
    let mut answers = String::new();
    let (_, read) = patiently(async { tokio::join!(writing, input.read_to_string(&mut answers)) }).await;
    read.unwrap();
    assert_eq!(answers.lines().filter(|answer| answer.contains("\"id\":7")).count(), 20_000);
}

#[tokio::test]
async fn a_fork_bomb_ends_with_its_conversation() {
    // Bounded by itself as well, so that a failure of the agent does not take the host with it.
    let bomb = "n=0; spin() { while :; do :; done; }; while [ $n -lt 60 ]; do n=$((n+1)); \
                (setsid sh -c 'setsid sleep 1000 & setsid sleep 1000 & sleep 1000' &) ; done; echo armed; sleep 1000";
    let machine = Machine::shell(bomb).await;
    let mut client = machine.converse().await;
    assert_eq!(line(&mut client).await, "armed");
    let agent = machine.agent.id();
    let inventory: Inventory = machine.control().await.done(Request::Inventory).await;
    let bombs: Vec<u32> = inventory
        .processes
        .iter()
        .filter(|process| process.command == "sleep 1000" && descends(&inventory, process.pid, agent))
        .map(|process| process.pid)
        .collect();
    assert!(bombs.len() > 60, "only {} processes", bombs.len());
    drop(client);
    machine.until(|state| matches!(state, ServerState::Exited(_))).await;
    let left = bombs.iter().filter(|&&pid| alive(pid)).count();
    assert_eq!(left, 0, "{left} of {} live", bombs.len());
}

fn descends(inventory: &Inventory, mut pid: u32, ancestor: u32) -> bool {
    for _ in 0..inventory.processes.len() {
        match inventory.processes.iter().find(|process| process.pid == pid) {
            Some(process) if process.parent == ancestor => return true,
            Some(process) => pid = process.parent,
            None => return false,
        }
    }
    false
}

#[tokio::test]
async fn an_inventory_of_very_many_files_with_hostile_names_stays_a_message() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let folder = tempfile::Builder::new().prefix("casemate-guest-inventory").tempdir_in("/dev/shm").unwrap();
    for number in 0..6000 {
        let name = format!("{number}\u{1}\"\\{}", "\u{2}".repeat(100));
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let mut control = machine.control().await;
    let inventory: Inventory = control.done(Request::Inventory).await;
    assert!(inventory.truncated);
    assert!(!inventory.processes.is_empty());
    assert!(serde_json::to_vec(&inventory).unwrap().len() < CONTROL_MESSAGE_BYTES);
}
