//! What the tests of the gateway share: servers in this process, and a client over an in-memory connection.
//!
//! Time stands still until everything waits for it, so nothing here depends on how fast a host is.

use crate::{Backend, Gateway, Guard, Limits, Machine, OpenError, connection};
use casemate_machine::ConversationEnd;
use casemate_mcp::{
    Envelope, compose,
    framing::{Incoming as Line, MessageReader, write_message},
    http::sse::Decoder,
    object,
};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
    sync::watch,
    task::{LocalSet, spawn_local},
    time::sleep,
};

pub const EITHER: &str = "application/json, text/event-stream";
pub const LATEST: &str = "2025-11-25";

/// Runs a test with time that passes only when everything waits.
pub fn local<T>(test: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// What the tests see of the servers, and how they behave.
#[derive(Default)]
pub struct Servers {
    /// How many were started.
    pub started: Cell<usize>,
    /// How many were stopped.
    pub stopped: Cell<usize>,
    /// What they read, line by line.
    pub heard: RefCell<Vec<String>>,
    /// How long it takes to get what server `b` needs.
    pub planning: Cell<Duration>,
    /// How many sessions of it do that now, and did at most.
    pub planners: Cell<(usize, usize)>,
    /// How long a start takes.
    pub delay: Cell<Duration>,
    /// Why none can be started.
    pub refusal: RefCell<Option<OpenError>>,
    /// What is known of a server that broke off.
    pub end: RefCell<Option<ConversationEnd>>,
    /// What was noted.
    pub notes: RefCell<Vec<String>>,
}

/// The backend of a test.
#[derive(Clone)]
pub struct Fake(pub Rc<Servers>);

pub struct FakeMachine {
    servers: Rc<Servers>,
    stream: Option<DuplexStream>,
}

impl Backend for Fake {
    type Plan = String;
    type Machine = FakeMachine;

    fn knows(&self, server: &str) -> bool {
        matches!(server, "a" | "b")
    }

    async fn plan(&self, server: &str) -> Result<String, OpenError> {
        if server == "b" {
            let (now, most) = self.0.planners.get();
            self.0.planners.set((now + 1, most.max(now + 1)));
            sleep(self.0.planning.get()).await;
            let (now, most) = self.0.planners.get();
            self.0.planners.set((now - 1, most));
        }
        Ok(server.to_owned())
    }

    async fn open(&self, server: String) -> Result<FakeMachine, OpenError> {
        sleep(self.0.delay.get()).await;
        if let Some(refusal) = self.0.refusal.borrow().clone() {
            return Err(refusal);
        }
        let (near, far) = duplex(1 << 16);
        self.0.started.set(self.0.started.get() + 1);
        let number = self.0.started.get();
        spawn_local(serve(Rc::clone(&self.0), far, format!("{server}{number}")));
        Ok(FakeMachine { servers: Rc::clone(&self.0), stream: Some(near) })
    }

    fn note(&self, sentence: &str) {
        self.0.notes.borrow_mut().push(sentence.to_owned());
    }
}

impl Machine for FakeMachine {
    type Stream = DuplexStream;

    async fn connect(&mut self) -> Result<DuplexStream, OpenError> {
        self.stream.take().ok_or_else(|| OpenError::Failed("asked twice".to_owned()))
    }

    async fn end(&mut self) -> Option<ConversationEnd> {
        self.servers.end.borrow().clone()
    }

    async fn stop(self) {
        self.servers.stopped.set(self.servers.stopped.get() + 1);
    }
}

/// A server whose methods are what the tests need. It answers in the order in which it is asked.
async fn serve(servers: Rc<Servers>, stream: DuplexStream, name: String) {
    let (from, mut to) = split(stream);
    let mut reader = MessageReader::new(from);
    let mut asked: Option<String> = None;
    while let Ok(Some(Line::Message(message))) = reader.next().await {
        servers.heard.borrow_mut().push(message.text().to_owned());
        let id = message.raw_id().unwrap_or("null").to_owned();
        let (method, params) = match message.envelope() {
            Envelope::Request { method, params, .. } | Envelope::Notification { method, params } => {
                (method, params.unwrap_or("{}"))
            }
            Envelope::Response { result, .. } => {
                if let Some(asked) = asked.take() {
                    write_message(&mut to, &compose::response(&asked, result)).await.unwrap();
                }
                continue;
            }
            Envelope::Error { .. } => continue,
        };
        let values: Value = serde_json::from_str(params).unwrap_or_default();
        let mut lines = Vec::new();
        match method {
            "initialize" if values["die"] == true => return,
            "initialize" if values["hang"] == true => {}
            "initialize" => {
                let result = json!({ "protocolVersion": values["protocolVersion"], "capabilities": {},
                    "serverInfo": { "name": name, "version": "1" } });
                lines.push(match values["fail"].is_null() {
                    true => compose::response(&id, &result.to_string()),
                    false => compose::error(&id, -32602, "not like this"),
                });
            }
            "echo" => lines.push(compose::response(&id, params)),
            "who" => lines.push(compose::response(&id, &json!({ "name": name, "id": id }).to_string())),
            "hang" => {}
            // What it says is part of the question: one line of each, then the answer.
            "say" => {
                lines.extend(values["lines"].as_array().unwrap().iter().map(|line| match line {
                    Value::String(raw) => raw.clone(),
                    line => line.to_string(),
                }));
                if values["silent"].is_null() {
                    lines.push(compose::response(&id, "{}"));
                }
            }
            "progress" => {
                let [meta] = object::find(params, ["_meta"]).unwrap();
                let [token] = object::find(meta.unwrap().get(), ["progressToken"]).unwrap();
                for step in 1..=values["steps"].as_u64().unwrap() {
                    let params = format!(r#"{{"progressToken":{},"progress":{step}}}"#, token.unwrap().get());
                    lines.push(compose::notification("notifications/progress", Some(&params)));
                }
                if values["silent"].is_null() {
                    lines.push(compose::response(&id, "{}"));
                }
            }
            "ask" => {
                asked = Some(id);
                lines.push(r#"{"jsonrpc":"2.0","id":"q1","method":"elicitation/create","params":{}}"#.into());
            }
            "sleep" => {
                sleep(Duration::from_millis(values["ms"].as_u64().unwrap())).await;
                lines.push(compose::response(&id, "{}"));
            }
            "die" => return,
            "chatter" => loop {
                write_message(&mut to, &compose::notification("notifications/tools/list_changed", None))
                    .await
                    .unwrap();
                sleep(Duration::from_secs(600)).await;
            },
            "deaf" => std::future::pending().await,
            _ => {}
        }
        for line in lines {
            if write_message(&mut to, &line).await.is_err() {
                return;
            }
        }
    }
}

/// A gateway of a test, with its servers.
pub struct World {
    pub gateway: Rc<Gateway<Fake>>,
    pub servers: Rc<Servers>,
    closing: watch::Sender<bool>,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl World {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let servers = Rc::new(Servers::default());
        let origins = ["https://app.example".to_owned()];
        let guard = Guard::new("127.0.0.1".parse().unwrap(), &[], &origins);
        let gateway = Gateway::new(Fake(Rc::clone(&servers)), guard, limits);
        Self { gateway, servers, closing: watch::channel(false).0 }
    }

    /// How many machines live.
    pub fn live(&self) -> usize {
        self.servers.started.get() - self.servers.stopped.get()
    }

    /// A connection, byte for byte.
    pub fn connect(&self) -> DuplexStream {
        let (near, far) = duplex(1 << 16);
        spawn_local(connection::serve(Rc::clone(&self.gateway), far, self.closing.subscribe()));
        near
    }

    /// What comes back for these bytes, until the gateway closes the connection.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut connection = self.connect();
        // A gateway that has seen enough reads no further.
        let _ = connection.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends a request on a connection of its own; dropping the response closes that.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> hyper::Response<Incoming> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect())).await.unwrap();
        spawn_local(connection);
        bounded(sender.send_request(request)).await.unwrap()
    }

    pub async fn ask(&self, request: Request<Full<Bytes>>) -> Answer {
        read(self.send(request).await).await
    }

    /// POSTs to server `a`.
    pub async fn post(&self, session: Option<&str>, body: &str) -> Answer {
        self.ask(post(session, body)).await
    }

    /// Begins a session with server `a`.
    pub async fn begin(&self) -> String {
        self.begin_with("a", LATEST).await
    }

    pub async fn begin_with(&self, server: &str, version: &str) -> String {
        let mut request = post(None, &initialize(version));
        *request.uri_mut() = format!("/mcp/{server}").parse().unwrap();
        let answer = self.ask(request).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.headers["mcp-session-id"].to_str().unwrap().to_owned()
    }
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }

    /// Status and JSON-RPC code.
    pub fn refused(&self) -> (u16, i64) {
        (self.status.as_u16(), self.json()["error"]["code"].as_i64().unwrap_or_default())
    }

    /// The messages of a stream.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), "text/event-stream");
        events(&self.body)
    }
}

