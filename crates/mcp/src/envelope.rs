//! One JSON-RPC message, of which only the envelope is parsed.
//!
//! What a valid message is, is the schema of MCP 2025-11-25 and 2026-07-28 (`JSONRPCMessage`), which agree:
//!
//! * `jsonrpc` is `"2.0"`; a message is a request (`method`, `id`), a notification (`method`), a response
//!   (`result`, `id`) or an error response (`error`, and `id` unless the sender could not tell it);
//! * an id is a string or an integer. `null`, fractions and exponents are refused; an integer of any size is
//!   kept digit by digit, because a reader that rounds it would answer somebody else;
//! * `params` is an object (`null` is read as absent). `result` and `error` are not looked into;
//! * batches are refused: only revision 2025-03-26 had them, and made no server send any;
//! * an envelope key that occurs twice, or in a spelling that some readers take for it, makes the message
//!   invalid (see [`object`]); so do more than [`MAX_DEPTH`] levels of nesting.

use std::ops::Range;

use serde_json::value::RawValue;

use crate::object::{self, ObjectError};

/// The most levels of arrays and objects in a message. What is inside of the envelope then has one less,
/// which is what `serde_json` can parse.
pub const MAX_DEPTH: usize = 128;

/// The longest id or progress token, in bytes as it is written: they are kept while a request is open.
pub const MAX_ID_BYTES: usize = 1024;

/// Why a line is no message.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// Not UTF-8.
    #[error("message is not UTF-8")]
    NotUtf8,
    /// Not JSON.
    #[error("message is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// Nested too deeply to be parsed.
    #[error("message is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// JSON, but no object.
    #[error("message is not a JSON object")]
    NotObject,
    /// An array of messages.
    #[error("batches are not supported")]
    Batch,
    /// A key of the envelope that different readers would read differently.
    #[error("message key {name:?} is ambiguous")]
    Ambiguous {
        /// The key.
        name: &'static str,
    },
    /// `jsonrpc` is missing or another version.
    #[error("message is not JSON-RPC 2.0")]
    Version,
    /// The id is missing where one is needed, or is no string or integer, or is too long.
    #[error("message id is not a string or an integer")]
    Id,
    /// `method` is no string.
    #[error("message method is not a string")]
    Method,
    /// `params` is no object.
    #[error("message params are not an object")]
    Params,
    /// Neither request, notification nor response, or more than one of them.
    #[error("message is neither a request, a notification nor a response")]
    Shape,
}

impl Invalid {
    /// The JSON-RPC error code that answers such a message.
    pub fn code(&self) -> i32 {
        match self {
            Self::NotUtf8 | Self::NotJson(_) | Self::TooDeep => -32700,
            Self::Params => -32602,
            Self::NotObject
            | Self::Batch
            | Self::Ambiguous { .. }
            | Self::Version
            | Self::Id
            | Self::Method
            | Self::Shape => -32600,
        }
    }

    /// Whether the line is no JSON object at all (a stray print), rather than an object that is no message.
    pub fn is_garbage(&self) -> bool {
        matches!(self, Self::NotUtf8 | Self::NotJson(_) | Self::TooDeep | Self::NotObject | Self::Batch)
    }
}

/// The id of a request, or a progress token: the two have one form. Equal ids are equal values, however
/// they are spelled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Id {
    /// An integer of any size, by its digits.
    Integer(Box<str>),
    /// A string, decoded.
    String(Box<str>),
}

impl Id {
    /// Reads an id; `None` where `raw` is no string or integer, or longer than [`MAX_ID_BYTES`].
    pub fn parse(raw: &str) -> Option<Self> {
        if raw.len() > MAX_ID_BYTES {
            return None;
        }
        if raw.starts_with('"') {
            return serde_json::from_str(raw).ok().map(Self::String);
        }
        let digits = raw.strip_prefix('-').unwrap_or(raw);
        let integer = match digits.as_bytes() {
            [] => false,
            [b'0', rest @ ..] => rest.is_empty(),
            all => all.iter().all(u8::is_ascii_digit),
        };
        integer.then(|| Self::Integer(if digits == "0" { "0".into() } else { raw.into() }))
    }

    /// The id as a number, where it is one that fits.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Integer(digits) => digits.parse().ok(),
            Self::String(_) => None,
        }
    }
}

/// One valid message, as it was written.
#[derive(Debug, Clone)]
pub struct Message {
    text: String,
    head: Head,
}

#[derive(Debug, Clone)]
enum Head {
    Request { id: Place, method: String, params: Option<Range<usize>> },
    Notification { method: String, params: Option<Range<usize>> },
    Response { id: Place, result: Range<usize> },
    Error { id: Option<Place>, error: Range<usize> },
}

