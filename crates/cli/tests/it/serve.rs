//! `casemate serve` as clients meet it: the probe server in machines behind HTTP, and nothing left afterwards.

use crate::{
    home::{Home, casemate},
    support::{PATIENCE, eventually, signal},
};
use client::{Answer, Client, Serving};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    process::Command,
    time::{Duration, Instant},
};

mod client;
mod official;

const SERVERS: &str = "[[servers]]\nid = \"probe\"\nsource = \"builtin:probe\"\n\
                       [[servers]]\nid = \"other\"\nsource = \"builtin:probe\"\n";

fn status(home: &Home) -> Vec<Value> {
    serde_json::from_str(&casemate(home, &["status", "--json"]).stdout).unwrap()
}

/// The object that a tool of the probe server wrote as its only text.
fn answer(message: &Value) -> Value {
    let text = message["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{message}"));
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

#[test]
fn each_client_has_a_machine_of_its_own_until_it_says_goodbye() {
    let home = Home::new();
    home.write("config.toml", SERVERS);
    let serving = Serving::start(&home, &[]);
    let mut one = Client::begin(&serving, "probe", json!({ "elicitation": {} }));
    let mut two = Client::begin(&serving, "probe", json!({}));
    assert_eq!(status(&home).len(), 2);

    let tools = one.ask("tools/list", json!({})).whole();
    let tools = tools["result"]["tools"].as_array().unwrap();
    assert!(tools.iter().any(|tool| tool["name"] == "ask_client"), "{tools:?}");
    // Both use the same ids, and neither sees the other's state.
    for count in 1..=3 {
        for client in [&mut one, &mut two] {
            assert_eq!(answer(&client.call("counter", json!({})).whole())["count"], count);
        }
    }

    let mut slept = one.call_with(json!({"progressToken": "p"}), "sleep", json!({"ms": 1500}));
    let mut steps = Vec::new();
    let slept = loop {
        let message = slept.message();
        if message["method"] != "notifications/progress" {
            break message;
        }
        assert_eq!(message["params"]["progressToken"], "p");
        steps.push(message["params"]["progress"].as_u64().unwrap());
    };
    assert_eq!((steps.len(), answer(&slept)), (10, json!("slept 1500 ms")));

    let mut asked = one.call("ask_client", json!({"method": "elicitation/create"}));
    let question = asked.message();
    assert_eq!(question["method"], "elicitation/create", "{question}");
    let reply = json!({"action": "accept", "content": {"name": "Ada"}});
    let accepted = one.send(&json!({"jsonrpc": "2.0", "id": question["id"], "result": reply}));
    assert_eq!(accepted.status, 202);
    assert_eq!(answer(&asked.message())["result"], reply);

    let mut own = one.listen(None);
    assert_eq!(own.status, 200);
    one.call("announce", json!({})).whole();
    assert_eq!(own.message()["method"], "notifications/tools/list_changed");

    assert_eq!(one.end().status, 204);
    assert_eq!(status(&home).len(), 1);
    assert_eq!(one.ask("ping", json!({})).status, 404);
    assert_eq!(two.ask("ping", json!({})).whole()["result"], json!({}));
    let (code, stderr) = serving.terminate();
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(status(&home), Vec::<Value>::new());
}

