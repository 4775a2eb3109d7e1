//! What a message's headers say about it: decisions only, no I/O.
//!
//! A legacy message is named by its session and the revision that `initialize` agreed on. A modern one says
//! its revision in `_meta`, and the headers repeat that, its method and what it is about (2026-07-28,
//! Streamable HTTP, request metadata).

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::value::RawValue;

use super::params::Mirrors;
use crate::envelope::{Envelope, Message};
use crate::era::Era;
use crate::object;

/// The header that names a legacy session.
pub(super) const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");

/// The header that names the revision.
pub(super) const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";

/// The longest value that is put into a header; a server would refuse the rest of a longer one anyway.
pub(super) const VALUE_BYTES: usize = 8 << 10;

/// What was agreed on with the server.
#[derive(Debug, Default)]
pub(super) struct Agreed {
    /// The legacy session, where the server gave it an id.
    pub session: Option<HeaderValue>,
    /// The legacy revision, once `initialize` was answered.
    pub legacy: Option<HeaderValue>,
    /// The modern revision that the last modern request named.
    modern: Option<HeaderValue>,
}

/// Header fields.
pub(super) type Fields = Vec<(HeaderName, HeaderValue)>;

/// How a message is led, with its headers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Heading {
    /// By itself, without a session.
    pub modern: bool,
    /// The fields.
    pub fields: Fields,
}

impl Agreed {
    /// The headers of a message to the server.
    pub fn heading(&mut self, message: &Message, mirrors: &Mirrors) -> Heading {
        let (method, params, is_request) = match message.envelope() {
            Envelope::Request { method, params, .. } => (method, params, true),
            Envelope::Notification { method, params } => (method, params, false),
            Envelope::Response { .. } | Envelope::Error { .. } => return self.legacy_heading(),
        };
        let stated = params.and_then(stated_version);
        if let Some(version) = stated.as_deref().and_then(value) {
            self.modern = Some(version);
        } else if is_request || self.legacy.is_some() {
            return self.legacy_heading();
        }
        // A notification need not say its revision: it is led as the requests before it were.
        let Some(version) = self.modern.clone() else { return self.legacy_heading() };
        let mut fields = vec![(VERSION, version)];
        fields.extend(value(method).map(|method| (METHOD, method)));
        let name = params.and_then(|params| named(method, params));
        fields.extend(name.as_deref().and_then(value).map(|name| (NAME, name)));
        if let (true, "tools/call", Some(name), Some(params)) = (is_request, method, &name, params) {
            fields.extend(mirrors.fields(name, params));
        }
        Heading { modern: true, fields }
    }

    /// The headers of what is no message: the stream of a session, its end.
    pub fn legacy_fields(&self) -> Fields {
        let session = self.session.clone().map(|session| (SESSION, session));
        session.into_iter().chain(self.legacy.clone().map(|version| (VERSION, version))).collect()
    }

    fn legacy_heading(&self) -> Heading {
        Heading { modern: false, fields: self.legacy_fields() }
    }
}

/// The modern revision that `params` of a message name in their `_meta`; one that is not known counts as modern.
pub fn stated_version(params: &str) -> Option<String> {
    let [meta] = object::find(params, ["_meta"]).ok()?;
    let [version] = object::find(meta?.get(), [META_VERSION]).ok()?;
    let version = text(version?)?;
    // One that is not known is newer than what is.
    Era::of(&version).is_none_or(|era| era.is_modern()).then_some(version)
}

/// What a request is about, where its method has a header for that; the last three are those of tasks
/// (SEP-2663).
fn named(method: &str, params: &str) -> Option<String> {
    let key = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" => "uri",
        "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
        _ => return None,
    };
    let [name] = object::find(params, [key]).ok()?;
    text(name?)
}

fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// A text as the value of a header; nothing where it is too long for one.
pub(super) fn value(text: &str) -> Option<HeaderValue> {
    let encoded = encode(text);
    if encoded.len() > VALUE_BYTES {
        return None;
    }
    HeaderValue::from_str(&encoded).ok()
}

