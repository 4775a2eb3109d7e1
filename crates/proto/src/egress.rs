//! What a guest asks for on port 5254: a connection to the outside, where its machine may have any.
//!
//! ```text
//! agent                               supervisor
//!  CONNECT api.example.com:443\n  ──>
//!  FORWARD 2222\n                 ──>             a forward of the configuration; the host knows its target
//!                                 <──  OK\n       the stream begins with the next byte
//!                                 <──  ERR denied it is not on the allow list\n
//! ```
//!
//! A target is checked here for being one, and nowhere here for being allowed.

mod entry;

pub use entry::{Allow, Forward, InvalidEntry};

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// The port on guest loopback at which the agent offers its proxy.
pub const PROXY_PORT: u16 = 5254;

/// The one name that is not looked up.
pub const LOCALHOST: &str = "localhost";

/// The longest host name in bytes (RFC 1035, section 2.3.4, as text).
const NAME_BYTES: usize = 253;

/// The longest request line in bytes, with its newline.
pub const REQUEST_BYTES: usize = NAME_BYTES + 16;

/// The longest reason in bytes.
const REASON_BYTES: usize = 400;

/// The longest answer line in bytes, with its newline.
pub const ANSWER_BYTES: usize = REASON_BYTES + 32;

/// Why a text names no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// It is an address of the web.
    #[error("it is a URL; write its HOST:PORT, such as example.com:443")]
    Url,
    /// There is no port.
    #[error("no port in it; write HOST:PORT")]
    NoPort,
    /// The port is none.
    #[error("its port is no number from 1 to 65535")]
    Port,
    /// The host is neither a name nor an address.
    #[error(
        "its host is neither a name (letters, digits, '-', '_' and dots) nor an address; \
         an IPv6 address stands in brackets"
    )]
    Host,
}

/// A host as it is asked for: an address, or a name that the host of the machine resolves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address; an IPv4 address that is written as an IPv6 one is the IPv4 address.
    Address(IpAddr),
    /// A name in lowercase without a dot at its end.
    Name(String),
}

impl FromStr for Host {
    type Err = InvalidTarget;
    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        if let Some(inside) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = inside.parse().map_err(|_| InvalidTarget::Host)?;
            return Ok(Self::Address(IpAddr::V6(address).to_canonical()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(IpAddr::V4(address)));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if is_name(name) { Ok(Self::Name(name.to_ascii_lowercase())) } else { Err(InvalidTarget::Host) }
    }
}

/// A name whose last label is a number is none: resolvers take such for an address in an old spelling.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"));
    name.len() <= NAME_BYTES && name.split('.').all(is_label) && !is_number
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A host and a TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port, not 0.
    pub port: u16,
}

impl FromStr for Target {
    type Err = InvalidTarget;
    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        if text.contains("://") {
            return Err(InvalidTarget::Url);
        }
        let (host, port) = text.rsplit_once(':').ok_or(InvalidTarget::NoPort)?;
        // What is left of an IPv6 address without brackets.
        if host.contains(':') && !host.starts_with('[') {
            return Err(InvalidTarget::Host);
        }
        Ok(Self { host: host.parse()?, port: parse_port(port).ok_or(InvalidTarget::Port)? })
    }
}

/// Digits and nothing else, and not zero.
pub fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port: &u16| digits && port != 0)
}

as_text!(Target => InvalidTarget);

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What a guest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A connection to a target of its choice.
    Connect(Target),
    /// A connection to where the configuration forwards this port of guest loopback to.
    Forward(u16),
}

/// Why a line is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// It begins with no known word.
    #[error("request is neither CONNECT nor FORWARD")]
    Word,
    /// What is asked for is no target.
    #[error("target cannot be used")]
    Target(#[from] InvalidTarget),
}

impl Request {
    /// Reads a line without its newline.
    pub fn parse(line: &str) -> Result<Self, InvalidRequest> {
        match line.split_once(' ') {
            Some(("CONNECT", target)) => Ok(Self::Connect(target.parse()?)),
            Some(("FORWARD", port)) => Ok(Self::Forward(parse_port(port).ok_or(InvalidTarget::Port)?)),
            _ => Err(InvalidRequest::Word),
        }
    }
}

