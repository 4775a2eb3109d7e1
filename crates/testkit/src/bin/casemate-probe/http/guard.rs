//! What a request's headers must say before its body is believed.

use super::request::Request;
use super::response::Response;
use crate::lifecycle;
use crate::revision::{self, Revision};
use crate::rpc::{self, ErrorKind, RpcError};
use serde_json::{Value, json};
use std::net::IpAddr;

/// The header that names the revision.
pub const VERSION_HEADER: &str = "mcp-protocol-version";
const METHOD_HEADER: &str = "mcp-method";
const NAME_HEADER: &str = "mcp-name";

/// The names under which this server may be addressed: a page that was led here under another name by a
/// hostile DNS server is refused (2025-11-25, transports, security warning).
pub struct Hosts(Vec<String>);

impl Hosts {
    /// This machine's own names, and the address that is listened on.
    pub fn of(address: IpAddr) -> Self {
        Self(vec!["localhost".into(), "127.0.0.1".into(), "::1".into(), address.to_string()])
    }

    /// 403 if `Host` or `Origin` names another.
    pub fn check(&self, request: &Request) -> Result<(), Response> {
        let host = request.header("host").ok_or_else(|| Response::text(400, "Host is missing"))?;
        if !self.knows(host) {
            return Err(Response::text(403, "Host names another server"));
        }
        let Some(origin) = request.header("origin") else { return Ok(()) };
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if authority.is_some_and(|authority| self.knows(authority)) {
            return Ok(());
        }
        Err(Response::text(403, "Origin is not allowed"))
    }

    fn knows(&self, authority: &str) -> bool {
        host_of(authority).is_some_and(|host| self.0.iter().any(|known| known.eq_ignore_ascii_case(host)))
    }
}

/// The host of `host[:port]`, without the brackets of an IPv6 address.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = if port.is_empty() { "0" } else { port.strip_prefix(':')? };
    (!host.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(host)
}

/// Which forms of an answer the client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// `application/json`.
    pub json: bool,
    /// `text/event-stream`.
    pub stream: bool,
}

/// Reads `Accept`; a client that says nothing takes anything.
pub fn accepted(request: &Request) -> Accepted {
    let accept = request.header("accept").unwrap_or("*/*").to_ascii_lowercase();
    let mut types = accept.split(',').map(|part| part.split(';').next().unwrap_or_default().trim());
    let mut accepted = Accepted { json: false, stream: false };
    types.by_ref().for_each(|media| {
        accepted.json |= matches!(media, "application/json" | "application/*" | "*/*");
        accepted.stream |= matches!(media, "text/event-stream" | "text/*" | "*/*");
    });
    accepted
}

/// Whether the body is said to be JSON.
pub fn sends_json(request: &Request) -> bool {
    let media = request.header("content-type").and_then(|value| value.split(';').next());
    media.is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
}

/// Whether the headers alone speak of the modern era.
pub fn is_modern(request: &Request) -> bool {
    request.header(METHOD_HEADER).is_some()
        || request.header(VERSION_HEADER).is_some_and(|version| Revision::modern(version).is_some())
}

/// Compares the headers of a modern request with its body (2026-07-28, Streamable HTTP, server validation).
pub fn check_modern(request: &Request, body: &rpc::Request) -> Result<(), RpcError> {
    let version = request.header(VERSION_HEADER).ok_or_else(|| missing("MCP-Protocol-Version", body))?;
    let method = request.header(METHOD_HEADER).ok_or_else(|| missing("Mcp-Method", body))?;
    // Without a version in the body the metadata is incomplete, which has an error of its own.
    if lifecycle::version(body).is_some_and(|stated| stated != version) {
        return Err(mismatch("MCP-Protocol-Version", version));
    }
    if method != body.method {
        return Err(mismatch("Mcp-Method", method));
    }
    let key = match body.method.as_str() {
        "tools/call" | "prompts/get" => "name",
        "resources/read" => "uri",
        _ => return Ok(()),
    };
    let named = body.params.get(key).and_then(Value::as_str);
    match (request.header(NAME_HEADER), named) {
        (None, _) => Err(missing("Mcp-Name", body)),
        (Some(header), named) if decode(header).as_deref() == named && named.is_some() => Ok(()),
        (Some(header), _) => Err(mismatch("Mcp-Name", header)),
    }
}

