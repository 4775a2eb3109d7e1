//! Every tool, by what it really does to the process and its surroundings.

use crate::support::{LATEST_LEGACY, command, data, failure, initialised, text};
use casemate_testkit::LineClient;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::thread;

fn client() -> LineClient {
    initialised(LATEST_LEGACY, json!({}))
}

#[test]
fn echo_gives_message_and_time_in_indented_json() {
    let answer = client().call("echo", json!({ "message": "\u{1f600} \"q\"\n" })).unwrap();
    assert!(text(&answer).starts_with("{\n  \"message\""), "{answer}");
    assert_eq!(data(&answer)["message"], "\u{1f600} \"q\"\n");
    let timestamp = data(&answer)["timestamp"].as_str().unwrap().to_owned();
    assert!(timestamp.len() == 24 && timestamp.ends_with('Z') && timestamp.as_str() > "2025");
}

#[test]
fn add_is_exact_where_it_can_be() {
    let mut client = client();
    for (a, b, sum, operation) in [
        (json!(2), json!(3), json!(5), "2 + 3 = 5"),
        (json!(-1), json!(0.5), json!(-0.5), "-1 + 0.5 = -0.5"),
        (json!(9_007_199_254_740_993_i64), json!(0), json!(9_007_199_254_740_993_i64), ""),
        (json!(i64::MAX), json!(1), json!(9_223_372_036_854_775_808.0), ""),
    ] {
        let answer = data(&client.call("add", json!({ "a": a, "b": b })).unwrap());
        assert_eq!(answer["result"], sum);
        assert!(operation.is_empty() || answer["operation"] == operation, "{answer}");
    }
    assert!(failure(&client.call("add", json!({ "a": 1e308, "b": 1e308 })).unwrap()).contains("finite"));
}

#[test]
fn get_server_info_tells_who_serves_whom() {
    let mut client = client();
    let info = data(&client.call("get_server_info", json!({})).unwrap());
    assert_eq!(info["server"]["name"], "casemate-probe");
    assert_eq!(info["client"]["name"], "casemate-testkit");
    assert_eq!(info["pid"], client.pid());
    assert_eq!(info["versions"]["protocol"], LATEST_LEGACY);
    assert_eq!(info["versions"]["protocols"].as_array().unwrap().len(), 5);
    assert_eq!(info["platform"], format!("linux-{}", std::env::consts::ARCH));
    let later = data(&client.call("get_server_info", json!({})).unwrap());
    assert_eq!(later["requestCount"].as_u64().unwrap(), info["requestCount"].as_u64().unwrap() + 1);
    assert!(later["uptimeMs"].as_u64() >= info["uptimeMs"].as_u64());
}

#[test]
fn env_shows_one_variable_or_all() {
    let mut client = LineClient::spawn(command(&[]).env_clear().env("ONE", "1").env("TWO", "zwei")).unwrap();
    client.initialize(LATEST_LEGACY, json!({})).unwrap();
    assert_eq!(data(&client.call("env", json!({})).unwrap()), json!({ "ONE": "1", "TWO": "zwei" }));
    let one = client.call("env", json!({ "name": "TWO" })).unwrap();
    assert_eq!(data(&one), json!({ "name": "TWO", "value": "zwei" }));
    let none = client.call("env", json!({ "name": "THREE" })).unwrap();
    assert_eq!(data(&none), json!({ "name": "THREE", "value": null }));
}

#[test]
fn whoami_agrees_with_the_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = LineClient::spawn(command(&[]).current_dir(folder.path())).unwrap();
    client.initialize(LATEST_LEGACY, json!({})).unwrap();
    let me = data(&client.call("whoami", json!({})).unwrap());
    let status = fs::read_to_string(format!("/proc/{}/status", client.pid())).unwrap();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap().to_owned()
    };
    assert_eq!(me["uid"].to_string(), field("Uid").split('\t').next().unwrap());
    assert_eq!(me["egid"].to_string(), field("Gid").split('\t').nth(1).unwrap());
    assert_eq!(me["capabilities"]["bounding"], field("CapBnd"));
    assert_eq!(me["no_new_privs"], field("NoNewPrivs") == "1");
    assert_eq!(me["seccomp"].to_string(), field("Seccomp"));
    assert_eq!(me["hostname"], fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    assert_eq!(me["cwd"], folder.path().canonicalize().unwrap().to_str().unwrap());
}

