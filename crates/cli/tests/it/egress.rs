//! The one way out of a machine, used and abused from inside of real guests.

mod fetch;
pub mod site;
mod sni;

use crate::{
    home::{Home, finish},
    live::{answer, call, folder, launch, server_log},
    support::eventually,
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Where the agent offers its proxy.
const PROXY_PORT: u16 = 5254;

/// An address of nobody's, in a private network.
const PRIVATE: &str = "10.255.255.1:80";

/// An HTTP server on the host's loopback that counts who connects. It goes on until the tests end.
struct Server {
    port: u16,
    accepted: Arc<AtomicUsize>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new() -> Self {
        Self::at("127.0.0.1:0")
    }

    fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            accepted: Arc::default(),
            heard: Arc::default(),
        };
        let (accepted, heard) = (Arc::clone(&server.accepted), Arc::clone(&server.heard));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accepted.fetch_add(1, SeqCst);
                let heard = Arc::clone(&heard);
                thread::spawn(move || serve(stream, &heard));
            }
        });
        server
    }

    fn target(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    fn heard(&self) -> String {
        self.heard.lock().unwrap().join("")
    }
}

/// Answers one request; a request for `/moved` with a redirection into a private network.
fn serve(mut stream: TcpStream, heard: &Mutex<Vec<String>>) {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut buffer = [0; 4096];
    let length = stream.read(&mut buffer).unwrap_or_default();
    let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let answer = match request.contains(" /moved ") {
        true => format!("HTTP/1.1 302 Found\r\nLocation: http://{PRIVATE}/\r\nConnection: close\r\n\r\n"),
        false => "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfrom outside".to_owned(),
    };
    heard.lock().unwrap().push(request);
    // Who has gone hears nothing.
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.shutdown(std::net::Shutdown::Write);
    // What else is said is heard too.
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        heard.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sends bytes from inside of a machine; gives what came back.
fn exchange(home: &Home, host: &str, port: u16, bytes: &[u8]) -> Value {
    let arguments = json!({ "host": host, "port": port, "send": hex(bytes) });
    answer(home, "m", "exchange", &arguments.to_string())
}

/// The same with text, and the proxy.
fn proxied(home: &Home, text: &str) -> String {
    exchange(home, "127.0.0.1", PROXY_PORT, text.as_bytes())["text"].as_str().unwrap().to_owned()
}

/// A request of SOCKS 5 for an IPv4 address on loopback, and a plain one after it.
fn socks(port: u16) -> Vec<u8> {
    let request = [&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1][..], &port.to_be_bytes()].concat();
    [&request[..], b"GET / HTTP/1.1\r\n\r\n"].concat()
}

fn fetch(home: &Home, url: &str) -> Value {
    answer(home, "m", "fetch", &json!({ "url": url }).to_string())
}

fn connects(home: &Home, host: &str, port: u16) -> String {
    let arguments = json!({ "host": host, "port": port, "timeout_ms": 2000 });
    answer(home, "m", "connect", &arguments.to_string())["outcome"].as_str().unwrap().to_owned()
}

