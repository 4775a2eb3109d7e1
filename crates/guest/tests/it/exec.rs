//! Programs beside the server.

use crate::support::*;
use casemate_proto::control::{Envelope, Exec, FailureCode, Request, ServerState, Started};
use casemate_proto::frame::{Kind, encode};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn output_exit_and_both_ends_are_told() {
    for over in [Over::Sockets, Over::Multiplexer] {
        let machine = Machine::configured(over, &["cat"]).await;
        let output = machine.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).await;
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!((output.exit.code, output.exit.signal), (Some(7), None));
        assert_eq!(output.exit.stderr_tail, "err\n");
        assert!(output.closed.contains(&Kind::Stdout) && output.closed.contains(&Kind::Stderr));
        let killed = machine.exec(&["sh", "-c", "kill -9 $$"]).await.exit;
        assert_eq!((killed.code, killed.signal), (None, Some(9)));
    }
}

#[tokio::test]
async fn stdin_is_passed_and_closed() {
    let machine = Machine::configured(Over::Multiplexer, &["cat"]).await;
    let input: Vec<u8> = (0..5_000_000u32).map(|at| at as u8).collect();
    let output = machine.exec_with(&["cat"], &input).await;
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
    // A program that reads nothing hinders nobody.
    assert_eq!(machine.exec_with(&["true"], &input).await.exit.code, Some(0));
}

#[tokio::test]
async fn the_environment_and_folder_are_the_servers_and_its_own() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let printed = machine.prints("env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= | sort; pwd").await;
    assert_eq!(printed, "GREETING=hello\nPATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\n/\n");
    let exec = Exec {
        env: [("GREETING".to_owned(), "bye".to_owned()), ("MORE".to_owned(), "x=y".to_owned())].into(),
        cwd: Some("/usr".into()),
        ..program(&["sh", "-c", "echo $GREETING $MORE; pwd"])
    };
    assert_eq!(machine.run(exec, b"").await.stdout, b"bye x=y\n/usr\n");
}

#[tokio::test]
async fn a_program_that_does_not_exist_leaves_the_stream_usable() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let mut control = machine.control().await;
    let failure = control.ask::<Value>(Request::Exec(program(&["no-such-program"]))).await.unwrap_err();
    assert_eq!(failure.code, FailureCode::Program);
    let failure = control.ask::<Value>(Request::Exec(program(&[]))).await.unwrap_err();
    assert_eq!(failure.code, FailureCode::Params);
    control.done::<Value>(Request::Ping).await;
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it_and_the_server_does_not() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let server: Started = machine.control().await.done(Request::Start).await;
    let left: u32 = machine.prints("sleep 1000 & echo $!").await.trim().parse().unwrap();
    assert!(!alive(left), "{left} lives");
    assert!(alive(server.pid));
    // Without control groups nobody knows whose it is once it left its session and lost its parent; but it
    // keeps nobody waiting, and does not outlive the server.
    let escaped: u32 = machine.prints("setsid sleep 1000 & echo $!; sleep 0.1").await.trim().parse().unwrap();
    assert!(alive(server.pid));
    machine.control().await.done::<Value>(Request::Signal { signal: 9 }).await;
    machine.until(|state| matches!(state, ServerState::Exited(_))).await;
    assert!(!alive(escaped), "{escaped} lives");
}

#[tokio::test]
async fn a_host_that_goes_ends_the_program() {
    for over in [Over::Sockets, Over::Multiplexer] {
        let machine = Machine::configured(over, &["cat"]).await;
        let mut control = machine.control().await;
        let started: Started = control.done(Request::Exec(program(&["sleep", "1000"]))).await;
        assert!(alive(started.pid));
        drop(control);
        dead(started.pid).await;
    }
}

#[tokio::test]
async fn frames_that_only_the_guest_sends_end_the_program() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let mut garbage = Vec::new();
    encode(Kind::Event, b"{}", &mut garbage);
    for wire in [garbage, vec![9, 0, 0, 0, 0], vec![0, 0xff, 0xff, 0xff, 0xff]] {
        let mut control = machine.control().await;
        let started: Started = control.done(Request::Exec(program(&["sleep", "1000"]))).await;
        control.stream.write_all(&wire).await.unwrap();
        dead(started.pid).await;
    }
}

#[tokio::test]
async fn a_program_ends_a_conversation_of_nobody() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let mut client = machine.converse().await;
    for round in 0..10 {
        assert_eq!(machine.exec(&["true"]).await.exit.code, Some(0));
        client.write_all(format!("{round}\n").as_bytes()).await.unwrap();
        assert_eq!(line(&mut client).await, round.to_string());
    }
    let stats = machine.stats().await;
    assert_eq!(stats.starts, 1);
    assert!(stats.reaped >= 10);
}

#[tokio::test]
async fn a_host_that_goes_before_the_answer_leaves_no_program() {
    // Over sockets, where what was sent is read although the sender is gone.
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    assert_eq!(machine.stats().await.reaped, 0);
    let mut control = machine.control().await;
    let exec = Envelope::new(7, Request::Exec(program(&["sleep", "1000"])));
    control.send(&serde_json::to_string(&exec).unwrap()).await;
    drop(control);
    patiently(async {
        while machine.stats().await.reaped == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}
