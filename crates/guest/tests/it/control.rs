//! Every method of the control protocol.

use crate::support::*;
use casemate_proto::control::{
    Event, FailureCode, Hello, Inventory, Request, Root, ServerState, Started, Transport, VERSION,
};
use casemate_proto::frame::Kind;
use casemate_proto::port;
use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn hello(protocol: u32, epoch: &str) -> Request {
    Request::Hello(Hello { protocol, epoch: epoch.into() })
}

#[tokio::test]
async fn hello_comes_first_with_the_right_version_and_epoch() {
    let machine = Machine::start(Over::Sockets).await;
    let refused = |failure: casemate_proto::control::Failure| assert_eq!(failure.code, FailureCode::Hello);

    let mut early = machine.silent_control().await;
    refused(early.ask::<Value>(Request::Ping).await.unwrap_err());
    assert!(early.reply().await.is_none(), "the stream went on without a hello");

    let mut other = machine.silent_control().await;
    refused(other.ask::<Value>(hello(VERSION + 1, "one")).await.unwrap_err());

    let mut first = machine.control().await;
    refused(first.ask::<Value>(hello(VERSION, "one")).await.unwrap_err());
    let mut stranger = machine.silent_control().await;
    refused(stranger.ask::<Value>(hello(VERSION, "two")).await.unwrap_err());
    assert!(stranger.reply().await.is_none());
    assert_eq!(machine.state().await, ServerState::Unconfigured);
}

#[tokio::test]
async fn nothing_starts_before_configure_and_configure_happens_once() {
    let machine = Machine::start(Over::Sockets).await;
    let mut control = machine.control().await;
    let state = |failure: casemate_proto::control::Failure| assert_eq!(failure.code, FailureCode::State);
    state(control.ask::<Value>(Request::Start).await.unwrap_err());
    state(control.ask::<Value>(Request::Exec(program(&["true"]))).await.unwrap_err());
    state(control.ask::<Value>(Request::Signal { signal: 15 }).await.unwrap_err());
    assert!(
        machine.connector.connect(port::CONVERSATION).await.is_err() || {
            // A native link can only close.
            machine.connect(port::CONVERSATION).await.read(&mut [0]).await.unwrap() == 0
        }
    );
    control.done::<Value>(Request::Configure(Box::new(configuration(&["cat"])))).await;
    state(control.ask::<Value>(Request::Configure(Box::new(configuration(&["cat"])))).await.unwrap_err());
    assert_eq!(machine.state().await, ServerState::Idle);
}

#[tokio::test]
async fn a_machine_that_shares_the_hosts_kernel_changes_nothing_of_the_host() {
    let machine = Machine::start(Over::Sockets).await;
    let mut control = machine.control().await;
    let device = Root::Device { device: "/dev/vda".into(), overlay: None };
    for bad in [
        casemate_proto::control::Configure { root: device, ..configuration(&["cat"]) },
        casemate_proto::control::Configure { clock_unix_ns: Some(1), ..configuration(&["cat"]) },
        casemate_proto::control::Configure { entropy: Some("00".repeat(32)), ..configuration(&["cat"]) },
        casemate_proto::control::Configure { cwd: "relative".into(), ..configuration(&["cat"]) },
        configuration(&[]),
        configuration(&["a\0b"]),
    ] {
        let failure = control.ask::<Value>(Request::Configure(Box::new(bad))).await.unwrap_err();
        assert_eq!(failure.code, FailureCode::Params, "{failure}");
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    control.done::<Value>(Request::Configure(Box::new(configuration(&["cat"])))).await;
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), name);
}

#[tokio::test]
async fn start_starts_one_process_and_says_what_it_does() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let mut control = machine.control().await;
    let first: Started = control.done(Request::Start).await;
    let second: Started = control.done(Request::Start).await;
    assert_eq!(first, second);
    assert_eq!(machine.state().await, ServerState::Running { pid: first.pid });
    let stats = machine.stats().await;
    assert_eq!(stats.starts, 1);
    assert!(stats.memory_total_kb > stats.memory_available_kb && stats.memory_available_kb > 0);
    assert!(stats.processes >= 2 && stats.cpu_ms > 0);
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_told() {
    for (command, code) in [
        (&["no-such-program"][..], FailureCode::Program),
        (&["/etc/passwd"], FailureCode::Program),
        (&["/"], FailureCode::Program),
    ] {
        let machine = Machine::configured(Over::Sockets, command).await;
        let failure = machine.control().await.ask::<Value>(Request::Start).await.unwrap_err();
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.message.contains(command[0]), "{failure}");
        assert_eq!(machine.state().await, ServerState::Idle);
    }
    let machine = Machine::start(Over::Sockets).await;
    let mut control = machine.control().await;
    let nowhere =
        casemate_proto::control::Configure { cwd: "/no/such/folder".into(), ..configuration(&["cat"]) };
    control.done::<Value>(Request::Configure(Box::new(nowhere))).await;
    let failure = control.ask::<Value>(Request::Start).await.unwrap_err();
    assert_eq!(failure.code, FailureCode::System);
    assert!(failure.message.contains("enter the working folder"), "{failure}");
}

