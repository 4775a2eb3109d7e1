//! Builds the few messages that are this side's own.

use serde_json::value::RawValue;

/// The JSON-RPC code of a method that does not exist.
pub const METHOD_NOT_FOUND: i32 = -32601;

/// A request. `params` is a JSON object.
pub fn request(id: u64, method: &str, params: Option<&str>) -> String {
    let method = quoted(method);
    match params {
        Some(params) => format!(r#"{{"jsonrpc":"2.0","id":{id},"method":{method},"params":{params}}}"#),
        None => format!(r#"{{"jsonrpc":"2.0","id":{id},"method":{method}}}"#),
    }
}

/// A notification. `params` is a JSON object.
pub fn notification(method: &str, params: Option<&str>) -> String {
    let method = quoted(method);
    match params {
        Some(params) => format!(r#"{{"jsonrpc":"2.0","method":{method},"params":{params}}}"#),
        None => format!(r#"{{"jsonrpc":"2.0","method":{method}}}"#),
    }
}

/// A response; `id` and `result` are JSON.
pub fn response(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

/// An error response; `id` is JSON.
pub fn error(id: &str, code: i32, message: &str) -> String {
    let message = quoted(message);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}}}}}"#)
}

/// What the error of an error response says, where it has the form that JSON-RPC gives it.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
pub struct ErrorObject {
    /// The code.
    pub code: i64,
    /// One sentence.
    #[serde(default)]
    pub message: String,
    /// Anything.
    #[serde(default)]
    pub data: Option<serde_json::Value>,
}

impl ErrorObject {
    /// Reads an error; `None` where it has another form.
    pub fn read(error: &RawValue) -> Option<Self> {
        serde_json::from_str(error.get()).ok()
    }
}

/// `text` as a JSON string.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Envelope, Message};

    #[test]
    fn what_is_composed_is_valid() {
        let message = Message::parse(request(7, "a\"\n", Some("{\"b\":1}"))).unwrap();
        let Envelope::Request { id, method, params } = message.envelope() else { panic!("no request") };
        assert_eq!((id.as_u64(), method, params), (Some(7), "a\"\n", Some("{\"b\":1}")));
        for text in [request(1, "m", None), notification("m", None), notification("m", Some("{}"))] {
            Message::parse(text).unwrap();
        }
        Message::parse(response("\"x\"", "{}")).unwrap();
        let message = Message::parse(error("1", METHOD_NOT_FOUND, "no \"x\"")).unwrap();
        let Envelope::Error { error, .. } = message.envelope() else { panic!("no error") };
        let error = ErrorObject::read(serde_json::from_str(error).unwrap()).unwrap();
        assert_eq!((error.code, error.message.as_str()), (-32601, "no \"x\""));
    }
}