/// The messages of a stream, but for those without data.
pub fn events(text: &str) -> Vec<Value> {
    let mut decoder = Decoder::new(64 << 20);
    decoder.push(text.as_bytes()).unwrap();
    let events = std::iter::from_fn(|| decoder.next_event()).filter(|event| !event.data.is_empty());
    events.map(|event| serde_json::from_slice(&event.data).unwrap()).collect()
}

pub fn initialize(version: &str) -> String {
    request(
        0,
        "initialize",
        json!({ "protocolVersion": version, "capabilities": {},
        "clientInfo": { "name": "test", "version": "1" } }),
    )
}

pub fn request(id: impl Into<Value>, method: &str, params: Value) -> String {
    json!({ "jsonrpc": "2.0", "id": id.into(), "method": method, "params": params }).to_string()
}

pub fn post(session: Option<&str>, body: &str) -> Request<Full<Bytes>> {
    let request = Request::post("/mcp/a").header("host", "localhost").header("accept", EITHER);
    let request = request.header("content-type", "application/json");
    with(request, session, body)
}

pub fn get(session: &str, after: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = Request::get("/mcp/a").header("host", "localhost").header("accept", EITHER);
    if let Some(after) = after {
        request = request.header("last-event-id", after);
    }
    with(request, Some(session), "")
}

pub fn delete(session: &str) -> Request<Full<Bytes>> {
    with(Request::delete("/mcp/a").header("host", "localhost"), Some(session), "")
}

fn with(request: hyper::http::request::Builder, session: Option<&str>, body: &str) -> Request<Full<Bytes>> {
    let request = match session {
        Some(session) => request.header("mcp-session-id", session),
        None => request,
    };
    request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
}

pub async fn read(response: hyper::Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let body = bounded(body.collect()).await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Answer { status: head.status, headers: head.headers, body }
}

/// What never comes fails a test: where time passes at once, a stream that is kept alive would fill the memory.
async fn bounded<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(3600), wait).await.expect("an answer within an hour")
}

/// The next piece of a stream; `None` at its end, and after a minute.
pub async fn piece(response: &mut hyper::Response<Incoming>) -> Option<String> {
    let frame = tokio::time::timeout(Duration::from_secs(60), response.body_mut().frame()).await.ok()??;
    Some(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
}

/// The next message of a stream; `None` at its end, and where none comes in two minutes.
pub async fn next(response: &mut hyper::Response<Incoming>) -> Option<Value> {
    let next = async {
        loop {
            if let Some(message) = events(&piece(response).await?).pop() {
                return Some(message);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), next).await.ok()?
}
