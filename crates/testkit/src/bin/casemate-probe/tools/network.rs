//! The tool that tries to reach out.

use super::arguments::{Argument, Kind};
use super::{Arguments, Failure, Hints, LOOKS, Reply, Tool};
use crate::call::Call;
use serde_json::json;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// How long a name server may take.
const NAME_SERVER_PATIENCE: Duration = Duration::from_secs(2);

/// Where a connection goes.
pub const HOST: Argument = Argument::required(
    "host",
    Kind::Text,
    "An address, or a name that /etc/hosts or a name server on loopback knows.",
);
pub const PORT: Argument = Argument::required("port", Kind::Integer(1, 65_535), "The port.");

pub const CONNECT: Tool = Tool {
    name: "connect",
    title: "Connect",
    description: "Tries a TCP connection and says what happened: connected, refused, timeout, unreachable, \
                  unresolved, denied or failed.",
    arguments: &[
        HOST,
        PORT,
        Argument::integer("timeout_ms", (1, 60_000), 5000, "How long to try, in milliseconds."),
    ],
    hints: Hints { open_world: true, ..LOOKS },
    slow: true,
    run: connect,
};

fn connect(_: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let (host, port) = (arguments.text("host"), arguments.integer("port") as u16);
    let timeout = Duration::from_millis(arguments.size("timeout_ms") as u64);
    let started = Instant::now();
    let address = resolve(host).map(|address| SocketAddr::new(address, port));
    let (outcome, error) = match address {
        None => ("unresolved", None),
        Some(address) => match TcpStream::connect_timeout(&address, timeout) {
            Ok(_) => ("connected", None),
            Err(error) => (outcome(&error), Some(error.to_string())),
        },
    };
    Ok(Reply::Json(json!({
        "host": host,
        "port": port,
        "outcome": outcome,
        "address": address.map(|address| address.to_string()),
        "error": error,
        "elapsedMs": started.elapsed().as_millis() as u64,
    })))
}

/// Reads an address, or looks the name up in `/etc/hosts` and then at a name server on loopback. Not the C library's resolver: linked statically it
/// would be a tenth of the program, and it wants shared libraries that a machine need not have.
pub fn resolve(host: &str) -> Option<IpAddr> {
    let known = || lookup(&std::fs::read_to_string("/etc/hosts").ok()?, host);
    host.parse().ok().or_else(known).or_else(|| ask(host))
}

/// Asks the name server for an address of IPv4 (RFC 1035, section 4).
fn ask(name: &str) -> Option<IpAddr> {
    let mut question = vec![0x70, 0x72, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    socket.connect((Ipv4Addr::LOCALHOST, 53)).ok()?;
    socket.set_read_timeout(Some(NAME_SERVER_PATIENCE)).ok()?;
    socket.send(&question).ok()?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    let has_answers = answer[..2] == question[..2] && answer[3] & 15 == 0 && answer[7] > 0;
    // The last record; its data is an address of four bytes.
    match answer[..length] {
        [.., 0, 4, a, b, c, d] if has_answers => Some(Ipv4Addr::new(a, b, c, d).into()),
        _ => None,
    }
}

fn lookup(hosts: &str, name: &str) -> Option<IpAddr> {
    hosts.lines().find_map(|line| {
        let line = line.split_once('#').map_or(line, |(line, _)| line);
        let (address, names) = line.trim().split_once(char::is_whitespace)?;
        let named = names.split_whitespace().any(|known| known.eq_ignore_ascii_case(name));
        named.then(|| address.parse().ok()).flatten()
    })
}

fn outcome(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::TimedOut => "timeout",
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable => {
            "unreachable"
        }
        ErrorKind::PermissionDenied => "denied",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_in_any_column_and_never_in_comments() {
        let hosts = "# 10.0.0.9 ghost\n127.0.0.1\tlocalhost LOCAL # alias\n::1 six\nnonsense six2\n";
        assert_eq!(lookup(hosts, "local"), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(lookup(hosts, "six"), "::1".parse().ok());
        for unknown in ["ghost", "alias", "six2", "127.0.0.1"] {
            assert_eq!(lookup(hosts, unknown), None);
        }
    }
}
