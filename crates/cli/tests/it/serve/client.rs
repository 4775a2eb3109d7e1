//! A gateway that runs, and a client of it: HTTP as far as these tests need it, one connection for each request.

use crate::{
    home::Home,
    support::{is_alive, signal},
};
use casemate_mcp::http::sse::Decoder;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A machine that has first to wait for a kernel that another test fetches.
const PATIENCE: Duration = Duration::from_secs(300);

/// A gateway; it and what it started end with this value.
pub struct Serving {
    child: Child,
    address: String,
    stderr: Option<thread::JoinHandle<String>>,
}

impl Serving {
    /// Starts `casemate serve` on a free port.
    pub fn start(home: &Home, args: &[&str]) -> Self {
        let line = [&["serve", "--listen", "127.0.0.1:0", "--json"], args].concat();
        Self::spawn(home.command(&line))
    }

    /// Starts a command that serves and says where in JSON.
    pub fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let (mut said, mut stdout) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
        while !said.ends_with("\n}\n") {
            let read = stdout.read_line(&mut said).unwrap();
            assert!(read > 0, "{said}");
        }
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(said["servers"].as_array().unwrap().iter().any(|server| server["name"] == "probe"), "{said}");
        let address = said["listen"].as_str().unwrap().to_owned();
        Self { child, address, stderr: Some(stderr) }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to end; its exit code and what it wrote to standard error.
    pub fn terminate(mut self) -> (Option<i32>, String) {
        signal(self.pid(), Signal::TERM);
        let until = Instant::now() + PATIENCE;
        while is_alive(self.pid()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!is_alive(self.pid()), "it did not end");
        let code = self.child.wait().unwrap().code();
        (code, self.stderr.take().unwrap().join().unwrap())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // The second signal, so that a test that fails does not wait for what it left open.
        for _ in 0..2 {
            if matches!(self.child.try_wait(), Ok(None)) {
                signal(self.pid(), Signal::TERM);
                thread::sleep(Duration::from_millis(200));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One client of one server.
pub struct Client {
    address: String,
    server: String,
    session: Option<String>,
    next_id: u64,
}

impl Client {
    /// A client without a session.
    pub fn new(serving: &Serving, server: &str) -> Self {
        Self { address: serving.address.clone(), server: server.to_owned(), session: None, next_id: 1 }
    }

    /// A client with a session.
    pub fn begin(serving: &Serving, server: &str, capabilities: Value) -> Self {
        let mut client = Self::new(serving, server);
        let mut answer = client.initialize(capabilities);
        let hello = answer.message();
        assert_eq!(answer.status, 200, "{hello}");
        assert_eq!(hello["result"]["protocolVersion"], "2025-11-25", "{hello}");
        client.session = Some(answer.header("mcp-session-id").unwrap().to_owned());
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(client.send(&initialized).status, 202);
        client
    }

    /// Asks for a session.
    pub fn initialize(&mut self, capabilities: Value) -> Answer {
        let client = json!({"name": "test", "version": "1"});
        let params =
            json!({"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": client});
        self.ask("initialize", params)
    }

    /// Sends a request.
    pub fn ask(&mut self, method: &str, params: Value) -> Answer {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
    }

    /// Calls a tool.
    pub fn call(&mut self, tool: &str, arguments: Value) -> Answer {
        self.ask("tools/call", json!({"name": tool, "arguments": arguments}))
    }

    /// Calls a tool with metadata.
    pub fn call_with(&mut self, meta: Value, tool: &str, arguments: Value) -> Answer {
        self.ask("tools/call", json!({"name": tool, "arguments": arguments, "_meta": meta}))
    }

    /// POSTs a message.
    pub fn send(&self, message: &Value) -> Answer {
        let body = message.to_string();
        let more = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        self.exchange("POST", &more, &body)
    }

    /// Asks for the session's own stream, or for what followed an event.
    pub fn listen(&self, after: Option<&str>) -> Answer {
        let more = after.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        self.exchange("GET", &more, "")
    }

    /// Ends the session.
    pub fn end(&self) -> Answer {
        self.exchange("DELETE", "", "")
    }

    fn exchange(&self, method: &str, more: &str, body: &str) -> Answer {
        let session = self.session.as_ref().map(|id| format!("mcp-session-id: {id}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} /mcp/{} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\nmcp-protocol-version: 2025-11-25\r\n\
             accept: application/json, text/event-stream\r\n{session}{more}\r\n{body}",
            self.server, self.address
        );
        Answer::to(&self.address, head.as_bytes())
    }
}

/// An answer, whose body is read as it is asked for.
pub struct Answer {
    /// Its status.
    pub status: u16,
    fields: BTreeMap<String, String>,
    stream: BufReader<TcpStream>,
    events: Decoder,
}

impl Answer {
    /// Sends bytes on a connection of their own and reads the head of the answer.
    pub fn to(address: &str, request: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request).unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let status = line();
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("{status:?}")).parse().unwrap();
        let mut fields = BTreeMap::new();
        while let Some((name, value)) = line().split_once(": ") {
            fields.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        Self { status, fields, stream, events: Decoder::new(16 << 20) }
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// The only message of the answer, whatever its form.
    pub fn whole(mut self) -> Value {
        self.message()
    }

    /// The next message.
    pub fn message(&mut self) -> Value {
        if let Some(length) = self.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            self.stream.read_exact(&mut body).unwrap();
            return serde_json::from_slice(&body).unwrap();
        }
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        loop {
            match self.events.next_event() {
                Some(event) if event.data.is_empty() => {}
                Some(event) => return serde_json::from_slice(&event.data).unwrap(),
                None => {
                    let chunk = self.chunk();
                    assert!(!chunk.is_empty(), "the stream ended");
                    self.events.push(&chunk).unwrap();
                }
            }
        }
    }

    /// The next piece of a body that comes in pieces (RFC 9112, 7.1).
    fn chunk(&mut self) -> Vec<u8> {
        let mut size = String::new();
        self.stream.read_line(&mut size).unwrap();
        let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).unwrap_or_default() + 2];
        self.stream.read_exact(&mut chunk).unwrap();
        chunk.truncate(chunk.len() - 2);
        chunk
    }
}