#[tokio::test]
async fn a_signal_reaches_the_servers_group() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let mut control = machine.control().await;
    control.done::<Value>(Request::Start).await;
    for nonsense in [0, -1, 65, i32::MAX] {
        let failure = control.ask::<Value>(Request::Signal { signal: nonsense }).await.unwrap_err();
        assert_eq!(failure.code, FailureCode::Params);
    }
    control.done::<Value>(Request::Signal { signal: 9 }).await;
    let ServerState::Exited(exit) = machine.until(|state| matches!(state, ServerState::Exited(_))).await
    else {
        unreachable!()
    };
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
}

#[tokio::test]
async fn the_exit_tells_its_code_and_the_end_of_stderr() {
    let machine =
        Machine::shell("i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; exit 3").await;
    machine.control().await.done::<Value>(Request::Start).await;
    let state = machine.until(|state| matches!(state, ServerState::Exited(_))).await;
    let ServerState::Exited(exit) = state else { unreachable!() };
    assert_eq!((exit.code, exit.signal), (Some(3), None));
    assert!(exit.stderr_tail.ends_with("line 1999\n"));
    assert_eq!(exit.stderr_tail.len(), casemate_proto::limits::STDERR_TAIL_BYTES);
}

#[tokio::test]
async fn watch_replays_from_the_beginning_and_follows() {
    let machine = Machine::shell("echo early >&2; read line; echo late >&2; exit 4").await;
    let started: Started = machine.control().await.done(Request::Start).await;
    // Whenever the watch begins, it begins with the start.
    let mut frames = machine.control().await.watch().await;
    assert_eq!(frames.next_event().await, Event::Started(started));
    assert_eq!(frames.next().await, Some((Kind::Stderr, b"early\n".to_vec())));
    let mut client = machine.converse().await;
    client.write_all(b"go\n").await.unwrap();
    assert_eq!(frames.next().await, Some((Kind::Stderr, b"late\n".to_vec())));
    let Event::Exited(exit) = frames.next_event().await else { panic!("no exit") };
    assert_eq!((exit.code, exit.stderr_tail.as_str()), (Some(4), "early\nlate\n"));
    let mut again = machine.control().await.watch().await;
    assert_eq!(again.next_event().await, Event::Started(started));
}

#[tokio::test]
async fn stderr_that_nobody_reads_is_dropped_and_counted() {
    let machine = Machine::shell("head -c 2000000 /dev/zero >&2; echo done; cat").await;
    let mut client = machine.converse().await;
    assert_eq!(line(&mut client).await, "done");
    let mut frames = machine.control().await.watch().await;
    let Event::Dropped { bytes } = frames.next_event().await else { panic!("nothing dropped") };
    let mut rest = 0;
    while bytes + rest < 2_000_000 {
        let (kind, payload) = frames.next().await.unwrap();
        assert_eq!(kind, Kind::Stderr);
        rest += payload.len() as u64;
    }
    assert_eq!(bytes + rest, 2_000_000);
    assert_eq!(machine.stats().await.stderr_dropped_bytes, bytes);
}

#[tokio::test]
async fn the_inventory_shows_files_processes_and_sockets() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let mut control = machine.control().await;
    let started: Started = control.done(Request::Start).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let inventory: Inventory = control.done(Request::Inventory).await;
    let server = inventory.processes.iter().find(|process| process.pid == started.pid).unwrap();
    assert_eq!((server.command.as_str(), server.parent), ("cat", machine.agent.id()));
    let socket = inventory.sockets.iter().find(|socket| socket.local == address).unwrap();
    assert!(socket.listening && socket.peer.is_none() && socket.family == "tcp");
    let folder = machine.folder.path().to_str().unwrap();
    assert!(inventory.truncated || inventory.files.iter().any(|file| file.path == folder));
}