#[test]
fn a_crash_during_a_call_is_told_within_a_second() {
    let home = Home::new();
    home.write("config.toml", SERVERS);
    let serving = Serving::start(&home, &[]);
    let mut client = Client::begin(&serving, "probe", json!({}));
    let mut other = Client::begin(&serving, "other", json!({}));
    client.call("log_to_stderr", json!({"text": "my last words"})).whole();
    let began = Instant::now();
    let told = client.call("exit", json!({"code": 7})).whole();
    let took = began.elapsed();
    let error = &told["error"];
    let message = "the server ended with exit code 7; the request may have been executed";
    assert_eq!((error["code"].as_i64(), error["message"].as_str()), (Some(-32000), Some(message)), "{told}");
    assert_eq!(error["data"]["exitCode"], 7);
    assert!(error["data"]["stderr"].as_str().unwrap().contains("my last words"), "{told}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(client.ask("ping", json!({})).status, 404);
    assert_eq!(other.ask("ping", json!({})).whole()["result"], json!({}));
    eventually("one machine", || (status(&home).len() == 1).then_some(()));

    // The gateway's own death takes the machines along.
    signal(serving.pid(), Signal::KILL);
    eventually("no machine", || status(&home).is_empty().then_some(()));
}

#[test]
fn an_idle_session_ends_and_one_without_room_does_not_begin() {
    let home = Home::new();
    home.write("config.toml", SERVERS);
    let serving = Serving::start(&home, &["--session-idle", "2s", "--memory", "128"]);
    let mut client = Client::begin(&serving, "probe", json!({}));
    let _own = client.listen(None);
    assert_eq!(status(&home).len(), 1);
    eventually("no machine", || status(&home).is_empty().then_some(()));
    assert_eq!(client.ask("ping", json!({})).status, 404);
    drop(serving);

    let mut command = home.command(&["serve", "--listen", "127.0.0.1:0", "--json", "--memory", "1024"]);
    command.env("CASEMATE_MEMORY_LIMIT", "80");
    let crowded = Serving::spawn(command);
    let mut refused = Client::new(&crowded, "probe").initialize(json!({}));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert!(
        refused.message()["error"]["message"].as_str().unwrap().contains("no machine can be started now")
    );
}

#[test]
fn an_address_that_others_reach_is_refused_and_so_is_one_in_use() {
    let home = Home::isolated();
    let serve = |listen: &str| casemate(&home, &["serve", "--listen", listen]);
    let open = serve("0.0.0.0:0");
    assert_eq!(open.code, 2, "{}", open.stderr);
    assert!(open.stderr.contains("there is no authentication yet"), "{}", open.stderr);
    assert!(open.stderr.contains("--insecure-no-auth"), "{}", open.stderr);
    let empty = serve("127.0.0.1:0");
    assert_eq!(empty.code, 3, "{}", empty.stderr);
    home.write("config.toml", SERVERS);
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = serve(&other.local_addr().unwrap().to_string());
    assert_eq!(taken.code, 4, "{}", taken.stderr);
    assert!(taken.stderr.contains("cannot listen on 127.0.0.1:"), "{}", taken.stderr);
}

#[test]
fn a_name_or_an_origin_that_no_request_could_match_is_refused() {
    let home = Home::isolated();
    home.write("config.toml", SERVERS);
    for (option, value) in [
        ("--allow-host", "gate.example:8443"),
        ("--allow-host", "https://gate.example"),
        ("--allow-origin", "app.example"),
    ] {
        let refused = casemate(&home, &["serve", "--listen", "127.0.0.1:0", option, value]);
        assert_eq!(refused.code, 2, "{option} {value}: {}", refused.stderr);
    }
}

#[test]
fn descriptors_suffice_for_what_the_gateway_lets_in() {
    let home = Home::isolated();
    home.write("config.toml", SERVERS);
    let serve = home.command(&["serve", "--listen", "127.0.0.1:0", "--json"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\""]).arg(serve.get_program()).args(serve.get_args());
    shell.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let serving = Serving::spawn(shell);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", serving.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let most: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // A thousand connections, a thousand sessions of two sockets each, and some more.
    assert_eq!(most[0], 3200.min(most[1]), "{line}");
}

#[test]
fn the_end_waits_for_no_session_that_has_not_begun() {
    let home = Home::isolated();
    let secret = "[[servers]]\nid = \"probe\"\nsource = \"builtin:probe\"\n\
                  secrets = { KEY = \"cmd:sleep 50\" }\n";
    home.write("config.toml", secret);
    let serving = Serving::start(&home, &["--drain", "1s"]);
    let mut client = Client::new(&serving, "probe");
    let asked = std::thread::spawn(move || client.initialize(json!({})).status);
    std::thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    let (code, stderr) = serving.terminate();
    let took = began.elapsed();
    assert_eq!((code, asked.join().unwrap()), (Some(0), 503), "{stderr}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn what_there_is_to_be_told_is_told_once() {
    let home = Home::isolated();
    let server = "[[servers]]\nid = \"probe\"\nsource = \"builtin:probe\"\n\
                  secrets = { KEY = \"cmd:false\" }\n\
                  [[servers.tools]]\nname = \"echo\"\nmounts = [\"/usr/share:/shared\"]\n";
    home.write("config.toml", server);
    let serving = Serving::start(&home, &[]);
    for _ in 0..2 {
        let told = Client::new(&serving, "probe").initialize(json!({})).whole();
        assert!(told["error"]["message"].as_str().unwrap().contains("could not be started"), "{told}");
    }
    let (_, stderr) = serving.terminate();
    assert_eq!(stderr.matches("one machine serves this whole conversation").count(), 1, "{stderr}");
    // Each failure is one entry, whose other lines are set in; another one tells that a secret is asked for.
    assert_eq!(stderr.matches("probe: no session: cannot get secret KEY").count(), 2, "{stderr}");
    assert_eq!(stderr.lines().filter(|line| !line.starts_with(' ')).count(), 5, "{stderr}");
}

#[test]
fn what_the_gateway_is_asked_without_a_server_it_answers_by_itself() {
    let home = Home::isolated();
    home.write("config.toml", SERVERS);
    let serving = Serving::start(&home, &["--allow-host", "gate.example"]);
    let get = |path: &str, host: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        Answer::to(serving.address(), head.as_bytes())
    };
    assert_eq!(get("/health", "localhost").whole(), json!({"status": "ok"}));
    assert_eq!(get("/ready", "gate.example").whole(), json!({"status": "ready", "sessions": 0}));
    assert_eq!(get("/health", "evil.example").status, 403);
    assert_eq!(get("/mcp", "localhost").status, 404);
    let began = Instant::now();
    let (code, stderr) = serving.terminate();
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(began.elapsed() < PATIENCE);
}
