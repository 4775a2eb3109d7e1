//! A JSON-RPC client over the stdin and stdout of a child process, for tests: every wait is bounded, and the
//! child does not outlive the client.

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a client waits unless told otherwise: generous, because tests share slow machines.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How much of a child's stderr is kept.
const STDERR_BYTES: usize = 1 << 20;

/// Why a conversation with a child failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The child could not be started.
    #[error("start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its stdin was closed.
    #[error("write to the child")]
    Write(#[source] io::Error),
    /// Its stdout ended.
    #[error("the child closed its stdout; stderr: {stderr:?}")]
    Closed {
        /// What it wrote to stderr.
        stderr: String,
    },
    /// Nothing came in time.
    #[error("the child said nothing for {waited:?}; stderr: {stderr:?}")]
    Silent {
        /// How long was waited.
        waited: Duration,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// A line was no JSON.
    #[error("the child said {0:?}, which is no JSON")]
    Garbage(String),
    /// It still ran.
    #[error("the child still runs after {0:?}")]
    Runs(Duration),
    /// Its status could not be read.
    #[error("wait for the child")]
    Wait(#[source] io::Error),
}

/// A child process that is spoken to line by line; killed and reaped on drop.
#[derive(Debug)]
pub struct LineClient {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Vec<u8>>,
    /// Messages that came while another one was waited for.
    kept: VecDeque<Value>,
    stderr: Arc<Mutex<Vec<u8>>>,
    next_id: u64,
    /// How long `recv` and `request` wait.
    patience: Duration,
}

impl LineClient {
    /// Starts `command` with its three streams connected to this client.
    pub fn spawn(command: &mut Command) -> Result<Self, ClientError> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(
                |source| {
                    let program = command.get_program().to_string_lossy().into_owned();
                    ClientError::Start { program, source }
                },
            )?;
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                let mut stdout = BufReader::new(stdout);
                loop {
                    let mut line = Vec::new();
                    match stdout.read_until(b'\n', &mut line) {
                        Ok(read) if read > 0 && sender.send(line).is_ok() => {}
                        _ => return,
                    }
                }
            });
        }
        let stderr = Arc::new(Mutex::new(Vec::new()));
        if let Some(mut from) = child.stderr.take() {
            let to = stderr.clone();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = from.read(&mut buffer) {
                    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                    let room = STDERR_BYTES.saturating_sub(to.len());
                    to.extend_from_slice(&buffer[..read.min(room)]);
                }
            });
        }
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, lines, kept: VecDeque::new(), stderr, next_id: 1, patience: PATIENCE })
    }

    /// The same client with another patience.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The child's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        let stdin = self.stdin.as_mut().ok_or_else(closed).map_err(ClientError::Write)?;
        stdin.write_all(bytes).and_then(|()| stdin.flush()).map_err(ClientError::Write)
    }

    /// Writes one message.
    pub fn send(&mut self, message: &Value) -> Result<(), ClientError> {
        self.send_bytes(format!("{message}\n").as_bytes())
    }

    /// Sends a notification.
    pub fn notify(&mut self, method: &str, params: Value) -> Result<(), ClientError> {
        self.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params }))
    }

    /// Sends a request and gives its id.
    pub fn start(&mut self, method: &str, params: Value) -> Result<u64, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))?;
        Ok(id)
    }

    /// Sends a request and waits for its answer: the whole message, result or error.
    pub fn request(&mut self, method: &str, params: Value) -> Result<Value, ClientError> {
        let id = self.start(method, params)?;
        self.answer(id)
    }

    /// Waits for the answer to the request `id`. Other messages are kept for [`recv`](Self::recv).
    pub fn answer(&mut self, id: u64) -> Result<Value, ClientError> {
        self.recv_where(|message| message["id"] == id && message.get("method").is_none())
    }

    /// Calls a tool and waits for the answer, in the legacy era.
    pub fn call(&mut self, tool: &str, arguments: Value) -> Result<Value, ClientError> {
        self.request("tools/call", json!({ "name": tool, "arguments": arguments }))
    }

    /// The handshake of the legacy era; gives the answer to `initialize`.
    pub fn initialize(&mut self, version: &str, capabilities: Value) -> Result<Value, ClientError> {
        let params = json!({
            "protocolVersion": version,
            "capabilities": capabilities,
            "clientInfo": { "name": "casemate-testkit", "version": env!("CARGO_PKG_VERSION") },
        });
        let answer = self.request("initialize", params)?;
        if answer.get("result").is_some() {
            self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))?;
        }
        Ok(answer)
    }

    /// The next message: the oldest kept one, else one from the child.
    pub fn recv(&mut self) -> Result<Value, ClientError> {
        self.recv_where(|_| true)
    }

    /// The next message that `wanted` accepts; others are kept.
    pub fn recv_where(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value, ClientError> {
        if let Some(place) = self.kept.iter().position(&wanted)
            && let Some(message) = self.kept.remove(place)
        {
            return Ok(message);
        }
        let deadline = Instant::now() + self.patience;
        loop {
            let line = self.line_until(deadline)?;
            let message: Value = serde_json::from_slice(&line)
                .map_err(|_| ClientError::Garbage(String::from_utf8_lossy(&line).into_owned()))?;
            if wanted(&message) {
                return Ok(message);
            }
            self.kept.push_back(message);
        }
    }

    /// The next line as it came, with its newline.
    pub fn line(&mut self) -> Result<Vec<u8>, ClientError> {
        self.line_until(Instant::now() + self.patience)
    }

    fn line_until(&mut self, deadline: Instant) -> Result<Vec<u8>, ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => ClientError::Silent { waited: self.patience, stderr: self.stderr() },
            RecvTimeoutError::Disconnected => ClientError::Closed { stderr: self.stderr() },
        })
    }

    /// Closes the child's stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until the child has ended.
    pub fn wait(&mut self) -> Result<ExitStatus, ClientError> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(status) = self.child.try_wait().map_err(ClientError::Wait)? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(ClientError::Runs(self.patience));
            }
            // The standard library cannot wait for a child with a timeout.
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the child has written to stderr so far, at most 1 MiB.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Drop for LineClient {
    fn drop(&mut self) {
        self.stdin = None;
        // Both fail only if the child was reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Adds to `params` the metadata that every request of the modern era carries.
pub fn modern_meta(mut params: Value, capabilities: Value) -> Value {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": capabilities,
        "io.modelcontextprotocol/clientInfo": {
            "name": "casemate-testkit",
            "version": env!("CARGO_PKG_VERSION"),
        },
    });
    match (params["_meta"].as_object_mut(), meta) {
        (Some(given), Value::Object(meta)) => given.extend(meta),
        (_, meta) => params["_meta"] = meta,
    }
    params
}
