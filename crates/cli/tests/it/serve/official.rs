//! Clients that nobody here wrote, from outside the machines: the official SDKs and the Inspector, each out of an image
//! of its own.

use super::{SERVERS, client::Serving, status};
use crate::{
    foreign::Unpacked,
    home::{Home, finish},
};
use serde_json::{Value, json};
use std::path::Path;

/// What a client of the fixtures met, after which its session is over.
fn met(home: &Home, folder: &str, command: &[&str], arguments: &[&str]) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/official-clients").join(folder);
    let client = Unpacked::build(home, &[&[&*format!("dir:{}", path.display())], command].concat());
    let ended = finish(client.command(arguments), b"");
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// All that a client of a revision with sessions can do with the probe server.
fn assert_met(met: &Value) {
    assert_eq!((&met["server"], &met["version"]), (&json!("casemate-probe"), &json!("2025-11-25")), "{met}");
    let tools = met["tools"].as_array().unwrap();
    assert!(tools.contains(&json!("ask_client")) && tools.contains(&json!("echo")), "{met}");
    assert_eq!(met["slept"], "slept 500 ms");
    assert!(met["steps"].as_u64().unwrap() > 0, "{met}");
    assert_eq!(met["asked"], json!({"action": "accept", "content": {"name": "Ada"}}));
    assert_eq!(met["counted"], json!([1, 2, 3]));
    assert_ne!(met["given_up"], "never", "{met}");
    assert!(met["echoed"].as_str().unwrap().contains("\"still here\""), "{met}");
}

#[test]
fn the_official_clients_reach_servers_behind_the_gateway() {
    let home = Home::new();
    home.write("config.toml", SERVERS);
    let serving = Serving::start(&home, &[]);
    let url = format!("http://{}/mcp/probe", serving.address());
    let python = ["--command", "python client.py"];
    // One asks first whether the server is of the modern era; the other does not.
    for mode in ["auto", "legacy"] {
        assert_met(&met(&home, "python", &python, &[&url, mode]));
    }
    assert_met(&met(&home, "typescript", &[], &[&url]));
    // Each took its leave.
    assert_eq!(status(&home), Vec::<Value>::new());

    let inspector = Unpacked::build(&home, &["npm:@modelcontextprotocol/inspector"]);
    let inspect = |arguments: &[&str]| -> Value {
        let line = [&["--cli", &*url, "--transport", "http"], arguments].concat();
        let said = finish(inspector.command(&line), b"");
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
    };
    let listed = inspect(&["--method", "tools/list"]);
    assert!(listed["tools"].as_array().unwrap().iter().any(|tool| tool["name"] == "echo"), "{listed}");
    let called = inspect(&["--method", "tools/call", "--tool-name", "echo", "--tool-arg", "message=hi"]);
    assert!(called["content"][0]["text"].as_str().unwrap().contains("\"hi\""), "{called}");
    let (code, stderr) = serving.terminate();
    assert_eq!(code, Some(0), "{stderr}");
}
