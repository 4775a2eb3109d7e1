//! A client's servers, taken over and started as the client starts them, in real guests.

use crate::home::{Home, casemate, finish};
use serde_json::{Value, json};
use std::{fs, process::Command};

const HELLO: &str = concat!(
    r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"#,
    r#""clientInfo":{"name":"test","version":"1"}}}"#,
    "\n",
    r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
    "\n",
);

/// Starts an entry of a client's file as the client does, with an environment that a client passes on, and
/// calls one tool.
fn call(home: &Home, entry: &Value, tool: &str, arguments: Value) -> String {
    let mut command = Command::new(entry["command"].as_str().unwrap());
    command.args(entry["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()));
    command.env_clear().current_dir("/");
    for name in ["HOME", "PATH", "USER"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let env = entry["env"].as_object().into_iter().flatten();
    command.envs(env.map(|(name, value)| (name, value.as_str().unwrap())));
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let params = json!({"name": tool, "arguments": arguments});
    let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params});
    let ended = finish(command, format!("{HELLO}{call}\n").as_bytes());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(casemate(home, &["status", "--json"]).stdout, "[]\n");
    let answer = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let answer = answer.into_iter().find(|line| line["id"] == 2).unwrap_or_else(|| panic!("{ended:?}"));
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn servers_of_clients_run_in_machines_when_their_clients_start_them() {
    let home = Home::new();
    let file = home.path().join("mcp.json");
    let before = json!({"mcpServers": {
        "the probe": {"command": "builtin:probe", "env": {"WHO": "me"}},
        "everything": {"command": "npx", "args": ["-y", "@modelcontextprotocol/server-everything"]},
    }});
    fs::write(&file, before.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let imported = casemate(&home, &["import", "claude-desktop", "--write", "--json", "--file", file]);
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    let after: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let entries = &after["mcpServers"];
    assert_eq!(entries["the probe"]["args"], json!(["run", "the-probe"]));
    assert!(call(&home, &entries["the probe"], "env", json!({"name": "WHO"})).contains("me"));
    assert_eq!(call(&home, &entries["everything"], "echo", json!({"message": "hi"})), "Echo: hi");
    let undone = casemate(&home, &["import", "claude-desktop", "--undo", "--file", file]);
    assert_eq!(undone.code, 0, "{}", undone.stderr);
    assert_eq!(fs::read_to_string(file).unwrap(), before.to_string());
}
