//! Real servers of every kind of source, end to end: resolved, built, booted, called.

use crate::home::{Finished, Home, casemate, finish};
use casemate_testkit::LineClient;
use serde_json::{Value, json};
use std::{fs, time::Duration};

const EVERYTHING: &str = "@modelcontextprotocol/server-everything";

/// The variables that say where registries are, all of which say: nowhere.
const NOWHERE: [(&str, &str); 4] = [
    ("npm_config_registry", "http://127.0.0.1:9/"),
    ("PIP_INDEX_URL", "http://127.0.0.1:9/simple/"),
    ("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple/"),
    ("CASEMATE_DEBIAN_MIRROR", "http://127.0.0.1:9/debian/"),
];

/// Runs the program and takes its standard output for JSON.
fn json_of(home: &Home, args: &[&str]) -> Value {
    parsed(&casemate(home, args))
}

fn parsed(finished: &Finished) -> Value {
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

/// The only text of a tool's result.
fn text(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{result}"))
}

#[test]
fn an_npm_server_is_added_and_called() {
    let home = Home::new();
    let added = casemate(&home, &["add", "everything", &format!("npm:{EVERYTHING}")]);
    assert_eq!(added.code, 0, "{}", added.stderr);
    assert!(added.stdout.starts_with(&format!("Added everything: npm:{EVERYTHING} 20")), "{}", added.stdout);
    let echo = json_of(&home, &["call", "everything", "echo", r#"{"message":"hi"}"#, "--json"]);
    assert_eq!(text(&echo), "Echo: hi");
    assert_eq!(json_of(&home, &["status", "--json"]), json!([]));
}

#[test]
fn what_people_paste_is_the_same_server_and_needs_no_network_twice() {
    let home = Home::new();
    let npm = json_of(&home, &["add", "one", &format!("npm:{EVERYTHING}"), "--json"]);
    let npx = json_of(&home, &["add", "two", "--json", &format!("npx -y {EVERYTHING}")]);
    assert_eq!((&npx["image"], &npx["source"]), (&npm["image"], &npm["source"]));
    assert!(npm["image"].as_str().unwrap().starts_with("sha256:"), "{npm}");

    let words = ["add", "three", "--json", "--", "npx", "-y", EVERYTHING];
    let mut again = home.command(&words);
    again.envs(NOWHERE);
    assert_eq!(parsed(&finish(again, b""))["image"], npm["image"]);
    // Nothing is where the variables point: a package that is not known yet cannot be had.
    let mut unknown = home.command(&["add", "four", "npm:@modelcontextprotocol/server-memory@0.0.1"]);
    unknown.envs(NOWHERE);
    let unknown = finish(unknown, b"");
    assert_eq!(unknown.code, 4, "{unknown:?}");
    assert!(unknown.stderr.contains("127.0.0.1:9"), "{}", unknown.stderr);

    let mut launch = home.command(&["launch", "two"]);
    launch.envs(NOWHERE);
    let launched = finish(launch, b"");
    assert_eq!(launched.code, 0, "{}", launched.stderr);
    let echo = json_of(&home, &["mcp", "call", "two", "echo", r#"{"message":"hi"}"#, "--json"]);
    assert_eq!(text(&echo), "Echo: hi");
    let tools = json_of(&home, &["tools", "two", "--json"]);
    let names: Vec<&str> =
        tools.as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"echo") && names.contains(&"get-sum"), "{names:?}");
    let sum = json_of(&home, &["call", "two", "get-sum", r#"{"a": 2, "b": 40}"#, "--json"]);
    assert!(text(&sum).contains("42"), "{sum}");
    // All of that was one machine.
    assert_eq!(json_of(&home, &["status", "--json"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_pasted_command_runs_without_being_added() {
    let home = Home::new();
    let command = ["run", "--isolation", "microvm", "--", "npx", "-y", EVERYTHING];
    let patience = Duration::from_secs(300);
    let mut client = LineClient::spawn(&mut home.command(&command)).unwrap().with_patience(patience);
    let hello = client.initialize("2025-11-25", json!({})).unwrap();
    assert_eq!(hello["result"]["protocolVersion"], "2025-11-25", "{hello}");
    let echo = client.call("echo", json!({"message": "hi"})).unwrap();
    assert_eq!(text(&echo["result"]), "Echo: hi");
    client.close_stdin();
    assert_eq!(client.wait().unwrap().code(), Some(0), "{}", client.stderr());
}

#[test]
fn a_pypi_server_is_added_and_called() {
    let home = Home::new();
    let pypi = json_of(&home, &["add", "time", "pypi:mcp-server-time", "--json"]);
    let uvx = ["add", "zoned", "--json", "--", "uvx", "mcp-server-time", "--local-timezone", "Asia/Tokyo"];
    let uvx = json_of(&home, &uvx);
    assert_eq!(uvx["image"], pypi["image"]);

    let launched = casemate(&home, &["launch", "zoned"]);
    assert_eq!(launched.code, 0, "{}", launched.stderr);
    // The server's own description of the argument names the zone that it was started with.
    let tools = json_of(&home, &["tools", "zoned", "--json"]).to_string();
    assert!(tools.contains("convert_time") && tools.contains("'Asia/Tokyo' as local"), "{tools}");
    let times = json!({"source_timezone": "Asia/Tokyo", "time": "16:30", "target_timezone": "Asia/Kolkata"});
    let converted = json_of(&home, &["call", "zoned", "convert_time", &times.to_string(), "--json"]);
    let converted: Value = serde_json::from_str(text(&converted)).unwrap();
    assert!(converted["target"]["datetime"].as_str().unwrap().contains("T13:00:00+05:30"), "{converted}");
    assert_eq!(converted["time_difference"], "-3.5h", "{converted}");
    // The machine knows what time it is: year and month of the host, or of a moment later.
    let now = json_of(&home, &["call", "zoned", "get_current_time", r#"{"timezone": "UTC"}"#, "--json"]);
    let now: Value = serde_json::from_str(text(&now)).unwrap();
    let started = json_of(&home, &["status", "--json"])[0]["started_at"].as_str().unwrap().to_owned();
    assert!(now["datetime"].as_str().unwrap() >= &started[..19], "{now} is before {started}");
}

/// A server of one file that depends on nothing.
const SERVER: &str = r#"
const lines = require('readline').createInterface({ input: process.stdin });
const tool = {
  name: 'where', description: 'Where the server runs.', inputSchema: { type: 'object', properties: {} },
};
const answers = {
  initialize: ({ protocolVersion }) => ({
    protocolVersion, capabilities: { tools: {} }, serverInfo: { name: 'small', version: '1.0.0' },
  }),
  ping: () => ({}),
  'tools/list': () => ({ tools: [tool] }),
  'tools/call': () => ({
    content: [{ type: 'text', text: JSON.stringify({ cwd: process.cwd(), args: process.argv.slice(2) }) }],
  }),
};
lines.on('line', (line) => {
  const { id, method, params } = JSON.parse(line);
  if (id === undefined) return;
  const answer = answers[method]
    ? { result: answers[method](params ?? {}) }
    : { error: { code: -32601, message: 'no such method' } };
  process.stdout.write(JSON.stringify({ jsonrpc: '2.0', id, ...answer }) + '\n');
});
"#;

#[test]
fn a_folder_is_a_server_with_its_own_start_or_the_given_command() {
    let home = Home::new();
    let folder = home.path().join("small");
    fs::create_dir(&folder).unwrap();
    let manifest =
        json!({"name": "small", "version": "1.0.0", "scripts": {"start": "node server.js 'as it says'"}});
    fs::write(folder.join("package.json"), manifest.to_string()).unwrap();
    fs::write(folder.join("server.js"), SERVER).unwrap();
    let source = format!("dir:{}", folder.display());

    let plain = json_of(&home, &["add", "plain", &source, "--json"]);
    let command = "node ./server.js 'with these' words";
    let given = json_of(&home, &["add", "given", &source, "--command", command, "--json"]);
    assert_eq!(given["image"], plain["image"]);
    let launched = casemate(&home, &["launch", "given"]);
    assert_eq!(launched.code, 0, "{}", launched.stderr);
    for (name, args) in [("plain", json!(["as it says"])), ("given", json!(["with these", "words"]))] {
        let said = json_of(&home, &["call", name, "where", "--json"]);
        let said: Value = serde_json::from_str(text(&said)).unwrap();
        assert_eq!(said, json!({"cwd": "/app", "args": args}), "{name}");
    }
    let tools = json_of(&home, &["tools", "given", "--json"]);
    assert_eq!(tools[0]["name"], "where", "{tools}");

    // Another content is another image; the folder is read again although its last digest is known.
    fs::write(folder.join("server.js"), SERVER.replace("'no such method'", "'unknown'")).unwrap();
    let changed = json_of(&home, &["add", "plain", &source, "--replace", "--json"]);
    assert_ne!(changed["image"], plain["image"]);
}
