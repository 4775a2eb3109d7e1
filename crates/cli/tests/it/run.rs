//! `casemate run` as clients meet it: a server on standard input and output, and nothing else.

use crate::{
    foreign::Unpacked,
    home::{Home, casemate, finish},
    support::{await_output, eventually, signal},
};
use casemate_testkit::{ClientError, LineClient, modern_meta};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The largest message: 16 MiB without its newline.
const MESSAGE_BYTES: usize = 16 << 20;

/// A machine that has first to wait for a kernel that another test fetches.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is immediate on a host that is busy with other tests' machines.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Speaks with `casemate run ARGS`.
fn client(home: &Home, args: &[&str]) -> LineClient {
    let line = [&["run"], args].concat();
    LineClient::spawn(&mut home.command(&line)).unwrap().with_patience(PATIENCE)
}

fn status(home: &Home) -> Value {
    serde_json::from_str(&casemate(home, &["status", "--json"]).stdout).unwrap()
}

/// The only text of a tool's answer.
fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// The exit code and standard error, once nothing more comes on standard output.
fn ended(mut client: LineClient) -> (Option<i32>, String) {
    let rest = client.line();
    assert!(matches!(rest, Err(ClientError::Closed { .. })), "{rest:?}");
    let code = client.wait().unwrap().code();
    // What was written last is still on its way to the client: an error ends with where the log is.
    let until = Instant::now() + AT_ONCE;
    while code != Some(0) && !client.stderr().contains("log: ") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    (code, client.stderr())
}

#[test]
fn a_legacy_client_is_served_and_never_sees_a_stray_print() {
    let home = Home::new();
    let mut client = client(&home, &["--", "builtin:probe"]);
    let hello = client.initialize("2025-06-18", json!({})).unwrap();
    assert_eq!(hello["result"]["protocolVersion"], "2025-06-18", "{hello}");
    let tools = client.request("tools/list", json!({})).unwrap();
    let tools = tools["result"]["tools"].as_array().unwrap();
    assert!(tools.iter().any(|tool| tool["name"] == "echo"), "{tools:?}");
    let echo = client.call("echo", json!({"message": "grüezi"})).unwrap();
    assert_eq!(serde_json::from_str::<Value>(text(&echo)).unwrap()["message"], "grüezi");

    // A line that is no JSON would fail the client at once.
    assert_eq!(text(&client.call("log_to_stdout", json!({"line": "Server listening"})).unwrap()), "printed");
    let machine = status(&home)[0].clone();
    let name = machine["name"].as_str().unwrap();
    let logs = casemate(&home, &["logs", name]);
    assert!(logs.stdout.contains("not a message on stdout: Server listening"), "{logs:?}");

    // The end of the client's words is the end of the server, in peace.
    client.close_stdin();
    let (code, stderr) = ended(client);
    assert_eq!((code, stderr.contains("error")), (Some(0), false), "{stderr}");
    assert_eq!(status(&home), json!([]));
}

#[test]
fn a_modern_client_is_served_alone_and_told_how_the_server_ended() {
    let home = Home::new();
    let mut client = client(&home, &["--", "builtin:probe"]);
    let modern = |params: Value| modern_meta(params, json!({}));
    let tools = client.request("tools/list", modern(json!({}))).unwrap();
    assert_eq!(tools["result"]["resultType"], "complete", "{tools}");
    let sum = json!({"name": "add", "arguments": {"a": 2, "b": 40}});
    let sum = client.request("tools/call", modern(sum)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(text(&sum)).unwrap()["result"], 42);

    // Whoever else asks for the conversation is refused at once, and told by whom it is held.
    let machine = status(&home)[0].clone();
    let socket = format!("machines/{}/supervisor.sock", machine["id"].as_str().unwrap());
    let mut other = UnixStream::connect(home.path().join(socket)).unwrap();
    other.set_read_timeout(Some(AT_ONCE)).unwrap();
    other.write_all(b"CONNECT 5252\n").unwrap();
    let mut refusal = String::new();
    BufReader::new(other).read_line(&mut refusal).unwrap();
    let holder = format!("conversation is held by process {} (casemate)\n", client.pid());
    assert_eq!(refusal, format!("ERR busy {holder}"));
    // And calls have nobody to ask in this machine.
    let called = casemate(&home, &["call", machine["name"].as_str().unwrap(), "echo"]);
    assert_eq!(called.code, 3, "{}", called.stderr);

    let exit = json!({"name": "exit", "arguments": {"code": 7}});
    client.start("tools/call", modern(exit)).unwrap();
    let started = Instant::now();
    let (code, stderr) = ended(client);
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("ended with exit code 7"), "{stderr}");
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
}