#[derive(Debug, Clone)]
struct Place {
    id: Id,
    span: Range<usize>,
}

/// What a message says; `params`, `result` and `error` are JSON as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope<'a> {
    /// Wants an answer.
    Request {
        /// What the answer will carry.
        id: &'a Id,
        /// The method.
        method: &'a str,
        /// An object.
        params: Option<&'a str>,
    },
    /// Wants no answer.
    Notification {
        /// The method.
        method: &'a str,
        /// An object.
        params: Option<&'a str>,
    },
    /// Answers a request.
    Response {
        /// The id of the request.
        id: &'a Id,
        /// Any JSON; MCP wants an object.
        result: &'a str,
    },
    /// Refuses a request, or complains about something that had no readable id.
    Error {
        /// The id of the request.
        id: Option<&'a Id>,
        /// Any JSON; MCP wants an object with `code` and `message`.
        error: &'a str,
    },
}

impl Message {
    /// Reads the envelope of one message. Whitespace around it is allowed and kept.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, Invalid> {
        let text = String::from_utf8(bytes.into()).map_err(|_| Invalid::NotUtf8)?;
        if nested_deeper_than(&text, MAX_DEPTH) {
            return Err(Invalid::TooDeep);
        }
        let start = text.trim_ascii_start();
        if !start.starts_with('{') {
            let _: serde::de::IgnoredAny = serde_json::from_str(&text).map_err(Invalid::NotJson)?;
            return Err(if start.starts_with('[') { Invalid::Batch } else { Invalid::NotObject });
        }
        let head = Head::parse(&text)?;
        Ok(Self { text, head })
    }

    /// The whole message as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole message as it was written.
    pub fn into_text(self) -> String {
        self.text
    }

    /// What the message says.
    pub fn envelope(&self) -> Envelope<'_> {
        match &self.head {
            Head::Request { id, method, params } => {
                Envelope::Request { id: &id.id, method, params: self.slice(params) }
            }
            Head::Notification { method, params } => {
                Envelope::Notification { method, params: self.slice(params) }
            }
            Head::Response { id, result } => {
                Envelope::Response { id: &id.id, result: &self.text[result.clone()] }
            }
            Head::Error { id, error } => {
                Envelope::Error { id: id.as_ref().map(|place| &place.id), error: &self.text[error.clone()] }
            }
        }
    }

    /// Where the id is in the text. An error response that says `"id": null` has none.
    pub fn id_span(&self) -> Option<Range<usize>> {
        match &self.head {
            Head::Request { id, .. } | Head::Response { id, .. } => Some(id.span.clone()),
            Head::Error { id, .. } => id.as_ref().map(|place| place.span.clone()),
            Head::Notification { .. } => None,
        }
    }

    /// The id as it is written.
    pub fn raw_id(&self) -> Option<&str> {
        self.id_span().map(|span| &self.text[span])
    }

    fn slice(&self, span: &Option<Range<usize>>) -> Option<&str> {
        span.as_ref().map(|span| &self.text[span.clone()])
    }
}

impl Head {
    fn parse(text: &str) -> Result<Self, Invalid> {
        let names = ["jsonrpc", "id", "method", "params", "result", "error"];
        let [version, id, method, params, result, error] =
            object::find(text, names).map_err(|error| match error {
                ObjectError::Syntax(source) => Invalid::NotJson(source),
                ObjectError::Ambiguous { name } => Invalid::Ambiguous { name },
            })?;
        if version.and_then(decoded).as_deref() != Some("2.0") {
            return Err(Invalid::Version);
        }
        let span = |value: &RawValue| object::span(text, value.get());
        let place = |value: &RawValue| {
            Id::parse(value.get()).map(|id| Place { id, span: span(value) }).ok_or(Invalid::Id)
        };
        match (method, result, error) {
            (Some(method), None, None) => {
                let method = decoded(method).ok_or(Invalid::Method)?;
                let params = match params {
                    Some(value) if value.get().starts_with('{') => Some(span(value)),
                    Some(value) if value.get() != "null" => return Err(Invalid::Params),
                    _ => None,
                };
                Ok(match id {
                    Some(id) => Self::Request { id: place(id)?, method, params },
                    None => Self::Notification { method, params },
                })
            }
            (None, Some(result), None) => {
                Ok(Self::Response { id: place(id.ok_or(Invalid::Id)?)?, result: span(result) })
            }
            (None, None, Some(error)) => {
                let id = id.filter(|id| id.get() != "null").map(place).transpose()?;
                Ok(Self::Error { id, error: span(error) })
            }
            _ => Err(Invalid::Shape),
        }
    }
}

fn decoded(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// Whether arrays and objects are nested deeper than `limit`. Text that is no JSON gives any answer.
fn nested_deeper_than(text: &str, limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests;