/// Marks as Base64 what cannot stand in a header, or would be taken for something that is marked (value
/// encoding).
fn encode(text: &str) -> Cow<'_, str> {
    const MARKS: (&str, &str) = ("=?base64?", "?=");
    let is_visible = text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    let is_padded = text.trim_matches([' ', '\t']).len() < text.len();
    let is_marked = text.starts_with(MARKS.0) && text.ends_with(MARKS.1);
    let is_plain = is_visible && !is_padded && !is_marked;
    if is_plain { text.into() } else { format!("{}{}{}", MARKS.0, STANDARD.encode(text), MARKS.1).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        Message::parse(text).unwrap()
    }

    fn shown(heading: &Heading) -> Vec<String> {
        let show = |(name, value): &(HeaderName, HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        heading.fields.iter().map(show).collect()
    }

    fn modern(method: &str, more: &str) -> Message {
        let meta = format!(r#""_meta":{{"{META_VERSION}":"2026-07-28"}}"#);
        message(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{more}{meta}}}}}"#))
    }

    #[test]
    fn a_modern_message_is_told_by_its_metadata() {
        let mut agreed = Agreed::default();
        let mut heading = |message: &Message| agreed.heading(message, &Mirrors::default());
        let call = heading(&modern("tools/call", r#""name":"grüezi","#));
        assert!(call.modern);
        let expected = [
            "mcp-protocol-version: 2026-07-28",
            "mcp-method: tools/call",
            "mcp-name: =?base64?Z3LDvGV6aQ==?=",
        ];
        assert_eq!(shown(&call), expected);
        assert_eq!(
            shown(&heading(&modern("resources/read", r#""uri":"file:///a","#)))[2],
            "mcp-name: file:///a"
        );
        assert_eq!(shown(&heading(&modern("tasks/get", r#""taskId":"t","#)))[2], "mcp-name: t");
        assert_eq!(shown(&heading(&modern("tools/list", r#""name":"x","#))).len(), 2);
        // What follows without metadata belongs to it, but for requests.
        let notification = message(r#"{"jsonrpc":"2.0","method":"notifications/x"}"#);
        assert_eq!(shown(&heading(&notification))[1], "mcp-method: notifications/x");
        assert!(!heading(&message(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#)).modern);
    }

    #[test]
    fn a_legacy_message_is_told_by_its_session() {
        let mut agreed = Agreed { session: value("s1"), legacy: value("2025-06-18"), ..Agreed::default() };
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        ] {
            let heading = agreed.heading(&message(text), &Mirrors::default());
            assert!(!heading.modern);
            assert_eq!(shown(&heading), ["mcp-session-id: s1", "mcp-protocol-version: 2025-06-18"]);
        }
        // The metadata of one says otherwise; the next goes on as before.
        assert!(agreed.heading(&modern("tools/list", ""), &Mirrors::default()).modern);
        let next = message(r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#);
        assert!(!agreed.heading(&next, &Mirrors::default()).modern);
    }

    #[test]
    fn a_legacy_revision_in_the_metadata_makes_no_modern_message() {
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"_meta":{{"{META_VERSION}":"2025-06-18"}}}}}}"#
        );
        assert!(!Agreed::default().heading(&message(&text), &Mirrors::default()).modern);
    }

    #[test]
    fn values_are_encoded_as_the_specifications_examples_say() {
        for (text, expected) in [
            ("us-west1", "us-west1"),
            ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
            (" padded ", "=?base64?IHBhZGRlZCA=?="),
            ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
            ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
            ("a\tb c", "a\tb c"),
            ("x\r\nEvil: 1", "=?base64?eA0KRXZpbDogMQ==?="),
        ] {
            assert_eq!(encode(text), expected);
            assert!(value(text).is_some());
        }
        assert!(value(&"x".repeat(VALUE_BYTES + 1)).is_none());
    }
}