fn missing(header: &str, body: &rpc::Request) -> RpcError {
    let error = RpcError::new(ErrorKind::HeaderMismatch, format!("the header {header} is missing"));
    if body.method != "initialize" {
        return error;
    }
    // The only thing that a legacy client can show to its user.
    let supported = revision::names(&Revision::MODERN);
    let message = format!("{}; the revisions spoken here are {supported}", error.message);
    RpcError { message, ..error }.with_data(json!({ "supported": supported }))
}

fn mismatch(header: &str, value: &str) -> RpcError {
    let message = format!("the header {header}, {value:?}, does not match the body");
    RpcError::new(ErrorKind::HeaderMismatch, message)
}

/// A header's value, decoded if it is marked as Base64 (2026-07-28, Streamable HTTP, value encoding).
fn decode(value: &str) -> Option<String> {
    let Some(encoded) = value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) else {
        return Some(value.to_owned());
    };
    String::from_utf8(base64(encoded)?).ok()
}

/// Decodes Base64 with padding (RFC 4648, section 4).
fn base64(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 {
        return None;
    }
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    // What is left over of the last digit is zero in a canonical encoding.
    (held < 6 && bits & ((1 << held) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::request_with;

    #[test]
    fn only_this_machines_names_are_answered_to() {
        let hosts = Hosts::of("10.1.2.3".parse().unwrap());
        let status = |headers: &[(&str, &str)]| hosts.check(&request_with(headers)).err().map(|r| r.status);
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:3000", "[::1]", "[::1]:80", "10.1.2.3:1"] {
            assert_eq!(status(&[("host", host)]), None, "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost:x", "", "[::1"]
        {
            assert_eq!(status(&[("host", host)]), Some(403), "{host}");
        }
        assert_eq!(status(&[]), Some(400));
        for origin in ["null", "https://evil.example", "file://localhost", "http://localhost@evil.example"] {
            assert_eq!(status(&[("host", "localhost"), ("origin", origin)]), Some(403), "{origin}");
        }
        assert_eq!(status(&[("host", "localhost"), ("origin", "http://localhost:5173")]), None);
    }

    #[test]
    fn accept_chooses_the_form() {
        let form = |accept: &str| {
            let accepted = accepted(&request_with(&[("accept", accept)]));
            (accepted.json, accepted.stream)
        };
        assert_eq!(form("application/json, text/event-stream"), (true, true));
        assert_eq!(form("Application/JSON;q=0.9"), (true, false));
        assert_eq!(form("text/event-stream"), (false, true));
        assert_eq!(form("*/*"), (true, true));
        assert_eq!(form("text/html"), (false, false));
    }

    #[test]
    fn base64_is_decoded_as_the_specifications_examples_say() {
        for (encoded, expected) in [
            ("=?base64?SGVsbG8sIOS4lueVjA==?=", Some("Hello, 世界")),
            ("=?base64?IHBhZGRlZCA=?=", Some(" padded ")),
            ("=?base64?bGluZTEKbGluZTI=?=", Some("line1\nline2")),
            ("=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?=", Some("=?base64?literal?=")),
            ("=?BASE64?SGVsbG8=?=", Some("=?BASE64?SGVsbG8=?=")),
            ("echo", Some("echo")),
            ("=?base64?SGVsbG8?=", None),
            ("=?base64?SGVsbG9=?=", None),
            ("=?base64?====?=", None),
            ("=?base64?/////w==?=", None),
        ] {
            assert_eq!(decode(encoded).as_deref(), expected, "{encoded}");
        }
    }
}
