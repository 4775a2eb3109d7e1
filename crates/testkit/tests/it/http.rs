//! The vocabulary of the HTTP tests: a real client for what is right, bare bytes for what is wrong; and the
//! tests of what both eras share.

use crate::support::{data, stdio};
use casemate_testkit::{LineClient, PATIENCE};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use ureq::Agent;
use ureq::http::Response;

/// What a client accepts that conforms.
pub const BOTH: &str = "application/json, text/event-stream";

/// A probe that serves HTTP, and ends with the test.
pub struct Site {
    /// Its process id.
    pub pid: u32,
    /// Where it listens.
    pub address: String,
    agent: Agent,
    /// Only kept, and the threads of a test share this site.
    _process: Mutex<LineClient>,
}

/// What came back as a whole.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// `Content-Type`, without parameters.
    pub content: String,
    /// `Mcp-Session-Id`.
    pub session: Option<String>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// The message in the body, or the last in the stream.
    pub fn message(&self) -> Value {
        match self.content.as_str() {
            "application/json" => serde_json::from_str(&self.body).unwrap(),
            "text/event-stream" => self.events().pop().unwrap(),
            _ => panic!("no message in {self:?}"),
        }
    }

    /// The messages of the stream.
    pub fn events(&self) -> Vec<Value> {
        self.body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }
}

impl Site {
    /// Starts a probe that speaks `era`.
    pub fn start(era: &str) -> Self {
        let process = stdio(&["--http", "0", "--era", era]);
        let deadline = Instant::now() + PATIENCE;
        let address = loop {
            let said = process.stderr();
            if let Some((_, rest)) = said.split_once("http://")
                && let Some((address, _)) = rest.split_once("/mcp")
            {
                break address.to_owned();
            }
            assert!(Instant::now() < deadline, "the probe does not listen: {said}");
            std::thread::sleep(Duration::from_millis(5));
        };
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        Self { pid: process.pid(), address, agent: config.build().into(), _process: Mutex::new(process) }
    }

    fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Sends a body with these headers, besides `Content-Type`; later headers replace earlier ones.
    pub fn open(&self, body: &str, headers: &[(&str, &str)]) -> Response<ureq::Body> {
        let mut request = self.agent.post(self.url()).header("Content-Type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send(body).unwrap()
    }

    /// The same, read to its end.
    pub fn post(&self, body: &Value, headers: &[(&str, &str)]) -> Reply {
        read(self.open(&body.to_string(), headers))
    }

    /// `GET` or `DELETE`.
    pub fn other(&self, method: &str, headers: &[(&str, &str)]) -> Response<ureq::Body> {
        let mut request = match method {
            "GET" => self.agent.get(self.url()),
            _ => self.agent.delete(self.url()),
        };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().unwrap()
    }

    /// A connection for bytes of any kind.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The status that these bytes get.
    pub fn raw(&self, bytes: &[u8]) -> u16 {
        let mut stream = self.connect();
        // What is refused early may not be read to its end.
        let _ = stream.write_all(bytes);
        status(&mut BufReader::new(stream))
    }
}

/// Reads a status line.
pub fn status(stream: &mut impl BufRead) -> u16 {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}")).parse().unwrap()
}

/// Reads a response to its end.
pub fn read(mut response: Response<ureq::Body>) -> Reply {
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let content = header("content-type").unwrap_or_default();
    let content = content.split(';').next().unwrap_or_default().to_owned();
    let (status, session) = (response.status().as_u16(), header("mcp-session-id"));
    let body = response.body_mut().with_config().limit(64 << 20).read_to_string().unwrap();
    Reply { status, content, session, body }
}

/// The messages of a stream, one by one.
pub fn events(response: Response<ureq::Body>) -> impl Iterator<Item = Value> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let lines = BufReader::new(response.into_body().into_reader()).lines();
    lines
        .map_while(Result::ok)
        .filter_map(|line| line.strip_prefix("data: ").map(|data| serde_json::from_str(data).unwrap()))
}

