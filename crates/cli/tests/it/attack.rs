//! Servers that attack the machine that they run in.

use crate::{
    home::{Home, casemate, finish},
    live::{answer, json_of, server_log},
    support::eventually,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs};

/// A server whose tools attack.
const SERVER: &str = include_str!("attack/attacker.py");

/// What nobody inside may find.
const DECOY: &str = "decoy-b7Hq2xW9";

/// What the server is given.
const GIVEN: &str = "given-4Zk8mT1c";

/// Adds that server as `attacker`.
pub fn add(home: &Home, options: &[&str]) {
    let folder = home.path().join("server");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("server.py"), SERVER).unwrap();
    let manifest = "[project]\nname = \"attacker\"\nversion = \"1\"\nrequires-python = \">=3.10\"\n";
    fs::write(folder.join("pyproject.toml"), manifest).unwrap();
    let source = format!("dir:{}", folder.display());
    let command = ["add", "attacker", &source, "--command", "python server.py"];
    let added = casemate(home, &[&command[..], options].concat());
    assert_eq!(added.code, 0, "{}", added.stderr);
}

/// What a tool of it answers, called in a machine for this alone or in the one that runs.
pub fn ask(home: &Home, tool: &str) -> Value {
    answer(home, "attacker", tool, "{}")
}

/// The error numbers of attempts, without those that are to succeed, as they have to.
fn errors(mut said: Value, to_succeed: &[&str]) -> BTreeMap<String, i64> {
    for name in to_succeed {
        assert_eq!(said.as_object_mut().unwrap().remove(*name), Some(json!(0)), "{name}");
    }
    serde_json::from_value(said).unwrap()
}

#[test]
fn no_system_call_of_a_server_leads_through_the_wall() {
    const EPERM: i64 = 1;
    const ENOENT: i64 = 2;
    const EROFS: i64 = 30;
    const ECONNREFUSED: i64 = 111;
    let home = Home::new();
    add(&home, &[]);
    assert_eq!(casemate(&home, &["launch", "attacker"]).code, 0);
    let to_succeed = ["write-home", "read-accounts", "plain-socket", "signal-itself"];
    let errors = errors(ask(&home, "wall"), &to_succeed);
    let expected = |name: &str| match name {
        "write-root" | "write-system" | "overwrite-interpreter" | "overwrite-accounts" => EROFS,
        // There is none that it can see.
        "open-link"
        | "open-first-link"
        | "open-console"
        | "open-serial-port"
        | "read-agents-modules"
        | "read-agents-memory"
        | "read-agents-environment"
        | "enter-agents-root"
        | "list-agents-descriptors" => ENOENT,
        name if name.starts_with("connect-") => ECONNREFUSED,
        _ => EPERM,
    };
    let wrong: Vec<_> = errors.iter().filter(|(name, error)| **error != expected(name)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(errors.len() > 35, "{errors:?}");

    // What it says in the words of supervisor and agent is said to nobody.
    let record = home.machine_record("attacker");
    assert_eq!(ask(&home, "forge")["lines"], 7);
    eventually("what it printed in its log", || {
        server_log(&home, &record).contains("CONNECT 5253").then_some(())
    });
    assert_eq!(ask(&home, "read"), json!({}));
    let after = home.machine_record("attacker");
    assert_eq!((&after["state"], &after["pid"]), (&json!("ready"), &record["pid"]), "{after}");
    let status = json_of(&home, &["status", "--json"]);
    assert_eq!((&status[0]["state"], status.as_array().unwrap().len()), (&json!("ready"), 1), "{status}");
}

#[test]
fn the_hosts_credentials_are_not_in_a_machine() {
    let home = Home::new();
    // Where people and programs keep such things, and where casemate keeps what another server was given.
    let user = home.path().join("user");
    let files = [".aws/credentials", ".ssh/id_ed25519", ".npmrc", ".config/gh/hosts.yml", ".netrc"];
    for file in files {
        let file = user.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("token={DECOY}\n")).unwrap();
    }
    let given = home.path().join("given");
    fs::create_dir(&given).unwrap();
    fs::write(given.join("file"), GIVEN).unwrap();
    let other = casemate(&home, &["add", "other", "builtin:probe", "--env", &format!("TOKEN={DECOY}")]);
    assert_eq!(other.code, 0, "{}", other.stderr);
    let (mount, env) = (format!("{}:/given", given.display()), format!("GIVEN={GIVEN}"));
    add(&home, &["--mount", &mount, "--env", &env]);

    let mut launch = home.command(&["launch", "attacker"]);
    launch.env("HOME", &user).env("AWS_SECRET_ACCESS_KEY", DECOY).env("GITHUB_TOKEN", DECOY);
    let launched = finish(launch, b"");
    assert_eq!(launched.code, 0, "{}", launched.stderr);
    let search = |needle: &str| {
        let found = answer(&home, "attacker", "search", &json!({ "needle": needle }).to_string());
        serde_json::from_value::<Vec<String>>(found["found"].clone()).unwrap()
    };
    assert_eq!(search(DECOY), Vec::<String>::new());
    // The search finds what is there.
    let found = search(GIVEN);
    assert!(found.iter().any(|place| place == "/given/file"), "{found:?}");
    assert!(found.iter().any(|place| place == "/proc/self/environ"), "{found:?}");
    // By their paths on the host, which the server may well guess.
    let others = ["/root/.ssh/id_ed25519", "/root/.bash_history", "/etc/shadow", "/proc/1/environ"];
    let paths: Vec<_> = files.iter().map(|file| user.join(file)).chain(others.map(Into::into)).collect();
    let read = answer(&home, "attacker", "read", &json!({ "paths": paths }).to_string());
    let read: BTreeMap<String, i64> = serde_json::from_value(read).unwrap();
    assert!(read.len() == 9 && read.values().all(|error| [2, 13].contains(error)), "{read:?}");
}