impl fmt::Display for Request {
    /// The line without its newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(target) => write!(f, "CONNECT {target}"),
            Self::Forward(port) => write!(f, "FORWARD {port}"),
        }
    }
}

/// Why a guest gets no connection, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The policy forbids it.
    Denied,
    /// The target does not resolve, or does not answer.
    Unreachable,
    /// A bound on connections is reached; later it may succeed.
    Busy,
    /// The request is none.
    Malformed,
}

impl Refusal {
    const ALL: [Self; 4] = [Self::Denied, Self::Unreachable, Self::Busy, Self::Malformed];

    fn word(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
            Self::Busy => "busy",
            Self::Malformed => "malformed",
        }
    }
}

/// What the host says to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The stream is the connection from now on.
    Open,
    /// There is no connection.
    Refused {
        /// Why, for programs.
        code: Refusal,
        /// Why, for people; one line.
        reason: String,
    },
}

impl Answer {
    /// A refusal whose reason is cut to one line of bounded length.
    pub fn refused(code: Refusal, reason: &str) -> Self {
        let mut reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES));
        Self::Refused { code, reason }
    }

    /// Reads a line without its newline; nothing for what is no answer.
    pub fn parse(line: &str) -> Option<Self> {
        if line == "OK" {
            return Some(Self::Open);
        }
        let (word, reason) = line.strip_prefix("ERR ")?.split_once(' ')?;
        let code = Refusal::ALL.into_iter().find(|code| code.word() == word)?;
        Some(Self::refused(code, reason))
    }
}

impl fmt::Display for Answer {
    /// The line without its newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("OK"),
            Self::Refused { code, reason } => write!(f, "ERR {} {reason}", code.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_target_is_read_as_it_is_written() {
        for text in ["a.example:1", "127.0.0.1:65535", "[2001:db8::1]:443", "_srv.a-b.example:22"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("API.Example.:443".parse::<Target>().unwrap().to_string(), "api.example:443");
        // Two spellings of one address are one address.
        assert_eq!("[::ffff:10.0.0.1]:1".parse::<Target>(), "10.0.0.1:1".parse());
    }

    #[test]
    fn what_resolvers_would_take_for_an_address_is_no_name() {
        for host in ["2130706433", "127.1", "0x7f000001", "0X7F.1", "a.0x1", "1.2.3.4.5", "017700000001"] {
            assert_eq!(format!("{host}:80").parse::<Target>(), Err(InvalidTarget::Host), "{host}");
        }
    }

    #[test]
    fn nonsense_is_no_target() {
        for text in [
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            ":1",
            "a b:1",
            "a\r\n:1",
            "ä:1",
            "::1:80",
            "[::1:80",
            "[::1%1]:80",
            "u@h:1",
            "a..b:1",
            ".:1",
            "*.a:1",
            "[127.0.0.1]:1",
            "a/b:1",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("{}:1", "a".repeat(64)).parse::<Target>().is_err());
        assert!(format!("{}:1", "a.".repeat(130)).parse::<Target>().is_err());
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        let requests = [Request::Connect("a.example:1".parse().unwrap()), Request::Forward(22)];
        for request in requests {
            assert_eq!(Request::parse(&request.to_string()), Ok(request));
        }
        assert_eq!(Request::parse("GET a:1"), Err(InvalidRequest::Word));
        let refused = Answer::refused(Refusal::Denied, "not\nallowed");
        for answer in [Answer::Open, refused] {
            assert_eq!(Answer::parse(&answer.to_string()), Some(answer));
        }
        assert_eq!(Answer::parse("ERR nothing known"), None);
        assert_eq!(Answer::parse("OK "), None);
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused_and_fits_its_bound(line in "\\PC{0,600}") {
            if let Ok(request) = Request::parse(&line) {
                prop_assert!(request.to_string().len() < REQUEST_BYTES);
            }
            prop_assert!(Answer::refused(Refusal::Malformed, &line).to_string().len() < ANSWER_BYTES);
        }
    }
}
