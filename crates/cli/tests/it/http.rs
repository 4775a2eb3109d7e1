//! Servers that are reached by HTTP: called and run like those on stdio, in both eras; and those that are not
//! where they are said to be.

use crate::{
    home::{Finished, Home, casemate},
    support::eventually,
};
use casemate_testkit::{LineClient, modern_meta};
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};

/// A machine that has first to wait for an image that another test builds.
const PATIENCE: Duration = Duration::from_secs(300);

/// A machine has a minute to be ready; before that its template is made, and it boots, on a busy host.
const DEADLINE: Duration = Duration::from_secs(120);

fn done(home: &Home, args: &[&str]) -> Finished {
    let finished = casemate(home, args);
    assert_eq!(finished.code, 0, "{args:?}: {}", finished.stderr);
    finished
}

fn json_of(home: &Home, args: &[&str]) -> Value {
    serde_json::from_str(&done(home, args).stdout).unwrap()
}

/// The only text of a tool's result.
fn text(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{result}"))
}

/// Adds the probe as a server that listens, and speaks one era.
fn add_probe(home: &Home, era: &str) {
    let way = ["--transport", "http", "--port", "3000", "--", "--http", "3000", "--era", era];
    done(home, &[&["add", era, "builtin:probe"], &way[..]].concat());
}

