//! The heads of requests to the proxy (RFC 9112, section 3.2), read strictly: what two readers could take
//! for two different requests is refused (section 11.2).

use casemate_proto::egress::Target;

/// The largest head that is read, in bytes.
pub const HEAD_BYTES: usize = 32 << 10;

/// What a head asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// A tunnel (`CONNECT`).
    Tunnel(Target),
    /// A plain request.
    Forward {
        /// To whom.
        target: Target,
        /// The head as that server is to receive it.
        head: Vec<u8>,
        /// What follows it.
        body: Body,
    },
}

/// How a body's end is known (section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There are so many bytes.
    Length(u64),
    /// It comes in chunks.
    Chunked,
}

/// Why a head is refused, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadHead(pub &'static str);

/// Fields that are between a client and its proxy (section 7.6.1 of RFC 9110).
const OWN: [&str; 7] =
    ["connection", "proxy-connection", "keep-alive", "proxy-authorization", "te", "upgrade", "host"];

/// Where the head in `bytes` ends, if it has arrived.
pub fn end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Reads a complete head.
pub fn parse(head: &[u8]) -> Result<Head, BadHead> {
    let text = std::str::from_utf8(head).map_err(|_| BadHead("the head is no UTF-8"))?;
    let text = text.strip_suffix("\r\n\r\n").ok_or(BadHead("the head does not end"))?;
    let mut lines = text.split("\r\n");
    // Bare line ends, and characters at which some readers stop.
    if lines.clone().any(|line| line.chars().any(|c| c.is_control() && c != '\t')) {
        return Err(BadHead("there is a control character in the head"));
    }
    let line = lines.next().unwrap_or_default();
    if line.contains('\t') {
        return Err(BadHead("there is a control character in the first line"));
    }
    let words: Vec<&str> = line.split(' ').collect();
    let &[method, target, "HTTP/1.0" | "HTTP/1.1"] = &words[..] else {
        return Err(BadHead("the first line is no request of HTTP/1"));
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(BadHead("the method is none"));
    }
    let fields = lines.map(field).collect::<Result<Vec<_>, _>>()?;
    if method == "CONNECT" {
        return target.parse().map(Head::Tunnel).map_err(|_| BadHead("CONNECT needs HOST:PORT"));
    }
    let Some(after) = strip_scheme(target) else {
        return Err(BadHead("a proxy is asked for http:// addresses, or with CONNECT"));
    };
    let (authority, path) = after.split_at(after.find(['/', '?', '#']).unwrap_or(after.len()));
    let has_port = !authority.ends_with(']') && authority.contains(':');
    let target: Target = match has_port {
        true => authority.parse(),
        false => format!("{authority}:80").parse(),
    }
    .map_err(|_| BadHead("the address names no host"))?;
    if path.contains('#') {
        return Err(BadHead("there is a fragment in the address"));
    }
    let body = body(&fields)?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    // The server learns from the address whom it is asked as, whatever the client's own field says. One
    // request a connection: the answer's end is the connection's.
    let mut rewritten =
        format!("{method} {slash}{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n");
    let named: Vec<String> = fields
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
        .flat_map(|(_, value)| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    for (name, value) in fields {
        let lowercase = name.to_ascii_lowercase();
        let is_framing = matches!(lowercase.as_str(), "content-length" | "transfer-encoding");
        if is_framing || !(OWN.contains(&lowercase.as_str()) || named.contains(&lowercase)) {
            rewritten.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    rewritten.push_str("\r\n");
    Ok(Head::Forward { target, head: rewritten.into_bytes(), body })
}

fn strip_scheme(target: &str) -> Option<&str> {
    const SCHEME: &str = "http://";
    let scheme = target.get(..SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| &target[SCHEME.len()..])
}

/// Section 5.6.2 of RFC 9110.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn field(line: &str) -> Result<(&str, &str), BadHead> {
    let (name, value) = line.split_once(':').ok_or(BadHead("a field has no colon"))?;
    // Space before the name would continue the field before it; space after it, some readers forgive.
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(BadHead("the name of a field is none"));
    }
    Ok((name, value.trim_matches([' ', '\t'])))
}

fn body(fields: &[(&str, &str)]) -> Result<Body, BadHead> {
    let all = |wanted: &'static str| {
        fields.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value)
    };
    let (mut lengths, mut codings) = (all("content-length"), all("transfer-encoding"));
    let body = match (lengths.next(), codings.next()) {
        (None, None) => Body::Length(0),
        (Some(length), None) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            Body::Length(length.parse().map_err(|_| BadHead("the length of the body is none"))?)
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Body::Chunked,
        _ => return Err(BadHead("it is not clear where the body ends")),
    };
    if lengths.next().is_some() || codings.next().is_some() {
        return Err(BadHead("it is not clear where the body ends"));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(head: &str) -> Result<Head, BadHead> {
        parse(head.as_bytes())
    }

    fn forwarded(head: &str) -> (String, String, Body) {
        match read(head) {
            Ok(Head::Forward { target, head, body }) => {
                (target.to_string(), String::from_utf8(head).unwrap(), body)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tunnels_and_plain_requests_are_read() {
        let tunnel = read("CONNECT A.example:443 HTTP/1.1\r\nHost: other\r\n\r\n");
        assert_eq!(tunnel, Ok(Head::Tunnel("a.example:443".parse().unwrap())));
        let (target, head, body) = forwarded(
            "POST http://a.example:81/x?y HTTP/1.1\r\nhOst: evil.example\r\nProxy-Connection: keep-alive\r\n\
             Connection: x-secret, close\r\nX-Secret: 1\r\nAccept: *\r\nContent-Length: 3\r\n\r\n",
        );
        let expected = "POST /x?y HTTP/1.1\r\nHost: a.example:81\r\nConnection: close\r\nAccept: *\r\n\
                        Content-Length: 3\r\n\r\n";
        assert_eq!((target.as_str(), head.as_str(), body), ("a.example:81", expected, Body::Length(3)));
        let (target, head, _) = forwarded("GET HTTP://a.example?q HTTP/1.0\r\n\r\n");
        assert_eq!(target, "a.example:80");
        assert!(head.starts_with("GET /?q HTTP/1.1\r\nHost: a.example\r\n"), "{head}");
        assert_eq!(forwarded("GET http://[::1]/ HTTP/1.1\r\n\r\n").0, "[::1]:80");
        let chunked = "PUT http://a.example/ HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n";
        assert_eq!(forwarded(chunked).2, Body::Chunked);
        // Framing stays whatever else is said of it.
        let named =
            "PUT http://a.example/ HTTP/1.1\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\n";
        assert!(forwarded(named).1.contains("Content-Length: 2\r\n"));
    }

    #[test]
    fn what_could_be_read_as_two_requests_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "CONNECT host HTTP/1.1\r\n\r\n",
            "CONNECT a.example:1@b.example:2 HTTP/1.1\r\n\r\n",
            "GET http://u@h/ HTTP/1.1\r\n\r\n",
            "GET https://a.example/ HTTP/1.1\r\n\r\n",
            "GET http://a.example/ HTTP/2\r\n\r\n",
            "GET  http://a.example/ HTTP/1.1\r\n\r\n",
            "GET http://a.example/\tx HTTP/1.1\r\n\r\n",
            "GET http://a.example/x HTTP/1.1 \r\n\r\n",
            "GET http:///x HTTP/1.1\r\n\r\n",
            "GET http://a.example/\nX: y HTTP/1.1\r\n\r\n",
            "GET http://a.example/ HTTP/1.1\r\nX: a\nY: b\r\n\r\n",
            "GET http://a.example/ HTTP/1.1\r\nX: a\rY: b\r\n\r\n",
            "GET http://a.example/ HTTP/1.1\r\n folded: a\r\n\r\n",
            "GET http://a.example/ HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET http://a.example/ HTTP/1.1\r\nno colon\r\n\r\n",
            "PUT http://a.example/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "PUT http://a.example/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "PUT http://a.example/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "PUT http://a.example/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "PUT http://a.example/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
            "PUT http://a.example/ HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
            "PUT http://a.example/ HTTP/1.1\r\nContent-Length:\r\n\r\n",
            "PUT http://a.example/ HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert!(read(head).is_err(), "{head:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn any_head_is_read_or_refused(head in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&head);
            prop_assert!(end(&head).is_none_or(|end| end <= head.len()));
        }

        #[test]
        fn a_forwarded_head_has_one_end(fields in "([A-Za-z-]{1,12}: ?[ -~]{0,20}\r\n){0,5}") {
            if let Ok(Head::Forward { head, .. }) = read(&format!("GET http://h.example/p HTTP/1.1\r\n{fields}\r\n")) {
                prop_assert_eq!(end(&head), Some(head.len()));
                prop_assert!(parse_again(&head));
            }
        }
    }

    /// Whether a head's fields can be read once more.
    fn parse_again(head: &[u8]) -> bool {
        let text = std::str::from_utf8(head).unwrap();
        text.trim_end_matches("\r\n").split("\r\n").skip(1).all(|line| field(line).is_ok())
    }
}
