//! The other end of a conversation, led by a test line by line.

use std::io;
use std::time::Duration;

use casemate_mcp::client::{OpenError, RequestError};
use casemate_mcp::{Answer, Conversation, Era, Options};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};

/// Long enough for a machine under load; no test waits for it unless something hangs.
pub const LONG: Duration = Duration::from_secs(60);

/// For what is expected not to happen in time.
pub const SHORT: Duration = Duration::from_millis(50);

/// How many bytes a pipe holds.
const PIPE: usize = 64 << 10;

pub struct Peer {
    input: BufReader<DuplexStream>,
    output: DuplexStream,
}

impl Peer {
    /// A peer, and the client's ends of its output and input.
    pub fn new() -> (Self, DuplexStream, DuplexStream) {
        let (output, reader) = tokio::io::duplex(PIPE);
        let (writer, input) = tokio::io::duplex(PIPE);
        (Self { input: BufReader::new(input), output }, reader, writer)
    }

    /// The next line of the client; `None` at its end.
    pub async fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = tokio::time::timeout(LONG, self.input.read_line(&mut line)).await;
        match read.expect("the client says something").unwrap() {
            0 => None,
            _ => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    /// The next line, which is a request or notification of this method.
    pub async fn expect(&mut self, method: &str) -> Value {
        let message = self.hear().await.expect("the client is there");
        assert_eq!(message["method"], method, "{message}");
        message
    }

    pub async fn say(&mut self, line: impl AsRef<str>) {
        self.try_say(line.as_ref().as_bytes()).await.unwrap();
        self.try_say(b"\n").await.unwrap();
    }

    pub async fn try_say(&mut self, bytes: &[u8]) -> io::Result<()> {
        tokio::time::timeout(LONG, self.output.write_all(bytes)).await.expect("the client reads")
    }

    pub async fn answer(&mut self, request: &Value, result: Value) {
        self.say(response(&request["id"], result)).await;
    }

    pub async fn refuse(&mut self, request: &Value, code: i32) {
        let error = json!({"code": code, "message": "no"});
        self.say(json!({"jsonrpc": "2.0", "id": request["id"], "error": error}).to_string()).await;
    }

    /// The server's part of a legacy negotiation.
    pub async fn initialize(&mut self) {
        let request = self.expect("initialize").await;
        self.answer(&request, initialize_result("2025-11-25")).await;
        self.expect("notifications/initialized").await;
    }

    /// Closes the output, as an exit does.
    pub fn close_output(self) -> BufReader<DuplexStream> {
        self.input
    }

    /// Closes the input and lives on.
    pub fn close_input(self) -> DuplexStream {
        self.output
    }

    /// Reads what is left until the client closes.
    pub async fn drain(mut self) -> String {
        let mut rest = String::new();
        let read = tokio::time::timeout(LONG, self.input.read_to_string(&mut rest)).await;
        read.expect("the client closes").unwrap();
        rest
    }
}

pub fn response(id: &Value, result: Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string()
}

pub fn initialize_result(version: &str) -> Value {
    json!({"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "peer", "version": "1"}})
}

pub fn discover_result() -> Value {
    json!({
        "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {},
        "ttlMs": 0, "cacheScope": "private",
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "peer", "version": "2"}},
    })
}

pub fn options() -> Options {
    let mut options = Options::new("test", "0");
    options.negotiate_timeout = LONG;
    options
}

/// A conversation with a legacy server.
pub async fn legacy(options: Options) -> (Conversation, Peer) {
    let (mut peer, reader, writer) = Peer::new();
    let (conversation, ()) = tokio::join!(Conversation::open(reader, writer, options), peer.initialize());
    (conversation.unwrap(), peer)
}

/// A conversation with a server that only knows the modern era.
pub async fn modern() -> (Conversation, Peer) {
    let (mut peer, reader, writer) = Peer::new();
    let serve = async {
        let request = peer.expect("initialize").await;
        peer.refuse(&request, -32601).await;
        let request = peer.expect("server/discover").await;
        peer.answer(&request, discover_result()).await;
    };
    let (conversation, ()) = tokio::join!(Conversation::open(reader, writer, options()), serve);
    (conversation.unwrap(), peer)
}

pub async fn open_with<F>(options: Options, serve: impl FnOnce(Peer) -> F) -> Result<Conversation, OpenError>
where
    F: Future<Output = Peer>,
{
    let (peer, reader, writer) = Peer::new();
    let (conversation, _peer) = tokio::join!(Conversation::open(reader, writer, options), serve(peer));
    conversation
}

pub fn params(value: Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).unwrap()
}

pub fn result(answer: Result<Answer, RequestError>) -> Value {
    match answer.unwrap() {
        Answer::Result(result) => serde_json::from_str(result.get()).unwrap(),
        Answer::Error(error) => panic!("refused: {error}"),
    }
}

/// The text that a tool answers with.
pub async fn call(conversation: &Conversation, tool: &str, arguments: Value) -> String {
    let given = params(json!({"name": tool, "arguments": arguments}));
    let result = result(conversation.request("tools/call", Some(&given), LONG).await);
    result["content"][0]["text"].as_str().unwrap().to_owned()
}

/// What the probe's echo says.
pub async fn echo(conversation: &Conversation, message: &str) -> String {
    let reply = call(conversation, "echo", json!({"message": message})).await;
    let reply: Value = serde_json::from_str(&reply).unwrap();
    reply["message"].as_str().unwrap().to_owned()
}

pub const LEGACY: Era = Era::Legacy { version: "2025-11-25" };
pub const MODERN: Era = Era::Modern { version: "2026-07-28" };

/// What probes are told to speak, what a client tries, and what they find.
pub fn eras() -> [(&'static str, Options, Era); 5] {
    let mut modern_first = options();
    modern_first.era = Some(MODERN);
    [
        ("legacy", options(), LEGACY),
        ("legacy", modern_first.clone(), LEGACY),
        ("modern", options(), MODERN),
        ("both", options(), LEGACY),
        ("both", modern_first, MODERN),
    ]
}

/// It is of this era, and answers.
pub async fn assert_speaks(conversation: &Conversation, era: Era) {
    assert_eq!(conversation.era(), era);
    conversation.ping(LONG).await.unwrap();
    let tools = result(conversation.request("tools/list", None, LONG).await);
    assert!(tools["tools"].as_array().unwrap().iter().any(|tool| tool["name"] == "echo"));
    assert_eq!(echo(conversation, "é\n\"{").await, "é\n\"{");
}

/// Two hundred calls that are open together.
pub async fn each_call_gets_its_own_answer(conversation: &Conversation) {
    let calls: Vec<_> = (0..200)
        .map(|n| {
            let conversation = conversation.clone();
            tokio::spawn(async move { (n, echo(&conversation, &n.to_string()).await) })
        })
        .collect();
    for call in calls {
        let (n, answer) = call.await.unwrap();
        assert_eq!(answer, n.to_string());
    }
    assert_eq!(conversation.counters().dropped_answers(), 0);
}
