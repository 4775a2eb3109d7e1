//! The tools: their table, their schemas, and the way from `tools/call` to a result.
//!
//! A tool states its arguments once, as data; the JSON Schema that clients see and the check of what they
//! send are both made from that.

mod answers;
mod arguments;
mod client;
mod fetch;
mod files;
mod load;
mod network;
mod time;

pub use answers::{fill_random, hex};
pub use arguments::Arguments;
pub use fetch::call_home;

use crate::call::Call;
use crate::revision::Revision;
use crate::rpc::{ErrorKind, RpcError};
use arguments::Argument;
use serde_json::{Map, Value, json};

/// One tool.
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// Whether it may take a while, and so gets a thread of its own.
    pub slow: bool,
    title: &'static str,
    description: &'static str,
    arguments: &'static [Argument],
    hints: Hints,
    run: fn(&Call, &Arguments) -> Result<Reply, Failure>,
}

/// What a client may assume about a tool (`ToolAnnotations`).
struct Hints {
    read_only: bool,
    destructive: bool,
    idempotent: bool,
    open_world: bool,
}

/// Looks, and sees the same each time.
const LOOKS: Hints = Hints { read_only: true, destructive: false, idempotent: true, open_world: false };
/// Changes nothing, but differs from call to call.
const VARIES: Hints = Hints { idempotent: false, ..LOOKS };
/// Changes something that can be undone.
const CHANGES: Hints = Hints { read_only: false, ..VARIES };
/// Breaks something.
const BREAKS: Hints = Hints { destructive: true, ..CHANGES };

/// What a tool gives back.
pub enum Reply {
    /// Data, shown as pretty-printed JSON.
    Json(Value),
    /// Plain text.
    Text(String),
    /// A result of another type than `complete`.
    Raw(Value),
}

/// Why a tool gives nothing back.
pub enum Failure {
    /// It could not be done: a result with `isError`.
    Tool(String),
    /// The request is wrong in a way that the protocol names.
    Protocol(RpcError),
    /// The client no longer wants it.
    Cancelled,
}

impl Failure {
    /// A failed operation of the system, named as operation and object.
    fn system(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Tool(format!("{what}: {error}"))
    }
}

/// Why `tools/call` was refused before the tool ran.
pub enum Refused {
    /// As a JSON-RPC error.
    Protocol(RpcError),
    /// As a result with `isError`, so that a model can correct itself.
    Arguments(String),
}

/// Every tool, in the order in which they are listed.
pub static ALL: &[Tool] = &[
    answers::ECHO,
    answers::ADD,
    answers::GET_SERVER_INFO,
    answers::ENV,
    answers::WHOAMI,
    files::READ_FILE,
    files::WRITE_FILE,
    time::SLEEP,
    answers::RANDOM,
    network::CONNECT,
    fetch::EXCHANGE,
    fetch::FETCH,
    load::CRASH,
    load::EXIT,
    load::ALLOCATE,
    load::FORK_BOMB,
    answers::LOG_TO_STDOUT,
    answers::LOG_TO_STDERR,
    answers::BIG_REPLY,
    client::ASK_CLIENT,
    client::ANNOUNCE,
    answers::COUNTER,
];

impl Tool {
    /// The tool as `tools/list` shows it; fields that `revision` does not know are left out.
    pub fn definition(&self, revision: Revision) -> Value {
        let mut tool = json!({
            "name": self.name,
            "description": self.description,
            "inputSchema": arguments::schema(self.arguments),
        });
        if revision >= Revision::V2025_03_26 {
            tool["annotations"] = json!({
                "readOnlyHint": self.hints.read_only,
                "destructiveHint": self.hints.destructive,
                "idempotentHint": self.hints.idempotent,
                "openWorldHint": self.hints.open_world,
            });
        }
        if revision >= Revision::V2025_06_18 {
            tool["title"] = self.title.into();
        }
        tool
    }
}

/// Finds the tool that `params` names and checks its arguments.
pub fn prepare(params: &Map<String, Value>) -> Result<(&'static Tool, Arguments), Refused> {
    let wrong = |message: String| Refused::Protocol(RpcError::new(ErrorKind::InvalidParams, message));
    let name = params
        .get("name")
        .and_then(Value::as_str)
        .ok_or_else(|| wrong("params.name must be a string".to_owned()))?;
    let tool =
        ALL.iter().find(|tool| tool.name == name).ok_or_else(|| wrong(format!("unknown tool {name:?}")))?;
    let given = match params.get("arguments") {
        None => Map::new(),
        Some(Value::Object(given)) => given.clone(),
        Some(_) => return Err(wrong("params.arguments must be an object".to_owned())),
    };
    let arguments = arguments::check(tool.arguments, given).map_err(Refused::Arguments)?;
    Ok((tool, arguments))
}

/// Runs a tool and answers its request.
pub fn run(tool: &Tool, call: &Call, arguments: &Arguments) {
    let outcome = match (tool.run)(call, arguments) {
        Ok(Reply::Json(value)) => Ok(content(&format!("{value:#}"))),
        Ok(Reply::Text(text)) => Ok(content(&text)),
        Ok(Reply::Raw(result)) => Ok(result),
        Err(Failure::Tool(message)) => Ok(failure(&message)),
        Err(Failure::Protocol(error)) => Err(error),
        Err(Failure::Cancelled) => return call.abandon(),
    };
    call.finish(outcome);
}

/// A result that says that the tool failed.
pub fn failure(message: &str) -> Value {
    let mut result = content(message);
    result["isError"] = true.into();
    result
}

fn content(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }] })
}