/// A request.
pub fn request(id: impl Into<Value>, method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id.into(), "method": method, "params": params })
}

/// The handshake's request.
pub fn initialize(revision: &str, capabilities: Value) -> Value {
    let client = json!({ "name": "it", "version": "1" });
    let params = json!({ "protocolVersion": revision, "capabilities": capabilities, "clientInfo": client });
    request(0, "initialize", params)
}

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

fn bytes(head: &str, body: &str) -> Vec<u8> {
    format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

#[test]
fn other_names_and_origins_are_forbidden() {
    let site = Site::start("both");
    let post = |fields: &str| site.raw(&bytes(&format!("POST /mcp HTTP/1.1\r\n{fields}"), PING));
    assert_eq!(post("Host: localhost\r\n"), 200);
    assert_eq!(post("Host: 127.0.0.1:1\r\nOrigin: http://localhost:9\r\n"), 200);
    assert_eq!(post("Host: evil.example\r\n"), 403);
    assert_eq!(post("Host: localhost\r\nOrigin: https://evil.example\r\n"), 403);
    assert_eq!(post("Host: localhost\r\nOrigin: null\r\n"), 403);
    assert_eq!(post(""), 400);
    assert_eq!(post("Host: localhost\r\nHost: evil.example\r\n"), 400);
}

#[test]
fn what_is_no_mcp_request_is_refused_by_its_status() {
    let site = Site::start("both");
    let head = "Host: localhost\r\n";
    assert_eq!(site.raw(&bytes(&format!("POST /other HTTP/1.1\r\n{head}"), PING)), 404);
    assert_eq!(site.raw(&bytes(&format!("PUT /mcp HTTP/1.1\r\n{head}"), PING)), 405);
    assert_eq!(site.raw(&bytes(&format!("POST /mcp HTTP/1.1\r\n{head}Accept: text/html\r\n"), PING)), 406);
    let plain = format!("POST /mcp HTTP/1.1\r\n{head}Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(site.raw(plain.as_bytes()), 415);
    assert_eq!(site.raw(b"GET /mcp HTTP/1.0\r\n\r\n"), 505);
    assert_eq!(site.raw(b"\x16\x03\x01\x00\xee\x01\x00"), 400);
}

#[test]
fn a_body_that_is_too_long_is_refused_before_and_while_it_comes() {
    let site = Site::start("both");
    let head = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    assert_eq!(site.raw(format!("{head}Content-Length: 16777217\r\n\r\n").as_bytes()), 413);
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..17 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend_from_slice(&vec![b' '; 1 << 20]);
        chunked.extend_from_slice(b"\r\n");
    }
    assert_eq!(site.raw(&chunked), 413);
    // It still serves.
    assert_eq!(site.post(&request(1, "ping", json!({})), &[("Accept", BOTH)]).status, 200);
}

#[test]
fn one_connection_carries_requests_that_were_sent_at_once() {
    let site = Site::start("both");
    let one = bytes("POST /mcp HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n", PING);
    let last = bytes("POST /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", PING);
    let mut stream = site.connect();
    stream.write_all(&[&one[..], &one, &last].concat()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    assert_eq!(text.matches("HTTP/1.1 100 Continue").count(), 2, "{text}");
    assert_eq!(text.matches("\"result\":{}").count(), 3, "{text}");
}

#[test]
fn a_slow_request_holds_no_other_up() {
    let site = Site::start("both");
    let session = site.post(&initialize("2025-11-25", json!({})), &[("Accept", BOTH)]).session.unwrap();
    let headers = [("Accept", BOTH), ("Mcp-Session-Id", session.as_str())];
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let call = json!({ "name": "sleep", "arguments": { "ms": 400 } });
            site.post(&request("slow", "tools/call", call), &headers);
            Instant::now()
        });
        let call = json!({ "name": "counter" });
        let quick = site.post(&request("quick", "tools/call", call), &headers);
        let answered = Instant::now();
        assert_eq!(data(&quick.message())["count"], 1);
        assert!(answered < slow.join().unwrap());
    });
}
