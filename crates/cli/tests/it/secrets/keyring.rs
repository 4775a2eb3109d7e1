//! The system's keyring: a real one, in a session of a test's own.

use super::random_value;
use crate::home::{Finished, Home, finish};
use serde_json::json;
use std::{
    fs,
    process::{Command, Stdio},
};

/// Runs lines of a shell beside an unlocked keyring, which keeps what it has in this folder and ends with them.
fn beside_a_keyring(home: &Home, lines: &str) -> Finished {
    let inner = home.command::<&str>(&[]);
    let data = home.path().join("keyring");
    fs::create_dir_all(&data).unwrap();
    let script = format!("printf '\\n' | gnome-keyring-daemon --unlock --components=secrets >&2\n{lines}");
    let mut command = Command::new("dbus-run-session");
    command.args(["--", "sh", "-euc", &script]).arg(inner.get_program());
    command.env("CASEMATE_HOME", home.path()).env("XDG_DATA_HOME", &data).env("XDG_RUNTIME_DIR", &data);
    command.env("HOME", &data);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command, b"")
}

#[test]
fn a_secret_is_put_into_the_keyring_and_given_from_there() {
    let home = Home::new();
    let value = random_value();
    let said = beside_a_keyring(
        &home,
        &format!(
            "printf '%s\\n' {value} | \"$0\" secret set test/token\n\
             \"$0\" add probe builtin:probe --secret TOKEN=keyring:test/token\n\
             \"$0\" call probe env '{{\"name\": \"TOKEN\"}}'\n\
             \"$0\" secret remove test/token\n\
             \"$0\" call probe env '{{\"name\": \"TOKEN\"}}' && exit 1 || echo \"ended with $?\"\n"
        ),
    );
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stdout.contains(&format!("\"value\": \"{value}\"")), "{said:?}");
    assert!(said.stdout.contains("ended with 3"), "{said:?}");
    assert!(said.stderr.contains("casemate secret set test/token"), "{said:?}");
    assert!(!home.read("config.toml").contains(&value));
}

#[test]
fn without_a_keyring_it_is_said_how_to_get_one() {
    let home = Home::new();
    let mut command = home.command(&["call", "x", "y", "--command", "builtin:probe"]);
    command.args(["--secret", "A=keyring:k"]).env("PATH", "/nowhere");
    let said = finish(command, b"");
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.stderr.contains("libsecret-tools"), "{}", said.stderr);
}

#[test]
fn secrets_of_a_clients_servers_go_into_the_keyring() {
    let home = Home::new();
    let value = random_value();
    let servers = json!({
        "kept": {"command": "npx", "args": ["-y", "x"], "env": {"API_KEY": value, "PLAIN": "plain"}},
        "argument": {"command": "npx", "args": ["-y", "x", "--token", value]},
    });
    home.write("mcp.json", &json!({"mcpServers": servers}).to_string());
    let import = format!("\"$0\" import cursor --file {}", home.path().join("mcp.json").display());
    let said = beside_a_keyring(
        &home,
        &format!(
            "{import}\n{import} --keyring\n{import} --keyring --write --no-build\n\
             secret-tool lookup service casemate username kept/API_KEY; echo\n\
             {import} --keyring\n{import} --undo\n{import} --keyring --write --no-build\n"
        ),
    );
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stdout.contains("API_KEY is probably a secret; --keyring puts it into"), "{said:?}");
    assert!(
        said.stdout.contains("arguments are probably secret, and cannot be kept in the keyring"),
        "{said:?}"
    );
    assert!(said.stderr.contains("Would go into the keyring: kept/API_KEY"), "{said:?}");
    assert!(said.stderr.contains("In the keyring now: kept/API_KEY"), "{said:?}");
    assert_eq!(said.stdout.matches(&value).count(), 1, "shown by the keyring alone: {said:?}");
    assert!(!said.stderr.contains(&value), "{said:?}");
    assert!(said.stdout.contains("kept      runs as kept now, which was there"), "{said:?}");
    let config = home.read("config.toml");
    assert_eq!(config.matches("[[servers]]").count(), 1, "{config}");
    assert!(config.contains(r#"secrets = { API_KEY = "keyring:kept/API_KEY" }"#), "{config}");
    assert!(config.contains(r#"env = { PLAIN = "plain" }"#) && !config.contains(&value), "{config}");
}