#[test]
fn a_crash_is_told_with_its_signal() {
    let home = Home::new();
    let mut client = client(&home, &["--", "builtin:probe"]);
    client.initialize("2025-11-25", json!({})).unwrap();
    client.start("tools/call", json!({"name": "crash", "arguments": {"kind": "abort"}})).unwrap();
    let (code, stderr) = ended(client);
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("by signal 6") && stderr.contains("log: "), "{stderr}");
}

/// A pipe into `casemate run` closes standard input long before the server is there.
#[test]
fn a_server_that_fails_is_told_of_although_the_client_said_its_last_word() {
    let home = Home::new();
    let failed = finish(home.command(&["run", "--", "false"]), b"{}\n");
    assert_eq!((failed.code, failed.stdout.as_str()), (5, ""), "{}", failed.stderr);
    assert!(failed.stderr.contains("ended with exit code 1"), "{}", failed.stderr);
}

/// `cat` gives every message back: what comes was passed both ways.
#[test]
fn messages_pass_byte_for_byte_up_to_16_mib() {
    let home = Home::new();
    let mut client = client(&home, &["--", "cat"]);
    let odd: [&[u8]; 6] = [
        b"  {\"jsonrpc\" : \"2.0\",\t\"id\":1 ,\"unknown\": {\"deep\": [null, 1.00, 1e400, -0]}}\t \n",
        b"{\"again\":1,\"again\":2,\"\":\"\"}\r\n",
        "{\"text\":\"zażółć 🏰 \u{2028}\u{feff}\"}\n".as_bytes(),
        br#"{"escaped":"\u00e9\/\ud83c\udff0 \ud800","number":123456789012345678901234567890}"#,
        b"\n",
        b"{}\n",
    ];
    for line in odd {
        client.send_bytes(line).unwrap();
    }
    // These are no messages, and end in the log.
    client.send_bytes(b"[]\nstray\n\xff\xfe\n{\"cut\":\n\n").unwrap();
    let mut back = Vec::new();
    for _ in 0..odd.len() - 1 {
        back.extend(client.line().unwrap());
    }
    assert_eq!(String::from_utf8_lossy(&back), String::from_utf8_lossy(&odd.concat()));
    let name = status(&home)[0]["name"].as_str().unwrap().to_owned();

    let mut largest = br#"{"x":""#.to_vec();
    largest.resize(MESSAGE_BYTES - 2, b'y');
    largest.extend(b"\"}\n");
    client.send_bytes(&largest).unwrap();
    assert!(client.line().unwrap() == largest, "the largest message was changed");

    largest.insert(10, b'y');
    // The conversation may be over before all of it is written.
    let _ = client.send_bytes(&largest);
    let (code, stderr) = ended(client);
    assert_eq!(code, Some(5), "{stderr}");
    let reason = "message from the client is longer than 16777216 bytes";
    assert!(stderr.contains(reason), "{stderr}");
    let log = casemate(&home, &["logs", &name]).stdout;
    for line in ["not a message on stdout: []", "not a message on stdout: stray", reason] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
fn a_reply_over_16_mib_ends_the_conversation_with_a_reason() {
    let home = Home::new();
    let mut client = client(&home, &["--memory", "512", "--", "builtin:probe", "--misbehave", "long-line"]);
    client.start("ping", json!({})).unwrap();
    // A client that has said its last word still waits for the answer.
    client.close_stdin();
    let (code, stderr) = ended(client);
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("message from the server is longer than 16777216 bytes"), "{stderr}");
}

