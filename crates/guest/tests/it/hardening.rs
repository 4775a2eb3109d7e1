//! The wall, seen from inside.

use crate::support::*;
use casemate_proto::control::{Limits, Request};
use serde_json::Value;
use std::process::Command;

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}")).trim()
}

#[tokio::test]
async fn the_server_has_no_privilege_and_cannot_gain_any() {
    // What the server itself is, not what is run beside it.
    let machine = Machine::shell("cat /proc/self/status; echo END; cat").await;
    let mut client = machine.converse().await;
    let mut status = String::new();
    loop {
        match line(&mut client).await.as_str() {
            "END" => break,
            text => status += &format!("{text}\n"),
        }
    }
    let beside = machine.prints("cat /proc/self/status").await;
    for status in [status, beside] {
        let sets =
            if root() { &["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"][..] } else { &["CapEff:"] };
        for set in sets {
            assert_eq!(field(&status, set), "0000000000000000", "{set}");
        }
        assert_eq!(field(&status, "NoNewPrivs:"), "1");
        assert_eq!(field(&status, "Seccomp:"), "2");
        let id = if root() { 1000 } else { rustix::process::getuid().as_raw() };
        let ids = [id; 4].map(|id| id.to_string()).join("\t");
        assert_eq!(field(&status, "Uid:"), ids);
        if root() {
            assert_eq!(field(&status, "Gid:"), ids);
            assert_eq!(field(&status, "Groups:"), "");
        }
    }
}

#[tokio::test]
async fn it_has_a_session_three_descriptors_and_a_score_of_its_own() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    // Only the listing's own descriptor is more.
    let descriptors = machine.prints("ls /proc/self/fd").await;
    assert!(["0\n1\n2\n3\n", "0\n1\n2\n"].contains(&descriptors.as_str()), "{descriptors}");
    let session = machine.prints("echo $$ $(cut -d' ' -f5,6 /proc/$$/stat)").await;
    let numbers: Vec<&str> = session.split_whitespace().collect();
    assert!(numbers.iter().all(|&number| number == numbers[0]), "{session}");
    assert_eq!(machine.prints("umask").await.trim_start_matches('0').trim(), "22");
    if root() {
        assert_eq!(machine.prints("cat /proc/self/oom_score_adj").await, "500\n");
        let agent = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", machine.agent.id())).unwrap();
        assert!(agent.trim().parse::<i32>().unwrap() < 500);
    }
}

#[tokio::test]
async fn limits_are_set() {
    let machine = Machine::start(Over::Sockets).await;
    let mut config = configuration(&["cat"]);
    config.limits = Limits { processes: 9000, open_files: 77, ..Limits::default() };
    machine.control().await.done::<Value>(Request::Configure(Box::new(config))).await;
    let limits = machine.prints("cat /proc/self/limits").await;
    let limit = |name: &str| {
        let mut words = field(&limits, name).split_whitespace();
        (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
    };
    assert_eq!(limit("Max open files"), ("77".into(), "77".into()));
    assert_eq!(limit("Max processes"), ("9000".into(), "9000".into()));
    assert_eq!(limit("Max core file size"), ("0".into(), "0".into()));
    let many = machine.exec(&["sh", "-c", "ulimit -n 78"]).await;
    assert_ne!(many.exit.code, Some(0));
}

#[tokio::test]
async fn commands_that_need_forbidden_calls_work_outside_and_fail_inside() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let folder = machine.folder.path().join("mount");
    std::fs::create_dir(&folder).unwrap();
    let mount = format!("mount -t tmpfs none {}", folder.display());
    let namespace = ["unshare", "--user", "--map-root-user", "true"];
    let outside = Command::new(namespace[0]).args(&namespace[1..]).status();
    match outside {
        Ok(status) if status.success() => {
            let inside = machine.exec(&namespace).await;
            assert_ne!(inside.exit.code, Some(0));
            assert!(inside.exit.stderr_tail.contains("not permitted"), "{}", inside.exit.stderr_tail);
        }
        // There is nothing that could be refused inside.
        other => casemate_testkit::cannot_run(&format!("nobody can make a user namespace ({other:?})")),
    }
    assert_ne!(machine.exec(&["sh", "-c", &mount]).await.exit.code, Some(0));
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(folder.to_str().unwrap()));
}

#[tokio::test]
async fn the_agent_and_its_link_are_out_of_reach() {
    let machine = Machine::configured(Over::Sockets, &["cat"]).await;
    let pid = machine.agent.id();
    for attempt in [
        format!("kill -9 {pid}"),
        format!("cat /proc/{pid}/environ"),
        format!("ls /proc/{pid}/fd"),
        format!("cat /proc/{pid}/mem"),
    ] {
        // Where both are one user, a signal is out of nobody's reach.
        if !root() && attempt.starts_with("kill") {
            continue;
        }
        assert_ne!(machine.exec(&["sh", "-c", &attempt]).await.exit.code, Some(0), "{attempt}");
    }
    if root() {
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(machine.folder.path().join("links/5252.sock")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o077, 0, "the server's user could connect");
    }
    machine.control().await.done::<Value>(Request::Ping).await;
}
