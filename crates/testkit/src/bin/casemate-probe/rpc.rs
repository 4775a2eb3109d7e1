//! JSON-RPC 2.0 as MCP uses it: bytes to messages, outcomes to messages, errors with their codes.
//!
//! ```text
//! bytes ──parse──> Incoming ──> Message::{Request, Notification, Response, Invalid}
//! Result<Value, RpcError> ──answer──> Answer ──> an outlet
//! ```

use serde_json::{Map, Value, json};

/// The id of a request: a string or an integer (MCP forbids null and fractions).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id {
    /// An integer that fits `i64`.
    Signed(i64),
    /// A larger integer.
    Unsigned(u64),
    /// A string.
    Text(String),
}

impl Id {
    /// Reads an id from JSON; `None` if it is no id.
    pub fn read(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Number(number) => {
                number.as_i64().map(Self::Signed).or_else(|| number.as_u64().map(Self::Unsigned))
            }
            _ => None,
        }
    }
}

impl From<&Id> for Value {
    fn from(id: &Id) -> Self {
        match id {
            Id::Signed(number) => (*number).into(),
            Id::Unsigned(number) => (*number).into(),
            Id::Text(text) => text.as_str().into(),
        }
    }
}

/// What one line or one HTTP body holds.
#[derive(Debug)]
pub enum Incoming {
    /// One message.
    One(Message),
    /// A batch, which only revision 2025-03-26 allows.
    Batch(Vec<Message>),
}

/// One message from the client.
#[derive(Debug)]
pub enum Message {
    /// Wants an answer.
    Request(Request),
    /// Wants none.
    Notification {
        /// Its method.
        method: String,
        /// Its parameters; empty if there were none or they were no object.
        params: Map<String, Value>,
    },
    /// Answers a request of the server.
    Response {
        /// Which one.
        id: Option<Id>,
        /// The result, or the error object.
        outcome: Result<Value, Value>,
    },
    /// JSON, but no message.
    Invalid {
        /// The id, as far as it could be read.
        id: Option<Id>,
        /// What is wrong.
        error: RpcError,
    },
}

/// A request from the client.
#[derive(Debug)]
pub struct Request {
    /// Its id.
    pub id: Id,
    /// Its method.
    pub method: String,
    /// Its parameters; empty if there were none.
    pub params: Map<String, Value>,
}

/// Kinds of error, each with its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// -32700: no JSON.
    Parse,
    /// -32600: JSON, but no request; or not now.
    InvalidRequest,
    /// -32601: no such method.
    MethodNotFound,
    /// -32602: parameters of the wrong shape, or an unknown tool.
    InvalidParams,
    /// -32602: the per-request metadata of the modern era is missing or malformed.
    InvalidMeta,
    /// -32603: not possible for a reason of the server.
    Internal,
    /// -32020: HTTP headers that contradict the body.
    HeaderMismatch,
    /// -32021: the client did not declare a capability that the request needs.
    MissingCapability,
    /// -32022: a revision that is not spoken here.
    UnsupportedVersion,
}

impl ErrorKind {
    fn code(self) -> i64 {
        match self {
            Self::Parse => -32700,
            Self::InvalidRequest => -32600,
            Self::MethodNotFound => -32601,
            Self::InvalidParams | Self::InvalidMeta => -32602,
            Self::Internal => -32603,
            Self::HeaderMismatch => -32020,
            Self::MissingCapability => -32021,
            Self::UnsupportedVersion => -32022,
        }
    }
}

/// An error as it goes to the client.
#[derive(Debug, Clone, PartialEq)]
pub struct RpcError {
    /// Which kind.
    pub kind: ErrorKind,
    /// In words.
    pub message: String,
    /// For the client's program.
    pub data: Option<Value>,
}

impl RpcError {
    /// An error without data.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), data: None }
    }

    /// The same with data.
    pub fn with_data(self, data: Value) -> Self {
        Self { data: Some(data), ..self }
    }
}

/// An answer ready for the wire.
#[derive(Debug)]
pub struct Answer {
    /// The message.
    pub message: Value,
    /// The kind of error, if it is one: HTTP chooses a status by it.
    pub error: Option<ErrorKind>,
}

/// How an answer says that it belongs to no readable request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoId {
    /// `"id": null`, as JSON-RPC 2.0 (section 5) wants it.
    Null,
    /// No id at all, as the schema of revision 2026-07-28 wants it.
    Omitted,
}

/// Makes the answer to the request `id`.
pub fn answer(id: Option<&Id>, no_id: NoId, outcome: Result<Value, RpcError>) -> Answer {
    let mut message = Map::new();
    message.insert("jsonrpc".to_owned(), "2.0".into());
    match (id, no_id) {
        (Some(id), _) => drop(message.insert("id".to_owned(), id.into())),
        (None, NoId::Null) => drop(message.insert("id".to_owned(), Value::Null)),
        (None, NoId::Omitted) => {}
    }
    let error = match outcome {
        Ok(result) => {
            message.insert("result".to_owned(), result);
            None
        }
        Err(RpcError { kind, message: text, data }) => {
            let mut error = json!({ "code": kind.code(), "message": text });
            if let Some(data) = data {
                error["data"] = data;
            }
            message.insert("error".to_owned(), error);
            Some(kind)
        }
    };
    Answer { message: Value::Object(message), error }
}

/// A notification.
pub fn notification(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "method": method, "params": params })
}