#[test]
fn a_killed_run_takes_its_machine_along() {
    let home = Home::new();
    let mut client = client(&home, &["--", "builtin:probe"]);
    client.initialize("2025-06-18", json!({})).unwrap();
    client.start("tools/call", json!({"name": "sleep", "arguments": {"ms": 600_000}})).unwrap();
    assert_eq!(status(&home)[0]["state"], "ready");
    signal(client.pid(), Signal::KILL);
    client.wait().unwrap();
    eventually("no machine", || (status(&home) == json!([])).then_some(()));
    // The home finds whatever else may be left when it is dropped.
}

/// A client that was killed closes both ends; its server may neither notice nor care.
#[test]
fn a_client_that_vanishes_takes_its_server_along() {
    let home = Home::new();
    let sleep = json!({"name": "sleep", "arguments": {"ms": 600_000}});
    let asking = vanish(&home, &["builtin:probe"], |child| {
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        }});
        let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": sleep});
        let mut stdin = child.stdin.as_ref().unwrap();
        write!(stdin, "{hello}\n{call}\n").unwrap();
        let stdout = child.stdout.as_mut().unwrap();
        await_output(stdout, PATIENCE);
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer).unwrap();
        assert!(answer.contains("serverInfo"), "{answer}");
    });
    assert_eq!(asking, Some(0));
    let deaf = vanish(&home, &["builtin:probe", "--misbehave", "ignore-stdin"], |_| {
        eventually("a machine that is ready", || (status(&home)[0]["state"] == "ready").then_some(()));
    });
    assert_eq!(deaf, Some(0));
    assert_eq!(status(&home), json!([]));
}

/// Runs a server, does something with it, and closes its standard streams; gives the exit code.
fn vanish(home: &Home, command: &[&str], meanwhile: impl FnOnce(&mut Child)) -> Option<i32> {
    let line = [&["run", "--"], command].concat();
    let mut run = home.command(&line).stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    meanwhile(&mut run);
    drop((run.stdin.take(), run.stdout.take()));
    let until = Instant::now() + PATIENCE;
    loop {
        match run.try_wait().unwrap() {
            Some(status) => return status.code(),
            None if Instant::now() > until => {
                signal(run.id(), Signal::KILL);
                run.wait().unwrap();
                panic!("casemate run did not end");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The command-line client of the npm package `@modelcontextprotocol/inspector`, which needs a newer Node
/// than hosts have: both come from an image. It runs outside, since it starts casemate.
#[test]
fn the_inspector_lists_and_calls_tools() {
    let home = Home::new();
    let added = casemate(&home, &["add", "everything", "npm:@modelcontextprotocol/server-everything"]);
    assert_eq!(added.code, 0, "{}", added.stderr);
    // The inspector gives the programs that it starts next to none of its environment.
    assert_eq!(casemate(&home, &["doctor"]).code, 0);
    let inspector = Unpacked::build(&home, &["npm:@modelcontextprotocol/inspector"]).files();
    let listed = inspect(&home, &inspector, &["--method", "tools/list"]);
    let names: Vec<&str> =
        listed["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"echo") && names.contains(&"get-sum"), "{names:?}");
    let call = ["--method", "tools/call", "--tool-name", "echo", "--tool-arg", "message=hi"];
    assert_eq!(inspect(&home, &inspector, &call)["content"][0]["text"], "Echo: hi");
    assert_eq!(status(&home), json!([]));
}

/// What the inspector prints after speaking with `casemate run everything`.
fn inspect(home: &Home, inspector: &[PathBuf], arguments: &[&str]) -> Value {
    let mut command = Command::new(&inspector[0]);
    // A start in emulation takes longer than the inspector waits by itself.
    command.args(&inspector[1..]).args(["--cli", "--connect-timeout", "120000", "-e"]);
    command.arg(format!("CASEMATE_HOME={}", home.path().display()));
    command.args([env!("CARGO_BIN_EXE_casemate"), "run", "everything"]).args(arguments);
    let said = finish(piped(command), b"");
    assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

fn piped(mut command: Command) -> Command {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
