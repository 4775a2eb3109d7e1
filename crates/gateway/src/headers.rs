//! What the headers of a request say: decisions only, no I/O.

use crate::{guard::sole, refusal::Refusal};
use casemate_mcp::{Envelope, Era, Message, http::stated_version};
use hyper::{
    HeaderMap,
    header::{ACCEPT, CONTENT_TYPE, HeaderName},
};

/// Names the session.
pub const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");

const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");

/// What a modern request that does not name its revision is taken to ask for.
const MODERN: &str = casemate_mcp::era::NEWEST_MODERN;

/// Which forms of an answer a client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// A JSON document.
    pub json: bool,
    /// A stream of events.
    pub stream: bool,
}

impl Accept {
    /// Reads `Accept`. Who says nothing takes a document.
    pub fn read(headers: &HeaderMap) -> Self {
        let mut accept = Self { json: !headers.contains_key(ACCEPT), stream: false };
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in values.flat_map(|value| value.split(',')) {
            let media = range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            accept.json |= matches!(media.as_str(), "application/json" | "application/*" | "*/*");
            accept.stream |= matches!(media.as_str(), "text/event-stream" | "text/*" | "*/*");
        }
        accept
    }
}

/// Whether the body is said to be JSON.
pub fn sends_json(headers: &HeaderMap) -> bool {
    let value = sole(headers, &CONTENT_TYPE).ok().flatten().and_then(|value| value.to_str().ok());
    let media = value.and_then(|value| value.split(';').next());
    media.is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
}

/// The session that a request names.
pub fn session(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    text(headers, &SESSION, "Mcp-Session-Id")
}

/// The event after which a stream is to go on.
pub fn last_event(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    text(headers, &LAST_EVENT, "Last-Event-ID")
}

/// Refuses what is not one of the revisions that are spoken here: by its headers, or by what its `_meta` says
/// (2026-07-28). A request without a revision is one of its session.
pub fn check_revision(headers: &HeaderMap, message: Option<&Message>) -> Result<(), Refusal> {
    let said = text(headers, &VERSION, "MCP-Protocol-Version")?;
    let unsupported = |requested: &str| Err(Refusal::Unsupported { requested: requested.to_owned() });
    match said.map(|said| (said, Era::of(said))) {
        // A server may have agreed on 2024-11-05, which says nothing about this transport.
        Some((_, Some(Era::Legacy { .. }))) => {}
        Some((said, _)) => return unsupported(said),
        None if headers.contains_key(METHOD) => return unsupported(MODERN),
        None => {}
    }
    let params = match message.map(Message::envelope) {
        Some(Envelope::Request { params, .. } | Envelope::Notification { params, .. }) => params,
        _ => None,
    };
    params.and_then(stated_version).map_or(Ok(()), |requested| unsupported(&requested))
}

fn text<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    shown: &'static str,
) -> Result<Option<&'a str>, Refusal> {
    let value = sole(headers, name).map_err(|_| Refusal::Header(shown))?;
    value.map(|value| value.to_str().map_err(|_| Refusal::Header(shown))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn accept_says_which_forms_are_taken() {
        let read = |value: &str| {
            let accept = Accept::read(&headers(&[("accept", value)]));
            (accept.json, accept.stream)
        };
        assert_eq!(read("application/json, text/event-stream"), (true, true));
        assert_eq!(read("Text/Event-Stream;q=0.5"), (false, true));
        assert_eq!(read("*/*"), (true, true));
        assert_eq!(read("application/*"), (true, false));
        assert_eq!(read("text/html"), (false, false));
        assert_eq!(Accept::read(&HeaderMap::new()), Accept { json: true, stream: false });
    }

    #[test]
    fn a_body_is_json_if_it_is_said_to_be() {
        for (value, is) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("text/plain", false),
            ("application/jsonx", false),
            ("", false),
        ] {
            assert_eq!(sends_json(&headers(&[("content-type", value)])), is, "{value}");
        }
        assert!(!sends_json(&HeaderMap::new()));
        let twice = [("content-type", "application/json"), ("content-type", "text/plain")];
        assert!(!sends_json(&headers(&twice)));
    }

    #[test]
    fn other_revisions_are_refused_wherever_they_are_named() {
        let plain = Message::parse(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).unwrap();
        let said =
            |version: &str| check_revision(&headers(&[("mcp-protocol-version", version)]), Some(&plain));
        for known in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
            assert!(said(known).is_ok(), "{known}");
        }
        for other in ["2026-07-28", "2099-01-01", "", "x"] {
            let refused = said(other);
            assert!(matches!(refused, Err(Refusal::Unsupported { requested }) if requested == other));
        }
        assert!(check_revision(&headers(&[]), Some(&plain)).is_ok());
        let modern = check_revision(&headers(&[("mcp-method", "ping")]), Some(&plain));
        assert!(matches!(modern, Err(Refusal::Unsupported { requested }) if requested == "2026-07-28"));
        let meta = r#"{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":
            {"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
        let meta = Message::parse(meta).unwrap();
        assert!(matches!(check_revision(&headers(&[]), Some(&meta)), Err(Refusal::Unsupported { .. })));
        let twice =
            headers(&[("mcp-protocol-version", "2025-06-18"), ("mcp-protocol-version", "2025-06-18")]);
        assert!(matches!(check_revision(&twice, Some(&plain)), Err(Refusal::Header(_))));
    }

    proptest! {
        #[test]
        fn whatever_else_is_accepted_changes_nothing(
            before in "[ -+--~]{0,20}", after in "[ -+--~]{0,20}", upper in any::<bool>(),
        ) {
            let json = if upper { "APPLICATION/JSON" } else { "application/json" };
            let value = format!("{before},{json} ;q=0.1,{after}");
            prop_assert!(Accept::read(&headers(&[("accept", &value)])).json);
        }
    }
}
