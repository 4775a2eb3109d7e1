//! A server that a test plays request by request, and the ways to servers on this host.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use casemate_mcp::http::{End, Endpoint, Purpose, Reach, bridge};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::timeout;

use crate::peer::LONG;

/// How many bytes a pipe holds.
const PIPE: usize = 64 << 10;

/// What the system holds of a connection that nobody reads, in each direction.
const BUFFER: u32 = 64 << 10;

/// The way to a server on this host.
#[derive(Clone)]
pub struct Tcp {
    address: SocketAddr,
    /// Sentences for the log.
    pub notes: Rc<RefCell<Vec<String>>>,
    /// Whether the server has ended.
    pub over: Rc<Cell<bool>>,
    /// How many connections were made.
    pub connections: Rc<Cell<usize>>,
    /// How many messages are on their way.
    pub busy: Rc<Cell<usize>>,
    /// How many connections are refused next, for want of room.
    pub full: Rc<Cell<usize>>,
}

/// A message that is on its way.
pub struct Busy(Rc<Cell<usize>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Tcp {
    pub fn to(address: SocketAddr) -> Self {
        Self {
            address,
            notes: Rc::default(),
            over: Rc::default(),
            connections: Rc::default(),
            busy: Rc::default(),
            full: Rc::default(),
        }
    }

    pub fn noted(&self, part: &str) -> bool {
        self.notes.borrow().iter().any(|note| note.contains(part))
    }
}

impl Reach for Tcp {
    type Stream = TcpStream;
    type Busy = Busy;

    async fn connect(&self, _purpose: Purpose) -> io::Result<TcpStream> {
        if let Some(left) = self.full.get().checked_sub(1) {
            self.full.set(left);
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.connections.set(self.connections.get() + 1);
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.connect(self.address).await
    }

    fn busy(&self) -> Busy {
        self.busy.set(self.busy.get() + 1);
        Busy(self.busy.clone())
    }

    async fn is_over(&self) -> bool {
        self.over.get()
    }

    fn note(&self, sentence: &str) {
        self.notes.borrow_mut().push(sentence.to_owned());
    }
}

/// Runs what needs one thread.
pub fn in_one_thread<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(2 * LONG, what).await.expect("it hangs") })
}

/// A bridge to a server, and the client's end of it.
pub fn bridged(reach: &Tcp) -> (DuplexStream, JoinHandle<End>) {
    let (near, far) = duplex(PIPE);
    let endpoint = Endpoint::new(reach.address.port(), "/mcp").unwrap();
    (near, spawn_local(bridge(reach.clone(), endpoint, far)))
}

/// A client that writes and reads lines.
pub struct Client {
    stream: BufReader<DuplexStream>,
    pub bridge: JoinHandle<End>,
}

impl Client {
    pub fn of(reach: &Tcp) -> Self {
        let (near, bridge) = bridged(reach);
        Self { stream: BufReader::new(near), bridge }
    }

    pub async fn say(&mut self, message: &Value) {
        self.write(&format!("{message}\n")).await;
    }

    pub async fn write(&mut self, text: &str) {
        timeout(LONG, self.stream.get_mut().write_all(text.as_bytes())).await.unwrap().unwrap();
    }

    /// The next message; nothing at the end.
    pub async fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = timeout(LONG, self.stream.read_line(&mut line)).await.expect("a message").unwrap();
        (read > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    /// Says no more; the server's last words and how it ended.
    pub async fn finish(mut self) -> (Vec<Value>, End) {
        self.stream.get_mut().shutdown().await.unwrap();
        let mut rest = Vec::new();
        while let Some(message) = self.hear().await {
            rest.push(message);
        }
        (rest, self.bridge.await.unwrap())
    }

    /// The end that comes by itself.
    pub async fn end(mut self) -> End {
        while self.hear().await.is_some() {}
        self.bridge.await.unwrap()
    }
}

/// A server that listens.
pub struct Fake(TcpListener);

/// A request that is still to be answered.
pub struct Heard {
    /// The request line and the headers, in lower case but for values.
    pub head: Vec<String>,
    /// The body; null if there is none.
    pub body: Value,
    stream: BufReader<TcpStream>,
}

impl Fake {
    pub async fn new() -> (Self, Tcp) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(BUFFER).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        (Self(listener), Tcp::to(address))
    }

