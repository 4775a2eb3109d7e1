//! Method to effect: which methods each era has, and what they do.

use crate::call::Call;
use crate::lifecycle::Terms;
use crate::revision::{self, Revision};
use crate::rpc::{ErrorKind, RpcError};
use crate::tools;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::thread;

/// How long clients may keep the tool list and the discovery: they change with the program only.
const LIST_TTL_MS: u64 = 3_600_000;

/// What a slow tool's thread may use: JSON as deep as the parser allows, dropped recursively.
const WORKER_STACK: usize = 512 << 10;

/// Answers a request, now or on a thread of its own.
pub fn dispatch(call: &Arc<Call>, method: &str, params: &Map<String, Value>) {
    let modern = call.terms.revision.is_modern();
    match (method, modern) {
        ("ping", false) => call.finish(Ok(json!({}))),
        ("server/discover", true) => call.finish(Ok(discover())),
        ("subscriptions/listen", true) => listen(call, params),
        ("tools/list", _) => call.finish(list_tools(call, params)),
        ("tools/call", _) => call_tool(call, params),
        _ => {
            let message = format!("method {method:?} does not exist");
            call.finish(Err(RpcError::new(ErrorKind::MethodNotFound, message)));
        }
    }
}

/// The result of `initialize`.
pub fn initialize(terms: &Terms) -> Value {
    json!({
        "protocolVersion": terms.revision.name(),
        "capabilities": revision::capabilities(),
        "serverInfo": revision::server_info(terms.revision),
    })
}

fn discover() -> Value {
    // Only modern revisions: a connection that has asked this is modern for good.
    json!({
        "supportedVersions": revision::names(&Revision::MODERN),
        "capabilities": revision::capabilities(),
        "ttlMs": LIST_TTL_MS,
        "cacheScope": "public",
    })
}

fn list_tools(call: &Call, params: &Map<String, Value>) -> Result<Value, RpcError> {
    if params.contains_key("cursor") {
        return Err(RpcError::new(ErrorKind::InvalidParams, "unknown cursor: the list has one page"));
    }
    let revision = call.terms.revision;
    let tools: Vec<Value> = tools::ALL.iter().map(|tool| tool.definition(revision)).collect();
    let mut result = json!({ "tools": tools });
    if revision.is_modern() {
        result["ttlMs"] = LIST_TTL_MS.into();
        result["cacheScope"] = "public".into();
    }
    Ok(result)
}

fn call_tool(call: &Arc<Call>, params: &Map<String, Value>) {
    let (tool, arguments) = match tools::prepare(params) {
        Ok(prepared) => prepared,
        Err(tools::Refused::Protocol(error)) => return call.finish(Err(error)),
        Err(tools::Refused::Arguments(message)) => return call.finish(Ok(tools::failure(&message))),
    };
    if !tool.slow {
        return tools::run(tool, call, &arguments);
    }
    let worker = call.clone();
    let spawned =
        thread::Builder::new().stack_size(WORKER_STACK).spawn(move || tools::run(tool, &worker, &arguments));
    if let Err(error) = spawned {
        let message = format!("start a thread for {}: {error}", tool.name);
        call.finish(Err(RpcError::new(ErrorKind::Internal, message)));
    }
}

/// Acknowledges what will be told, and then tells it (2026-07-28, subscriptions).
fn listen(call: &Arc<Call>, params: &Map<String, Value>) {
    let Some(filter) = params.get("notifications").and_then(Value::as_object) else {
        let message = "params.notifications must be an object";
        return call.finish(Err(RpcError::new(ErrorKind::InvalidParams, message)));
    };
    let tools = filter.get("toolsListChanged") == Some(&Value::Bool(true));
    let honoured = if tools { json!({ "toolsListChanged": true }) } else { json!({}) };
    let id = Value::from(&call.id);
    let params = json!({
        "_meta": { "io.modelcontextprotocol/subscriptionId": id },
        "notifications": honoured,
    });
    call.notify("notifications/subscriptions/acknowledged", params);
    call.conversation.server.subscribe(call.clone(), tools);
}