#[tokio::test]
async fn a_deadline_is_kept() {
    // The first conversation's end keeps the turn while its server ignores everything but the last signal.
    let machine = Machine::shell("trap '' TERM; echo up; while :; do sleep 1; done").await;
    let mut client = machine.converse().await;
    assert_eq!(line(&mut client).await, "up");
    drop(client);
    let mut control = machine.control().await;
    // The server is being ended as soon as its client's absence is noticed.
    patiently(async {
        loop {
            let asked = control.ask_within::<Started>(Request::Start, Duration::from_millis(1)).await;
            match asked {
                Err(failure) => return assert_eq!(failure.code, FailureCode::Deadline),
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    let pong: casemate_proto::control::Pong = control.done(Request::Ping).await;
    assert!(pong.uptime_ms > 0);
}

#[tokio::test]
async fn shutdown_is_answered_and_ends_server_and_agent() {
    let mut machine = Machine::shell("sleep 1000 & echo $!; cat; wait").await;
    let mut client = machine.converse().await;
    let background: u32 = line(&mut client).await.parse().unwrap();
    let ServerState::Running { pid } = machine.state().await else { panic!("not running") };
    machine.control().await.done::<Value>(Request::Shutdown { grace_ms: 50 }).await;
    let status = patiently(tokio::task::spawn_blocking(move || {
        let status = machine.agent.wait().unwrap();
        (status, machine)
    }))
    .await
    .unwrap();
    assert!(status.0.success());
    assert!(!alive(pid) && !alive(background));
}

#[tokio::test]
async fn an_http_server_is_reached_by_ingress_alone() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let machine = Machine::start(Over::Multiplexer).await;
    let mut config =
        configuration(&["python3", "-m", "http.server", "--bind", "127.0.0.1", &free.to_string()]);
    config.transport = Transport::Http { port: free };
    config.cwd = machine.folder.path().to_str().unwrap().to_owned();
    machine.control().await.done::<Value>(Request::Configure(Box::new(config))).await;
    assert!(machine.connector.connect(port::CONVERSATION).await.is_err());
    machine.control().await.done::<Value>(Request::Listen { patience_ms: 30_000 }).await;
    let mut stream = machine.connect(port::INGRESS).await;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    patiently(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert_eq!(machine.stats().await.starts, 1);
    machine.control().await.done::<Value>(Request::Signal { signal: 9 }).await;
    machine.until(|state| matches!(state, ServerState::Exited(_))).await;
    assert!(machine.connector.connect(port::INGRESS).await.is_err());
    let refused = machine.control().await.ask::<Value>(Request::Listen { patience_ms: 30_000 }).await;
    assert_eq!(refused.unwrap_err().message, "the server has ended");
}

#[tokio::test]
async fn a_server_that_does_not_listen_is_told_of_in_words_and_in_time() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Of this host, whose network the machine shares.
    let other = free();
    let port = free().local_addr().unwrap().port();
    let machine = Machine::start(Over::Multiplexer).await;
    let mut config = configuration(&["sleep", "1000"]);
    config.transport = Transport::Http { port };
    machine.control().await.done::<Value>(Request::Configure(Box::new(config))).await;
    let refused =
        machine.control().await.ask::<Value>(Request::Listen { patience_ms: 200 }).await.unwrap_err();
    assert_eq!(refused.code, FailureCode::Deadline);
    let begins = format!("it does not listen on port {port}, but on ");
    assert!(refused.message.starts_with(&begins), "{}", refused.message);
    let refused = machine.connector.connect(port::INGRESS).await.unwrap_err().to_string();
    assert!(refused.contains(&begins), "{refused}");
    drop(other);
    // One that ends is not waited for.
    machine.control().await.done::<Value>(Request::Signal { signal: 9 }).await;
    let refused =
        machine.control().await.ask::<Value>(Request::Listen { patience_ms: 60_000 }).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (FailureCode::State, "the server has ended"));
}

#[tokio::test]
async fn a_stdio_server_is_not_waited_for() {
    let machine = Machine::configured(Over::Multiplexer, &["cat"]).await;
    let refused =
        machine.control().await.ask::<Value>(Request::Listen { patience_ms: 60_000 }).await.unwrap_err();
    assert_eq!(refused.code, FailureCode::State);
    assert_eq!(machine.stats().await.starts, 0);
}

#[tokio::test]
async fn a_stdio_server_has_no_ingress() {
    let machine = Machine::configured(Over::Multiplexer, &["cat"]).await;
    assert!(machine.connector.connect(port::INGRESS).await.is_err());
    assert!(machine.connector.connect(9999).await.is_err());
}