    /// The first request of the next connection.
    pub async fn hear(&self) -> Heard {
        let (stream, _) = timeout(LONG, self.0.accept()).await.expect("a connection").unwrap();
        Heard::read(BufReader::new(stream)).await.expect("a request")
    }

    /// The requests that come until nobody does for a while.
    pub async fn hear_all(&self, pause: Duration) -> Vec<Heard> {
        let mut all = Vec::new();
        while let Ok(accepted) = timeout(pause, self.0.accept()).await {
            all.push(Heard::read(BufReader::new(accepted.unwrap().0)).await.expect("a request"));
        }
        all
    }

    /// Whether nobody comes for a while.
    pub async fn is_left_alone(&self, pause: Duration) -> bool {
        timeout(pause, self.0.accept()).await.is_err()
    }

    /// A legacy session in which nothing was asked yet; there is no stream of its own but where `listens`.
    pub async fn begin(&self, client: &mut Client, session: &str) {
        client.say(&initialize()).await;
        let heard = self.hear().await;
        assert_eq!(heard.header("mcp-session-id"), None);
        let result = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "f", "version": "1"}});
        let id = heard.body["id"].clone();
        heard
            .json(200, &[("Mcp-Session-Id", session)], &json!({"jsonrpc": "2.0", "id": id, "result": result}))
            .await;
        assert_eq!(client.hear().await.unwrap()["result"]["protocolVersion"], "2025-06-18");
    }
}

/// The first message of a legacy client.
pub fn initialize() -> Value {
    let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}});
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
}

pub fn request(id: impl Into<Value>, method: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": method})
}

pub fn result(id: impl Into<Value>) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "result": {}})
}

pub fn notification(method: &str) -> Value {
    json!({"jsonrpc": "2.0", "method": method})
}

impl Heard {
    async fn read(mut stream: BufReader<TcpStream>) -> Option<Self> {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            timeout(LONG, stream.read_line(&mut line))
                .await
                .expect("a line")
                .ok()
                .filter(|&read| read > 0)?;
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let mut heard = Self { head, body: Value::Null, stream };
        let length = heard.header("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        heard.stream.read_exact(&mut body).await.unwrap();
        if !body.is_empty() {
            heard.body = serde_json::from_slice(&body).unwrap();
        }
        Some(heard)
    }

    pub fn line(&self) -> &str {
        &self.head[0]
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head[1..].iter().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// Answers with a message, and closes.
    pub async fn json(self, status: u16, headers: &[(&str, &str)], message: &Value) {
        let body = message.to_string();
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        self.raw(&format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
        .await;
    }

    /// Answers with a status alone, and closes.
    pub async fn status(self, status: u16) {
        self.raw(&format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")).await;
    }

    /// Answers with these bytes, and closes.
    pub async fn raw(mut self, bytes: &str) {
        // A client that has seen enough may be gone.
        let _ = self.stream.get_mut().write_all(bytes.as_bytes()).await;
        let _ = self.stream.get_mut().shutdown().await;
    }

    /// Answers with these bytes on a connection that goes on, and waits for the next request on it.
    pub async fn raw_and_next(mut self, bytes: &str) -> Option<Self> {
        self.stream.get_mut().write_all(bytes.as_bytes()).await.unwrap();
        Self::read(self.stream).await
    }

    /// Answers with a stream of events, which ends when it is dropped.
    pub async fn stream(mut self) -> Events {
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n";
        self.stream.get_mut().write_all(head.as_bytes()).await.unwrap();
        Events(self.stream)
    }
}

/// A stream of events.
pub struct Events(BufReader<TcpStream>);

impl Events {
    pub async fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    pub async fn message(&mut self, message: &Value) {
        self.send(&format!("event: message\ndata: {message}\n\n")).await;
    }

    /// Whether the client closes the connection within a while.
    pub async fn is_closed(&mut self, pause: Duration) -> bool {
        timeout(pause, self.0.read(&mut [0])).await.is_ok()
    }

    /// Waits until the client closes the connection.
    pub async fn closed(mut self) {
        let read = timeout(LONG, self.0.read(&mut [0])).await.expect("the end");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
}