#[test]
fn a_server_that_listens_is_called_like_any_other_in_both_eras() {
    let home = Home::new();
    for era in ["legacy", "modern"] {
        add_probe(&home, era);
        let launched = json_of(&home, &["launch", era, "--json"]);
        assert_eq!(launched["state"], "ready", "{launched}");
        let tools = json_of(&home, &["tools", era, "--json"]);
        assert!(tools.as_array().unwrap().iter().any(|tool| tool["name"] == "echo"), "{tools}");
        for message in ["grüezi", "again"] {
            let arguments = json!({ "message": message }).to_string();
            let echo = json_of(&home, &["call", era, "echo", &arguments, "--json"]);
            assert_eq!(serde_json::from_str::<Value>(text(&echo)).unwrap()["message"], message);
        }
        let refused = casemate(&home, &["call", era, "no-such-tool"]);
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        done(&home, &["stop", era]);
    }
    // One that is started for the call alone, on a port that only the command line names.
    let way = ["--command", "builtin:probe --http 4000 --era legacy", "--port", "4000"];
    let echo = done(&home, &[&["call", "legacy", "echo", r#"{"message":"x"}"#], &way[..]].concat());
    assert!(echo.stdout.contains("\"x\""), "{}", echo.stdout);
    assert_eq!(json_of(&home, &["status", "--json"]), json!([]));
}

#[test]
fn run_is_such_a_server_on_stdin_and_stdout() {
    let home = Home::new();
    let words = |era: &'static str| {
        [
            "run",
            "--transport",
            "http",
            "--port",
            "3000",
            "--",
            "builtin:probe",
            "--http",
            "3000",
            "--era",
            era,
        ]
    };
    let start = |era| LineClient::spawn(&mut home.command(&words(era))).unwrap().with_patience(PATIENCE);
    let mut client = start("legacy");
    let hello = client.initialize("2025-06-18", json!({})).unwrap();
    assert_eq!(hello["result"]["protocolVersion"], "2025-06-18", "{hello}");
    let echo = client.call("echo", json!({"message": "hi"})).unwrap();
    assert!(text(&echo["result"]).contains("\"hi\""), "{echo}");
    // What it prints is no message, wherever it prints it.
    client.call("log_to_stdout", json!({"line": "stray"})).unwrap();
    let sum = client.call("add", json!({"a": 2, "b": 40})).unwrap();
    assert!(text(&sum["result"]).contains("42"), "{sum}");
    client.close_stdin();
    assert_eq!(client.wait().unwrap().code(), Some(0), "{}", client.stderr());

    let mut client = start("modern");
    let modern = |params: Value| modern_meta(params, json!({}));
    let tools = client.request("tools/list", modern(json!({}))).unwrap();
    assert_eq!(tools["result"]["resultType"], "complete", "{tools}");
    let exit = json!({"name": "exit", "arguments": {"code": 7}});
    client.start("tools/call", modern(exit)).unwrap();
    let ended = eventually("the end of the server", || client.line().err().map(|error| error.to_string()));
    assert!(ended.contains("closed"), "{ended}");
    assert_eq!(client.wait().unwrap().code(), Some(5));
    assert!(client.stderr().contains("ended with exit code 7"), "{}", client.stderr());
    assert_eq!(json_of(&home, &["status", "--json"]), json!([]));
}

#[test]
fn the_reference_server_answers_by_streamable_http() {
    let home = Home::new();
    let source = "npm:@modelcontextprotocol/server-everything";
    let way = ["--transport", "http", "--port", "3001", "--", "streamableHttp"];
    done(&home, &[&["add", "everything", source], &way[..]].concat());
    let echo = json_of(&home, &["call", "everything", "echo", r#"{"message":"hi"}"#, "--json"]);
    assert_eq!(text(&echo), "Echo: hi");

    let mut client =
        LineClient::spawn(&mut home.command(&["run", "everything"])).unwrap().with_patience(PATIENCE);
    let hello = client.initialize("2025-11-25", json!({})).unwrap();
    assert_eq!(hello["result"]["protocolVersion"], "2025-11-25", "{hello}");
    let sum = client.call("get-sum", json!({"a": 2, "b": 40})).unwrap();
    assert!(text(&sum["result"]).contains("42"), "{sum}");
    client.close_stdin();
    assert_eq!(client.wait().unwrap().code(), Some(0), "{}", client.stderr());
}

#[test]
fn a_machine_sleeps_between_requests_and_the_session_goes_on() {
    let home = Home::new();
    add_probe(&home, "legacy");
    done(&home, &["launch", "legacy", "--idle", "1s"]);
    let call = || json_of(&home, &["call", "legacy", "echo", r#"{"message":"x"}"#, "--json"]);
    call();
    for _ in 0..2 {
        eventually("a machine that sleeps", || {
            let status = json_of(&home, &["status", "--json"]);
            (status[0]["state"] == "suspended").then_some(())
        });
        call();
    }
    // One process, and one session, all the time.
    assert_eq!(home.machine_record("legacy")["restarts"], 0);
}

/// A server that does not do what it should.
const SERVER: &str = r#"
const net = require('net');
const answers = {
  nonsense: (socket) => socket.end('SSH-2.0-OpenSSH_9.2\r\n'),
  page: (socket) => socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope'),
};
answers.late = answers.page;
const mode = process.argv[2];
if (mode === 'ends') { console.error('no configuration'); process.exit(3); }
const server = net.createServer((socket) => {
  socket.on('error', () => {});
  socket.once('data', () => answers[mode](socket));
});
setTimeout(() => server.listen(3000, '127.0.0.1'), mode === 'late' ? 18000 : 0);
"#;

/// The source of that server.
fn bad_server(home: &Home) -> String {
    let folder = home.path().join("bad");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("package.json"), r#"{"name":"bad","version":"1.0.0","main":"server.js"}"#).unwrap();
    fs::write(folder.join("server.js"), SERVER).unwrap();
    format!("dir:{}", folder.display())
}

#[test]
fn a_server_that_is_not_what_it_is_said_to_be_is_told_of() {
    let home = Home::new();
    let source = bad_server(&home);
    for (mode, expected) in [
        ("nonsense", "did not answer as HTTP does"),
        ("page", "HTTP 404 Not Found: nope"),
        ("ends", "no configuration"),
    ] {
        let command = format!("node server.js {mode}");
        let way = ["--command", &command, "--transport", "http", "--port", "3000"];
        done(&home, &[&["add", mode, &source], &way[..]].concat());
        let launched = casemate(&home, &["launch", mode]);
        assert_eq!(launched.code, 5, "{mode}: {launched:?}");
        assert!(launched.stderr.contains(expected), "{mode}: {}", launched.stderr);
    }
    // The hint names the port that would have been right.
    let way = ["--transport", "http", "--port", "4000", "--allow", "a.example:443"];
    let elsewhere =
        casemate(&home, &[&["run"], &way[..], &["--", "builtin:probe", "--http", "4001"]].concat());
    assert_eq!(elsewhere.code, 5, "{elsewhere:?}");
    assert!(
        elsewhere.stderr.contains("it does not listen on port 4000, but on 127.0.0.1:4001"),
        "{}",
        elsewhere.stderr
    );
    assert!(elsewhere.stderr.contains("--port N"), "{}", elsewhere.stderr);
    // The machine's own ways out are none of the server's ports.
    assert!(!elsewhere.stderr.contains("5254"), "{}", elsewhere.stderr);
}

#[test]
fn a_server_that_begins_late_is_waited_for_beside_the_ways_out() {
    let home = Home::new();
    let source = bad_server(&home);
    let way = ["--transport", "http", "--port", "3000", "--allow", "127.0.0.1:9"];
    done(&home, &[&["add", "late", &source, "--command", "node server.js late"], &way[..]].concat());
    let late = casemate(&home, &["launch", "late"]);
    // It was reached, which is all that this one is good for.
    assert!(late.stderr.contains("HTTP 404 Not Found: nope"), "{late:?}");
}

#[test]
fn a_server_that_never_listens_is_given_up_within_the_deadline() {
    let home = Home::new();
    let way = ["--transport", "http", "--port", "3000", "--", "--misbehave", "ignore-stdin"];
    done(&home, &[&["add", "deaf", "builtin:probe"], &way[..]].concat());
    let begun = Instant::now();
    let launched = casemate(&home, &["launch", "deaf"]);
    assert!(begun.elapsed() < DEADLINE, "after {:?}: {launched:?}", begun.elapsed());
    assert_eq!(launched.code, 5, "{launched:?}");
    let said = launched.stderr;
    assert!(said.contains("it does not listen on port 3000, nor on any other"), "{said}");
    assert!(said.contains("hint: give the port that the server listens on (--port N)"), "{said}");
    assert_eq!(json_of(&home, &["status", "--json"]), json!([]));
}

#[test]
fn a_way_that_cannot_be_is_refused_before_anything_starts() {
    let home = Home::isolated();
    for (args, expected) in [
        (&["--transport", "http"][..], "needs the port"),
        (&["--port", "80"], "a port is for servers with transport http"),
        (&["--path", "/x"], "a path is for servers with transport http"),
        (&["--transport", "http", "--port", "80", "--path", "/a b"], "is no path"),
        (&["--transport", "sse"], "possible values: stdio, http"),
        (&["--transport", "http", "--port", "0"], "--port"),
    ] {
        for command in [&["add", "x", "builtin:probe"][..], &["launch", "x", "--command", "builtin:probe"]] {
            let refused = casemate(&home, &[command, args].concat());
            assert_eq!(refused.code, 2, "{args:?}: {refused:?}");
            assert!(refused.stderr.contains(expected), "{args:?}: {}", refused.stderr);
        }
    }
}