#[test]
fn files_are_written_appended_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file").to_str().unwrap().to_owned();
    let mut client = client();
    client.call("write_file", json!({ "path": path, "content": "long content" })).unwrap();
    let short = client.call("write_file", json!({ "path": path, "content": "ab" })).unwrap();
    assert_eq!(data(&short), json!({ "path": path, "bytes": 2 }));
    client.call("write_file", json!({ "path": path, "content": "cd", "append": true })).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"abcd");
    let all = data(&client.call("read_file", json!({ "path": path })).unwrap());
    assert_eq!((&all["content"], &all["truncated"]), (&json!("abcd"), &json!(false)));
    let part = data(&client.call("read_file", json!({ "path": path, "max_bytes": 3 })).unwrap());
    assert_eq!((&part["content"], &part["truncated"]), (&json!("abc"), &json!(true)));
    fs::write(&path, [0xff, 0x00, 0x1f]).unwrap();
    let binary = data(&client.call("read_file", json!({ "path": path })).unwrap());
    assert_eq!((&binary["content"], &binary["encoding"]), (&json!("ff001f"), &json!("hex")));
    let missing = folder.path().join("no/such").to_str().unwrap().to_owned();
    for (tool, arguments) in
        [("read_file", json!({ "path": missing })), ("write_file", json!({ "path": missing, "content": "" }))]
    {
        let answer = client.call(tool, arguments).unwrap();
        assert!(failure(&answer).contains("No such file"), "{answer}");
    }
}

#[test]
fn random_bytes_differ() {
    let mut client = client();
    let mut draw = || data(&client.call("random", json!({ "bytes": 32 })).unwrap())["hex"].clone();
    let (first, second) = (draw(), draw());
    assert_eq!(first.as_str().unwrap().len(), 64);
    assert_ne!(first, second);
}

#[test]
fn connect_says_what_happened() {
    let mut client = client();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut outcome = |host: &str, port: u16| {
        data(&client.call("connect", json!({ "host": host, "port": port })).unwrap())["outcome"].clone()
    };
    assert_eq!(outcome("127.0.0.1", port), "connected");
    drop(listener);
    assert_eq!(outcome("127.0.0.1", port), "refused");
    assert_eq!(outcome("no-such-host.invalid", port), "unresolved");
}

#[test]
fn crash_and_exit_end_the_process_without_an_answer() {
    for (tool, arguments, signal, code) in [
        ("crash", json!({}), Some(11), None),
        ("crash", json!({ "kind": "abort" }), Some(6), None),
        ("exit", json!({ "code": 42 }), None, Some(42)),
        ("exit", json!({}), None, Some(0)),
    ] {
        let mut client = client();
        client.start("tools/call", json!({ "name": tool, "arguments": arguments })).unwrap();
        let status = client.wait().unwrap();
        assert_eq!((status.signal(), status.code()), (signal, code), "{tool} {arguments}");
        assert!(client.recv().is_err());
    }
}

#[test]
fn allocate_touches_every_page() {
    let mut client = client();
    let answer = data(&client.call("allocate", json!({ "mb": 8 })).unwrap());
    assert_eq!(answer["pages"], 2048);
    let hold = json!({ "name": "allocate", "arguments": { "mb": 64, "hold_ms": 600_000 } });
    let held = client.start("tools/call", hold).unwrap();
    let resident = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", client.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    while resident() < 64 << 10 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    client.notify("notifications/cancelled", json!({ "requestId": held })).unwrap();
    assert!(client.request("ping", json!({})).unwrap().get("result").is_some());
}

