//! The rules of the conversation, on both kinds of link.

use crate::support::*;
use casemate_link::ConnectError;
use casemate_proto::control::{Inventory, Request, ServerState, Started};
use casemate_proto::mux::ResetCode;
use casemate_proto::port;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BOTH: [Over; 2] = [Over::Sockets, Over::Multiplexer];
const MESSAGE: usize = 16 << 20;

async fn running(machine: &Machine) -> u32 {
    match machine.state().await {
        ServerState::Running { pid } => pid,
        state => panic!("{state:?}"),
    }
}

#[tokio::test]
async fn bytes_pass_unchanged_and_attaching_starts_the_server() {
    for over in BOTH {
        let machine = Machine::configured(over, &["cat"]).await;
        assert_eq!(machine.state().await, ServerState::Idle);
        let mut client = machine.converse().await;
        let odd = b"half a line, \x00\xff no JSON\r\n{}\n";
        client.write_all(odd).await.unwrap();
        let mut back = vec![0; odd.len()];
        patiently(client.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, odd);
        assert_eq!(machine.stats().await.starts, 1);
    }
}

#[tokio::test]
async fn a_second_client_is_refused_at_once_and_disturbs_nobody() {
    for over in BOTH {
        let machine = Machine::configured(over, &["cat"]).await;
        let mut client = machine.converse().await;
        client.write_all(b"1\n").await.unwrap();
        assert_eq!(line(&mut client).await, "1");
        match machine.connector.connect(port::CONVERSATION).await {
            Err(ConnectError::Refused { code, reason, .. }) => {
                assert_eq!(code, ResetCode::Busy);
                assert!(reason.contains("held"), "{reason}");
            }
            // A native link carries no reason: it closes.
            Ok(mut stream) if over == Over::Sockets => {
                assert_eq!(patiently(stream.read(&mut [0; 8])).await.unwrap_or(0), 0);
            }
            other => panic!("{other:?}"),
        }
        client.write_all(b"2\n").await.unwrap();
        assert_eq!(line(&mut client).await, "2");
        assert_eq!(machine.stats().await.starts, 1);
    }
}

#[tokio::test]
async fn each_conversation_gets_a_new_process_and_never_two_at_once() {
    for over in BOTH {
        let machine = Machine::configured(over, &["sh", "-c", "echo $$; exec cat"]).await;
        let mut seen = Vec::new();
        for _ in 0..4 {
            let mut client = machine.converse().await;
            let pid: u32 = line(&mut client).await.parse().unwrap();
            assert_eq!(running(&machine).await, pid);
            assert!(seen.iter().all(|&old| !alive(old)), "an older server lives");
            assert!(!seen.contains(&pid));
            seen.push(pid);
            client.write_all(b"half a li").await.unwrap();
            drop(client);
            // The next client need not wait for anything: it is served once the old process is dead.
            if over == Over::Sockets {
                machine.until(|state| matches!(state, ServerState::Exited(_))).await;
            }
        }
        assert_eq!(machine.stats().await.starts, 4);
    }
}

#[tokio::test]
async fn a_client_that_goes_takes_the_server_and_its_descendants_with_it() {
    for over in BOTH {
        // Ignores the end of its stdin, SIGTERM, and its process group.
        let script =
            "trap '' TERM; setsid sleep 1000 & echo $!; sleep 1000 & echo $!; while :; do sleep 1; done";
        let machine = Machine::configured(over, &["sh", "-c", script]).await;
        let mut client = machine.converse().await;
        let escaped: u32 = line(&mut client).await.parse().unwrap();
        let child: u32 = line(&mut client).await.parse().unwrap();
        let server = running(&machine).await;
        assert!(alive(escaped) && alive(child));
        drop(client);
        machine.until(|state| matches!(state, ServerState::Exited(_))).await;
        for pid in [server, escaped, child] {
            assert!(!alive(pid), "{pid} lives");
        }
    }
}

#[tokio::test]
async fn a_half_closed_client_still_gets_its_answers() {
    for over in BOTH {
        let machine = Machine::configured(over, &["sh", "-c", "cat >/dev/null; sleep 3; echo counted"]).await;
        let mut client = machine.converse().await;
        client.write_all(b"question\n").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        patiently(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "counted\n");
        machine.until(|state| matches!(state, ServerState::Exited(exit) if exit.code == Some(0))).await;
    }
}

#[tokio::test]
async fn a_half_closed_client_that_goes_is_noticed_though_the_server_is_silent() {
    for over in BOTH {
        let machine = Machine::configured(over, &["sleep", "1000"]).await;
        let mut client = machine.converse().await;
        client.shutdown().await.unwrap();
        assert!(alive(running(&machine).await));
        drop(client);
        machine.until(|state| matches!(state, ServerState::Exited(_))).await;
    }
}