/// Reads one line or one HTTP body.
pub fn parse(bytes: &[u8]) -> Result<Incoming, RpcError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Array(values)) if values.is_empty() => Err(invalid("an empty batch")),
        Ok(Value::Array(values)) => Ok(Incoming::Batch(values.into_iter().map(classify).collect())),
        Ok(value) => Ok(Incoming::One(classify(value))),
        Err(error) => Err(RpcError::new(ErrorKind::Parse, format!("not JSON: {error}"))),
    }
}

fn invalid(message: &str) -> RpcError {
    RpcError::new(ErrorKind::InvalidRequest, message)
}

fn classify(value: Value) -> Message {
    let Value::Object(mut fields) = value else {
        return Message::Invalid { id: None, error: invalid("a message is a JSON object") };
    };
    let has_id = fields.contains_key("id");
    let id = fields.get("id").and_then(Id::read);
    if fields.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Message::Invalid { id, error: invalid("jsonrpc must be \"2.0\"") };
    }
    let method = match fields.remove("method") {
        Some(Value::String(method)) => method,
        Some(_) => return Message::Invalid { id, error: invalid("method must be a string") },
        None => {
            let outcome = match (fields.remove("result"), fields.remove("error")) {
                (Some(result), None) => Ok(result),
                (None, Some(error)) => Err(error),
                _ => return Message::Invalid { id, error: invalid("neither a request nor a response") },
            };
            return Message::Response { id, outcome };
        }
    };
    let params = match fields.remove("params") {
        None => Ok(Map::new()),
        Some(Value::Object(params)) => Ok(params),
        Some(_) => Err(RpcError::new(ErrorKind::InvalidParams, "params must be an object")),
    };
    match (has_id, id, params) {
        (false, _, params) => Message::Notification { method, params: params.unwrap_or_default() },
        (true, None, _) => Message::Invalid { id: None, error: invalid("id must be a string or an integer") },
        (true, Some(id), Ok(params)) => Message::Request(Request { id, method, params }),
        (true, id, Err(error)) => Message::Invalid { id, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// JSON that is nearly a message.
    fn nearly() -> impl Strategy<Value = Value> {
        let some = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            Just(json!("2.0")),
            Just(json!({})),
            Just(json!([])),
        ];
        let key = prop_oneof!["jsonrpc", "id", "method", "params", "result", "error", "[a-z]{1,3}"];
        let message = proptest::collection::btree_map(key, some, 0..6)
            .prop_map(|fields| Value::Object(fields.into_iter().collect()));
        prop_oneof![3 => message.clone(), 1 => proptest::collection::vec(message, 0..3).prop_map(Value::Array)]
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Err(error) = parse(&bytes) {
                prop_assert!(matches!(error.kind, ErrorKind::Parse | ErrorKind::InvalidRequest));
            }
        }

        #[test]
        fn a_message_is_what_its_fields_say(value in nearly()) {
            let Value::Object(fields) = value.clone() else {
                prop_assert!(!matches!(parse(value.to_string().as_bytes()), Ok(Incoming::One(_))));
                return Ok(());
            };
            let Ok(Incoming::One(message)) = parse(value.to_string().as_bytes()) else {
                return Err(TestCaseError::fail("one object is one message"));
            };
            let (has_id, has_method) = (fields.contains_key("id"), fields.contains_key("method"));
            match message {
                Message::Request(request) => {
                    prop_assert!(has_id && has_method);
                    prop_assert_eq!(&Value::from(&request.id), &fields["id"]);
                }
                Message::Notification { method, .. } => {
                    prop_assert!(!has_id);
                    prop_assert_eq!(Value::from(method), fields["method"].clone());
                }
                Message::Response { .. } => {
                    prop_assert!(!has_method && fields.contains_key("result") != fields.contains_key("error"));
                }
                Message::Invalid { id, .. } => {
                    prop_assert!(id.is_none() || has_id);
                }
            }
        }
    }

    fn refused(text: &str) -> (Option<Id>, ErrorKind) {
        match parse(text.as_bytes()) {
            Err(error) => (None, error.kind),
            Ok(Incoming::One(Message::Invalid { id, error })) => (id, error.kind),
            other => panic!("{text} was taken as {other:?}"),
        }
    }

    #[test]
    fn what_is_no_message_is_refused_with_the_id_that_could_be_read() {
        use ErrorKind::*;
        assert_eq!(refused("{"), (None, Parse));
        assert_eq!(refused("\u{feff}{}"), (None, Parse));
        assert_eq!(refused("[]"), (None, InvalidRequest));
        assert_eq!(refused("7"), (None, InvalidRequest));
        assert_eq!(refused("{}"), (None, InvalidRequest));
        assert_eq!(refused(r#"{"id":3,"method":"ping"}"#), (Some(Id::Signed(3)), InvalidRequest));
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":3,"method":4}"#), (Some(Id::Signed(3)), InvalidRequest));
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#), (None, InvalidRequest));
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#), (None, InvalidRequest));
        assert_eq!(
            refused(r#"{"jsonrpc":"2.0","id":"a","method":"ping","params":[]}"#),
            (Some(Id::Text("a".into())), InvalidParams)
        );
        let deep = "[".repeat(100_000);
        assert_eq!(refused(&deep), (None, Parse));
    }

    #[test]
    fn ids_keep_their_type_and_size() {
        for text in ["0", "-9223372036854775808", "18446744073709551615", "\"1\"", "\"\""] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{text},"method":"ping"}}"#);
            let Ok(Incoming::One(Message::Request(request))) = parse(line.as_bytes()) else {
                panic!("{line} is a request");
            };
            assert_eq!(Value::from(&request.id).to_string(), text);
        }
    }
}
