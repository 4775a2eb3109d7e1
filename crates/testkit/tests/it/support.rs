//! The vocabulary of these tests: start the probe, talk to it, look at what it said.

use casemate_testkit::{LineClient, modern_meta};
use serde_json::{Value, json};
use std::process::Command;

/// The newest revision with a handshake.
pub const LATEST_LEGACY: &str = "2025-11-25";

/// The probe with these arguments.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-probe"));
    command.args(arguments);
    command
}

/// A probe on stdio that has seen nothing yet.
pub fn stdio(arguments: &[&str]) -> LineClient {
    LineClient::spawn(&mut command(arguments)).unwrap()
}

/// A probe on stdio after the handshake, with a client that can do `capabilities`.
pub fn initialised(revision: &str, capabilities: Value) -> LineClient {
    let mut client = stdio(&[]);
    let answer = client.initialize(revision, capabilities).unwrap();
    assert_eq!(answer["result"]["protocolVersion"], revision);
    client
}

/// Parameters of a modern `tools/call`.
pub fn modern_call(tool: &str, arguments: Value, capabilities: Value) -> Value {
    modern_meta(json!({ "name": tool, "arguments": arguments }), capabilities)
}

/// The text of a tool's result, which must be a success.
pub fn text(answer: &Value) -> &str {
    assert_ne!(answer["result"]["isError"], true, "{answer}");
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text in {answer}"))
}

/// The JSON in the text of a tool's result, which must be a success.
pub fn data(answer: &Value) -> Value {
    serde_json::from_str(text(answer)).unwrap_or_else(|error| panic!("{error} in {answer}"))
}

/// The text of a tool's failure.
pub fn failure(answer: &Value) -> &str {
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    answer["result"]["content"][0]["text"].as_str().unwrap()
}

/// The code of an error.
pub fn code(answer: &Value) -> i64 {
    answer["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error in {answer}"))
}