#[tokio::test]
async fn a_server_that_exits_mid_conversation_delivers_its_last_words() {
    for over in BOTH {
        let script = "read line; head -c 1000000 /dev/zero | tr '\\0' x; echo; echo last; exit 5";
        let machine = Machine::configured(over, &["sh", "-c", script]).await;
        let mut client = machine.converse().await;
        client.write_all(b"go\n").await.unwrap();
        machine.until(|state| matches!(state, ServerState::Running { .. } | ServerState::Exited(_))).await;
        let mut all = Vec::new();
        patiently(client.read_to_end(&mut all)).await.unwrap();
        assert_eq!(all.len(), 1_000_000 + 1 + 5);
        assert!(all.ends_with(b"\nlast\n"));
        machine.until(|state| matches!(state, ServerState::Exited(exit) if exit.code == Some(5))).await;
        // The client of the dead one still holds its stream; that keeps nobody away.
        let mut next = machine.converse().await;
        next.write_all(b"go\n").await.unwrap();
        assert_eq!(line(&mut next).await.len(), 1_000_000);
    }
}

#[tokio::test]
async fn a_server_that_closes_its_stdout_is_ended() {
    for over in BOTH {
        let machine = Machine::configured(over, &["sh", "-c", "echo only; exec >&-; exec sleep 1000"]).await;
        let mut client = machine.converse().await;
        let mut all = String::new();
        patiently(client.read_to_string(&mut all)).await.unwrap();
        assert_eq!(all, "only\n");
        machine.until(|state| matches!(state, ServerState::Exited(_))).await;
    }
}

#[tokio::test]
async fn messages_of_16_mib_pass_both_ways_at_once() {
    for over in BOTH {
        // It writes its own before it reads anything, then echoes.
        let script = format!("head -c {MESSAGE} /dev/zero & cat; wait");
        let machine = Machine::configured(over, &["sh", "-c", &script]).await;
        let (mut input, mut output) = tokio::io::split(machine.connect(port::CONVERSATION).await);
        let message: Vec<u8> = (0..MESSAGE).map(|at| (at % 255) as u8 + 1).collect();
        let writing = async {
            output.write_all(&message).await.unwrap();
            output.shutdown().await.unwrap();
        };
        let mut all = Vec::new();
        let reading = input.read_to_end(&mut all);
        let (_, read) = patiently(async { tokio::join!(writing, reading) }).await;
        read.unwrap();
        let (zeros, echo): (Vec<u8>, Vec<u8>) = all.into_iter().partition(|&byte| byte == 0);
        assert_eq!(zeros.len(), MESSAGE);
        assert!(echo == message, "the message came back changed");
    }
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_server_and_nobody_else() {
    for over in BOTH {
        let machine = Machine::configured(over, &["cat"]).await;
        let (mut input, mut output) = tokio::io::split(machine.connect(port::CONVERSATION).await);
        let chunk = vec![b'x'; 64 << 10];
        let mut accepted = 0;
        // Nobody reads what comes back, so at some point nothing more goes in.
        while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), output.write(&chunk)).await {
            accepted += written.unwrap();
            assert!(accepted < 32 << 20, "no backpressure");
        }
        assert_eq!(machine.exec(&["echo", "meanwhile"]).await.stdout, b"meanwhile\n");
        let resident = machine.control().await.done::<Inventory>(Request::Inventory).await;
        let agent = resident.processes.iter().find(|process| process.pid == machine.agent.id()).unwrap();
        assert!(agent.rss_kb < 32 << 10, "the agent holds {} kB", agent.rss_kb);
        output.shutdown().await.unwrap();
        let mut all = Vec::new();
        patiently(input.read_to_end(&mut all)).await.unwrap();
        assert_eq!(all.len(), accepted);
    }
}

#[tokio::test]
async fn a_client_whose_input_is_not_taken_is_noticed_when_it_goes() {
    for over in BOTH {
        let machine = Machine::configured(over, &["sleep", "1000"]).await;
        let (input, mut output) = tokio::io::split(machine.connect(port::CONVERSATION).await);
        let chunk = vec![b'x'; 64 << 10];
        while tokio::time::timeout(Duration::from_secs(1), output.write(&chunk)).await.is_ok() {}
        drop((input, output));
        machine.until(|state| matches!(state, ServerState::Exited(_))).await;
    }
}

#[tokio::test]
async fn a_started_server_waits_for_its_conversation() {
    let machine = Machine::shell("echo ready; exec cat").await;
    let started: Started = machine.control().await.done(Request::Start).await;
    let mut client = machine.converse().await;
    assert_eq!(line(&mut client).await, "ready");
    assert_eq!(running(&machine).await, started.pid);
    let again: Started = machine.control().await.done(Request::Start).await;
    assert_eq!(again, started);
}

#[tokio::test]
async fn the_end_of_the_link_is_the_end_of_an_agent_on_the_hosts_kernel() {
    let machine = Machine::configured(Over::Multiplexer, &["cat"]).await;
    let mut client = machine.converse().await;
    client.write_all(b"1\n").await.unwrap();
    assert_eq!(line(&mut client).await, "1");
    let server = running(&machine).await;
    let casemate_link::Connector::Mux(handle) = &machine.connector else { unreachable!() };
    handle.give_up();
    dead(machine.agent.id()).await;
    dead(server).await;
}