pub fn egress_log(home: &Home, record: &Value) -> Vec<Value> {
    let text = fs::read_to_string(folder(home, record).join("logs/egress.log")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn verdicts(log: &[Value], verdict: &str) -> usize {
    log.iter().filter(|line| line["verdict"] == verdict).count()
}

#[test]
fn a_guest_reaches_the_server_that_is_allowed_and_nothing_else() {
    let home = Home::new();
    let (allowed, other) = (Server::new(), Server::new());
    let (to, elsewhere) = (allowed.target(), other.target());
    let record = launch(&home, "m", &["--allow", &to]);
    assert_eq!(record["start"], "restored", "{record}");
    let env = answer(&home, "m", "env", "{}");
    for name in ["HTTP_PROXY", "https_proxy", "ALL_PROXY"] {
        assert_eq!(env[name], "http://127.0.0.1:5254", "{env}");
    }
    assert_eq!(env["NODE_USE_ENV_PROXY"], "1");

    // What is allowed on loopback, in each of its ways.
    assert_eq!(fetch(&home, &format!("http://{to}/direct"))["body"], "from outside");
    let tunnel = proxied(&home, &format!("CONNECT {to} HTTP/1.1\r\n\r\nGET /tunnel HTTP/1.1\r\n\r\n"));
    assert!(tunnel.starts_with("HTTP/1.1 200 ") && tunnel.ends_with("from outside"), "{tunnel}");
    let plain = proxied(&home, &format!("GET http://{to}/plain HTTP/1.1\r\nHost: evil.example\r\n\r\n"));
    assert!(plain.ends_with("from outside"), "{plain}");
    let by_socks = exchange(&home, "127.0.0.1", PROXY_PORT, &socks(allowed.port));
    assert!(by_socks["text"].as_str().unwrap().ends_with("from outside"), "{by_socks}");
    assert!(
        allowed.heard().contains(&format!("GET /plain HTTP/1.1\r\nHost: {to}\r\n")),
        "{}",
        allowed.heard()
    );
    assert_eq!(allowed.accepted(), 4);

    // And what is not, in the same ways.
    for request in [
        format!("CONNECT {elsewhere} HTTP/1.1\r\n\r\n"),
        format!("CONNECT localhost:{} HTTP/1.1\r\n\r\n", other.port),
        format!("CONNECT [::ffff:127.0.0.1]:{} HTTP/1.1\r\n\r\n", other.port),
        format!("GET http://{elsewhere}/ HTTP/1.1\r\nHost: {to}\r\n\r\n"),
    ] {
        let refused = proxied(&home, &request);
        assert!(refused.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{request}: {refused}");
        assert!(refused.contains("casemate: it is not on the allow list of this machine"), "{refused}");
    }
    let refused = exchange(&home, "127.0.0.1", PROXY_PORT, &socks(other.port));
    assert!(refused["hex"].as_str().unwrap().starts_with("05000502"), "{refused}");
    // A redirection into the host's network leads nowhere.
    let moved = proxied(&home, &format!("GET http://{to}/moved HTTP/1.1\r\n\r\n"));
    assert!(moved.starts_with("HTTP/1.1 302 "), "{moved}");
    let moved = fetch(&home, &format!("http://{to}/moved"));
    assert_eq!(
        (&moved["status"], &moved["followed"].as_array().unwrap().len()),
        (&json!(403), &1),
        "{moved}"
    );
    // A second request behind a first one goes to nobody.
    let before = allowed.heard();
    let smuggled = format!(
        "POST http://{to}/first HTTP/1.1\r\nContent-Length: 1\r\n\r\nxGET http://{elsewhere}/second HTTP/1.1\r\n\r\n"
    );
    let smuggled = proxied(&home, &smuggled);
    assert_eq!(smuggled.matches("HTTP/1.1 200 ").count(), 1, "{smuggled}");
    let heard = allowed.heard();
    assert!(heard[before.len()..].contains("/first") && !heard.contains("/second"), "{heard}");
    let unclear = format!(
        "POST http://{to}/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    );
    assert!(proxied(&home, &unclear).starts_with("HTTP/1.1 400 "));
    // Without the proxy there is no way at all.
    assert_eq!(connects(&home, "127.0.0.1", other.port), "refused");
    for host in ["10.0.2.2", "192.168.0.1", "1.1.1.1"] {
        assert_eq!(connects(&home, host, other.port), "unreachable", "{host}");
    }
    assert_eq!(other.accepted(), 0);

    let log = egress_log(&home, &record);
    assert_eq!((verdicts(&log, "allowed"), verdicts(&log, "refused")), (allowed.accepted(), 6), "{log:#?}");
    assert!(log.iter().all(|line| line["address"].is_null() || line["address"] == to), "{log:#?}");
    let told = eventually("a word in the server's log", || {
        let log = server_log(&home, &record);
        log.contains(&format!("no way out for CONNECT {elsewhere}: it is not on the allow list"))
            .then_some(log)
    });
    assert!(told.contains(&format!("--allow {elsewhere} would put it there")), "{told}");
}

#[test]
fn without_being_allowed_anything_there_is_no_way_out() {
    let home = Home::new();
    let record = launch(&home, "m", &[]);
    assert_eq!(connects(&home, "127.0.0.1", PROXY_PORT), "refused");
    let env = answer(&home, "m", "env", "{}");
    assert!(env["HTTP_PROXY"].is_null() && env["NODE_USE_ENV_PROXY"].is_null(), "{env}");
    assert!(!folder(&home, &record).join("logs/egress.log").exists());
}

#[test]
fn a_forwarded_port_leads_to_its_target_before_and_after_a_sleep() {
    let home = Home::new();
    let server = Server::new();
    let forward = format!("2222={}", server.target());
    let record = launch(&home, "m", &["--forward", &forward, "--idle", "400ms"]);
    for round in 1..=2 {
        assert_eq!(fetch(&home, "http://127.0.0.1:2222/")["body"], "from outside");
        assert_eq!(server.accepted(), round);
        eventually("a suspended machine", || {
            (home.machine_record("m")["state"] == "suspended").then_some(())
        });
    }
    // No target of the guest's own choice is allowed thereby.
    assert_eq!(connects(&home, "127.0.0.1", PROXY_PORT), "refused");
    let log = egress_log(&home, &record);
    assert_eq!(verdicts(&log, "allowed"), 2, "{log:#?}");
    assert_eq!((&log[0]["request"], &log[0]["target"]), (&json!("FORWARD 2222"), &server.target().into()));
}

/// What a template held of the outside, all its clones would share.
#[test]
fn a_server_that_calls_home_while_it_starts_is_in_no_template() {
    let home = Home::new();
    let command = ["--command", "builtin:probe --misbehave call-home", "--allow", "a.example.com:80"];
    let record = launch(&home, "m", &command);
    assert_eq!(record["start"], "restored", "{record}");
    let reason = record["template_reason"].as_str().unwrap_or_default();
    assert!(reason.contains("uses the network while it starts"), "{record}");
    eventually("its call in the log", || {
        (verdicts(&egress_log(&home, &record), "refused") == 1).then_some(())
    });
    assert_eq!(call(&home, "m", "echo", r#"{"message": "hi"}"#).code, 0);
}

/// The program on a host that knows the names of this file: with it in the place of `/etc/hosts`, for the program
/// alone.
pub fn knowing(home: &Home, hosts: &Path, words: &[&str]) -> Command {
    let inner = home.command(words);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#]).arg(hosts);
    let tried = piped(Command::new("unshare")).args(["--mount", "true"]).output().unwrap();
    assert!(
        tried.status.success(),
        "this test gives names to addresses in a mount namespace of its own, which takes root: {}",
        String::from_utf8_lossy(&tried.stderr)
    );
    command.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    piped(command)
}

/// Starts machine `m` of the probe server on a host that knows the names of this file.
fn launch_knowing(home: &Home, hosts: &Path, options: &[&str]) -> Value {
    let words = [&["mcp", "microvm", "launch", "m"], options].concat();
    let launched = finish(knowing(home, hosts, &words), b"");
    assert_eq!(launched.code, 0, "{launched:?}");
    home.machine_record("m")
}

fn piped(mut command: Command) -> Command {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_name_leads_where_it_is_allowed_to_and_not_where_it_points_later() {
    let home = Home::new();
    let server = Server::new();
    let other = Server::at(&format!("127.0.0.2:{}", server.port));
    let (port, hosts) = (server.port, home.path().join("hosts"));
    fs::write(&hosts, "127.0.0.1 localhost a.example b.example\n").unwrap();
    let name = format!("a.example:{port}");
    let record = launch_knowing(&home, &hosts, &["--allow", &name, "--allow", &server.target()]);
    let url = format!("http://{name}/");
    let fetched = fetch(&home, &url);
    assert_eq!(
        (&fetched["body"], &fetched["proxy"]),
        (&json!("from outside"), &json!("http://127.0.0.1:5254"))
    );
    // A program that knows no proxy finds an address of the machine's own, which leads there.
    let found = exchange(&home, "A.example", port, b"GET /straight HTTP/1.1\r\n\r\n");
    assert!(found["text"].as_str().unwrap().ends_with("from outside"), "{found}");
    assert_eq!(connects(&home, "b.example", port), "unresolved");
    assert!(
        proxied(&home, &format!("CONNECT b.example:{port} HTTP/1.1\r\n\r\n")).starts_with("HTTP/1.1 403 ")
    );
    assert_eq!(server.accepted(), 2);

    // The name is bound to another address, as whoever owns it can do at any time.
    fs::write(&hosts, "127.0.0.2 a.example\n").unwrap();
    let refused = fetch(&home, &url);
    assert_eq!(refused["status"], 403, "{refused}");
    assert!(
        refused["body"].as_str().unwrap().contains(&format!("127.0.0.2:{port}, which is loopback")),
        "{refused}"
    );
    let straight = json!({ "host": "a.example", "port": port, "send": "00" }).to_string();
    let cut = call(&home, "m", "exchange", &straight);
    assert!(!cut.stdout.contains("from outside"), "{cut:?}");
    assert_eq!((server.accepted(), other.accepted()), (2, 0));
    let log = egress_log(&home, &record);
    assert!(
        log.iter().all(|line| line["address"].is_null() || line["address"] == server.target()),
        "{log:#?}"
    );
}
