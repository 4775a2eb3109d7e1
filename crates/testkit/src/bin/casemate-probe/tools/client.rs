//! Tools that turn to the client: a question of the server's own, and an announcement.

use super::arguments::{Argument, Kind};
use super::{Arguments, CHANGES, Failure, Hints, Reply, Tool};
use crate::call::Call;
use crate::rpc::{self, ErrorKind, RpcError};
use crate::signal::Waited;
use serde_json::{Value, json};
use std::time::Duration;

/// The key under which the one question of an `input_required` round stands.
const INPUT: &str = "answer";

pub const ASK_CLIENT: Tool = Tool {
    name: "ask_client",
    title: "Ask the client",
    description: "Sends the client a request of the server's own and returns its answer. In the revision \
                  2026-07-28, which has no such requests, the result first says input_required.",
    arguments: &[
        Argument::required(
            "method",
            Kind::Choice(&["ping", "roots/list", "sampling/createMessage", "elicitation/create"]),
            "Which request.",
        ),
        Argument::integer("timeout_ms", (1, 600_000), 60_000, "How long to wait, in milliseconds."),
        Argument::flag("force", "Whether to ask (legacy revisions) even what the client says it cannot do."),
    ],
    hints: Hints { open_world: true, ..CHANGES },
    slow: true,
    run: ask_client,
};

pub const ANNOUNCE: Tool = Tool {
    name: "announce",
    title: "Announce",
    description: "Tells the clients that listen that the list of tools has changed (it has not).",
    arguments: &[],
    hints: CHANGES,
    slow: false,
    run: |call, _| {
        let listeners = if call.terms.revision.is_modern() {
            call.conversation.server.announce()
        } else {
            call.conversation.push.send(rpc::notification("notifications/tools/list_changed", json!({})));
            1
        };
        Ok(Reply::Json(json!({ "listeners": listeners })))
    },
};

fn ask_client(call: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let method = arguments.text("method");
    if call.terms.revision.is_modern() {
        return require_input(call, method);
    }
    let able = capability(method).is_none_or(|name| call.terms.capabilities.contains_key(name));
    if !able && !arguments.flag("force") {
        return Err(Failure::Tool(format!("the client did not declare that it can answer {method}")));
    }
    let patience = Duration::from_millis(arguments.size("timeout_ms") as u64);
    match call.ask(method, question(method), patience) {
        Waited::Delivered(Ok(result)) => Ok(Reply::Json(json!({ "method": method, "result": result }))),
        Waited::Delivered(Err(error)) => {
            Err(Failure::Tool(format!("{:#}", json!({ "method": method, "error": error }))))
        }
        Waited::Cancelled => Err(Failure::Cancelled),
        Waited::Elapsed => Err(Failure::Tool(format!("no answer to {method} in time"))),
    }
}

/// The same in the modern era (2026-07-28, multi round-trip requests): the first call ends with a question,
/// a second one brings its answer.
fn require_input(call: &Call, method: &str) -> Result<Reply, Failure> {
    let Some(capability) = capability(method) else {
        return Err(Failure::Tool(format!("{method} does not exist in this revision")));
    };
    if !call.terms.capabilities.contains_key(capability) {
        let message = format!("{method} needs the client capability {capability}");
        let data = json!({ "requiredCapabilities": { capability: {} } });
        return Err(Failure::Protocol(RpcError::new(ErrorKind::MissingCapability, message).with_data(data)));
    }
    let state = format!("probe:{method}");
    let round = &call.round;
    let responses = match &round.responses {
        None => None,
        Some(Value::Object(responses)) => Some(responses),
        Some(_) => return Err(wrong("params.inputResponses must be an object".to_owned())),
    };
    // Nothing is decided by the state, but a client or gateway that loses or changes it is caught here.
    let returned = round.state.as_ref().and_then(Value::as_str);
    if (responses.is_some() || round.state.is_some()) && returned != Some(&state) {
        return Err(wrong("params.requestState is not what this server gave".to_owned()));
    }
    let Some(response) = responses.and_then(|responses| responses.get(INPUT)) else {
        let mut request = json!({ "method": method });
        let params = question(method);
        if params.as_object().is_some_and(|params| !params.is_empty()) {
            request["params"] = params;
        }
        return Ok(Reply::Raw(json!({
            "resultType": "input_required",
            "inputRequests": { INPUT: request },
            "requestState": state,
        })));
    };
    if !fits(method, response) {
        return Err(wrong(format!("params.inputResponses.{INPUT} is no result of {method}")));
    }
    Ok(Reply::Json(json!({ "method": method, "result": response })))
}

fn wrong(message: String) -> Failure {
    Failure::Protocol(RpcError::new(ErrorKind::InvalidParams, message))
}

/// The client capability that a request needs; `None` for `ping`, which needs none.
fn capability(method: &str) -> Option<&'static str> {
    match method {
        "roots/list" => Some("roots"),
        "sampling/createMessage" => Some("sampling"),
        "elicitation/create" => Some("elicitation"),
        _ => None,
    }
}

fn question(method: &str) -> Value {
    match method {
        "sampling/createMessage" => json!({
            "messages": [{ "role": "user", "content": { "type": "text", "text": "Say the word probe." } }],
            "maxTokens": 16,
        }),
        "elicitation/create" => json!({
            "message": "What is the probe to be called?",
            "requestedSchema": {
                "type": "object",
                "properties": { "name": { "type": "string", "title": "Name" } },
                "required": ["name"],
            },
        }),
        _ => json!({}),
    }
}

/// Whether `response` has what every result of `method` has.
fn fits(method: &str, response: &Value) -> bool {
    match method {
        "roots/list" => response["roots"].is_array(),
        "sampling/createMessage" => {
            response["role"].is_string() && response["model"].is_string() && !response["content"].is_null()
        }
        _ => matches!(response["action"].as_str(), Some("accept" | "decline" | "cancel")),
    }
}