#[test]
fn fork_bomb_counts_and_leaves_nobody() {
    let mut client = client();
    let answer = data(&client.call("fork_bomb", json!({ "limit": 40 })).unwrap());
    assert_eq!(answer, json!({ "forked": 40, "reaped": 40, "refused": null }));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", client.pid())).unwrap();
    assert_eq!(children, "");
}

#[test]
fn log_to_stdout_breaks_the_protocol_once() {
    let mut client = client();
    let arguments = json!({ "name": "log_to_stdout", "arguments": { "line": "not a message" } });
    let id = client.start("tools/call", arguments).unwrap();
    assert_eq!(client.line().unwrap(), b"not a message\n");
    assert_eq!(text(&client.answer(id).unwrap()), "printed");
}

#[test]
fn big_reply_is_as_big_as_asked() {
    let mut client = client();
    for bytes in [0, 1, 20 << 20] {
        assert_eq!(text(&client.call("big_reply", json!({ "bytes": bytes })).unwrap()).len(), bytes);
    }
    assert!(
        failure(&client.call("big_reply", json!({ "bytes": (20 << 20) + 1 })).unwrap()).contains("bytes")
    );
}

#[test]
fn counters_belong_to_processes() {
    let (mut first, mut second) = (client(), client());
    let count = |client: &mut LineClient| data(&client.call("counter", json!({})).unwrap());
    assert_eq!(count(&mut first), json!({ "count": 1, "pid": first.pid() }));
    assert_eq!(count(&mut first), json!({ "count": 2, "pid": first.pid() }));
    assert_eq!(count(&mut second), json!({ "count": 1, "pid": second.pid() }) as Value);
}

/// Answers each connection with this, once it has heard something.
fn answering(answers: &'static [&'static str]) -> (u16, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = thread::spawn(move || {
        let serve = |answer: &&str| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = [0; 1024];
            let length = stream.read(&mut heard).unwrap();
            stream.write_all(answer.replace("PORT", &port.to_string()).as_bytes()).unwrap();
            String::from_utf8_lossy(&heard[..length]).into_owned()
        };
        answers.iter().map(serve).collect()
    });
    (port, serving)
}

#[test]
fn exchange_returns_what_came_back() {
    let mut client = client();
    let (port, serving) = answering(&["back"]);
    let arguments = json!({ "host": "127.0.0.1", "port": port, "send": "6869" });
    let answer = data(&client.call("exchange", arguments).unwrap());
    assert_eq!((&answer["text"], &answer["hex"]), (&json!("back"), &json!("6261636b")));
    assert_eq!(serving.join().unwrap(), ["hi"]);
    let refused = client.call("exchange", json!({ "host": "127.0.0.1", "port": port, "send": "" })).unwrap();
    assert!(failure(&refused).contains("refused"), "{refused}");
}

#[test]
fn fetch_follows_redirections() {
    const ANSWERS: &[&str] = &[
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:PORT/there\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nbody",
    ];
    // What the surroundings say of proxies is not meant.
    let mut command = command(&[]);
    let mut client = LineClient::spawn(command.env_remove("http_proxy")).unwrap();
    client.initialize(LATEST_LEGACY, json!({})).unwrap();
    let (port, serving) = answering(ANSWERS);
    let url = format!("http://127.0.0.1:{port}/here");
    let answer = data(&client.call("fetch", json!({ "url": url })).unwrap());
    assert_eq!(
        (&answer["status"], &answer["body"], &answer["proxy"]),
        (&json!(200), &json!("body"), &json!(null))
    );
    assert_eq!(answer["followed"], json!([url]));
    let heard = serving.join().unwrap();
    assert!(
        heard[0].starts_with("GET /here HTTP/1.1\r\n") && heard[1].starts_with("GET /there "),
        "{heard:?}"
    );
}
