//! The heads of requests that a confined program sends to the proxy (RFC 9112, sections 3.2.2 and 3.2.3).

use super::Endpoint;

/// The largest head that is read.
pub(super) const HEAD_BYTES: usize = 16 << 10;

/// What a head asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A tunnel to a host and port (`CONNECT`).
    Tunnel(Endpoint),
    /// A plain request to a host, with the head as that host is to receive it.
    Forward(Endpoint, Vec<u8>),
}

/// Where the head in `bytes` ends, if it has arrived.
pub(super) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Reads a complete head; nothing for what is no proxy request.
pub(super) fn parse(head: &[u8]) -> Option<Request> {
    let text = std::str::from_utf8(head).ok()?;
    let (line, fields) = text.split_once("\r\n")?;
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !version.starts_with("HTTP/1.") {
        return None;
    }
    if method == "CONNECT" {
        return Endpoint::parse(target, None).map(Request::Tunnel);
    }
    let after = target.strip_prefix("http://")?;
    let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
    let endpoint = Endpoint::parse(authority, Some(80))?;
    let path = if path.is_empty() { "/" } else { path };
    // One request a connection: the answer's end is the connection's.
    let mut rewritten = format!("{method} {path} {version}\r\nConnection: close\r\n");
    for field in fields.split("\r\n") {
        let name = field.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if !matches!(name.as_str(), "connection" | "proxy-connection" | "keep-alive" | "proxy-authorization")
        {
            rewritten.push_str(field);
            rewritten.push_str("\r\n");
        }
    }
    // Splitting has turned the head's end into two empty fields, of which the blank line is one.
    rewritten.truncate(rewritten.trim_end_matches("\r\n").len());
    rewritten.push_str("\r\n\r\n");
    Some(Request::Forward(endpoint, rewritten.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(host: &str, port: u16) -> Endpoint {
        Endpoint { host: host.into(), port }
    }

    #[test]
    fn tunnels_and_plain_requests_are_read() {
        assert_eq!(
            parse(b"CONNECT Registry.Example:443 HTTP/1.1\r\nHost: other\r\n\r\n"),
            Some(Request::Tunnel(endpoint("registry.example", 443)))
        );
        let head = b"GET http://a.example:81/x?y HTTP/1.1\r\nHost: a.example:81\r\nProxy-Connection: keep-alive\r\n\r\n";
        let forwarded = b"GET /x?y HTTP/1.1\r\nConnection: close\r\nHost: a.example:81\r\n\r\n".to_vec();
        assert_eq!(parse(head), Some(Request::Forward(endpoint("a.example", 81), forwarded)));
        let bare = b"GET http://a.example HTTP/1.1\r\n\r\n";
        let forwarded = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_vec();
        assert_eq!(parse(bare), Some(Request::Forward(endpoint("a.example", 80), forwarded)));
    }

    #[test]
    fn anything_else_is_no_request() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "CONNECT host HTTP/1.1\r\n\r\n",
            "CONNECT a:1@b:2 HTTP/1.1\r\n\r\n",
            "CONNECT a:99999 HTTP/1.1\r\n\r\n",
            "GET http://u@h/ HTTP/1.1\r\n\r\n",
            "\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\n\r\n",
            "CONNECT a:1 HTTP/2\r\n\r\n",
            "GET http:///x HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(parse(head.as_bytes()), None, "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn any_head_is_read_or_refused(head in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&head);
            prop_assert!(head_end(&head).is_none_or(|end| end <= head.len()));
        }

        #[test]
        fn a_forwarded_head_has_one_end(fields in "([A-Za-z-]{1,12}: ?[ -~]{0,20}\r\n){0,5}") {
            let head = format!("GET http://h.example/p HTTP/1.1\r\n{fields}\r\n");
            let Some(Request::Forward(_, forwarded)) = parse(head.as_bytes()) else {
                return Err(TestCaseError::fail("not read"));
            };
            prop_assert_eq!(head_end(&forwarded), Some(forwarded.len()));
        }
    }
}
