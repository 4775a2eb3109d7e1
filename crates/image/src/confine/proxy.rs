//! The confined program's only way out: an HTTP proxy that knows the registries' hosts and ports and nothing
//! else. It runs outside the wall, on a socket made inside.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::request::{self, HEAD_BYTES, Request};

const CONNECTIONS: usize = 128;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection on which neither side says anything for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How many refused addresses are remembered.
const REFUSED_KEPT: usize = 100;

/// A host and port that a confined program may reach.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The host's name, in lowercase, or its address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl Endpoint {
    /// Where requests to `url` (`http` or `https`) go.
    pub fn of_url(url: &str) -> Option<Endpoint> {
        let (scheme, rest) = url.split_once("://")?;
        let port = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let authority = rest.split(['/', '?', '#']).next()?;
        // Credentials in an address are the installer's business, not the proxy's.
        Endpoint::parse(authority.rsplit('@').next()?, Some(port))
    }

    /// Reads `HOST[:PORT]`; an IPv6 address stands in brackets.
    pub(super) fn parse(authority: &str, default_port: Option<u16>) -> Option<Endpoint> {
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = port.map_or(default_port, |port| port.parse().ok())?;
        let known = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(known) {
            return None;
        }
        Some(Endpoint { host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The proxy of one confined program.
pub(super) struct Proxy<'a> {
    listener: TcpListener,
    allowed: &'a [Endpoint],
    refused: Mutex<BTreeSet<String>>,
    closed: AtomicBool,
    open: AtomicUsize,
}

impl<'a> Proxy<'a> {
    pub(super) fn new(listener: OwnedFd, allowed: &'a [Endpoint]) -> Self {
        Self {
            listener: listener.into(),
            allowed,
            refused: Mutex::default(),
            closed: AtomicBool::new(false),
            open: AtomicUsize::new(0),
        }
    }

    /// Serves until [`close`](Self::close); returns when the last connection has ended.
    pub(super) fn serve(&self) {
        std::thread::scope(|scope| {
            while let Ok((client, _)) = self.listener.accept() {
                if self.closed.load(Ordering::Acquire) {
                    break;
                }
                if self.open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
                    self.open.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                scope.spawn(move || {
                    // What goes wrong on a connection is the confined program's to report.
                    let _ = self.connection(client);
                    self.open.fetch_sub(1, Ordering::AcqRel);
                });
            }
        });
    }

    /// Makes `serve` end.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // On Linux this wakes a pending `accept` with an error.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }

    /// Addresses that were asked for and refused.
    pub(super) fn refused(&self) -> BTreeSet<String> {
        self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn connection(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(IDLE_TIMEOUT))?;
        client.set_write_timeout(Some(IDLE_TIMEOUT))?;
        let (head, rest) = read_head(&mut client)?;
        let (endpoint, forward) = match request::parse(&head) {
            Some(Request::Tunnel(endpoint)) => (endpoint, None),
            Some(Request::Forward(endpoint, head)) => (endpoint, Some(head)),
            None => return answer(&mut client, "400 Bad Request"),
        };
        if !self.allowed.contains(&endpoint) {
            let mut refused = self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if refused.len() < REFUSED_KEPT {
                refused.insert(endpoint.to_string());
            }
            drop(refused);
            return answer(&mut client, "403 Forbidden");
        }
        let Ok(mut server) = connect(&endpoint) else {
            return answer(&mut client, "502 Bad Gateway");
        };
        match forward {
            Some(head) => server.write_all(&head)?,
            None => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?,
        }
        server.write_all(&rest)?;
        pump(&client, &server)
    }
}

/// Reads up to the end of a head; what came after it is returned too.
fn read_head(client: &mut TcpStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = request::head_end(&bytes) {
            let rest = bytes.split_off(end);
            return Ok((bytes, rest));
        }
        if bytes.len() > HEAD_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match client.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

fn answer(client: &mut TcpStream, status: &str) -> io::Result<()> {
    write!(client, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn connect(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for address in (endpoint.host.as_str(), endpoint.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
                stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn pump(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut { client }, &mut { server });
            // A client that has gone wants no more of the answer either: installers keep a tunnel open on
            // both sides for as long as they use it.
            let _ = server.shutdown(Shutdown::Both);
        });
        let copied = io::copy(&mut { server }, &mut { client });
        let _ = client.shutdown(Shutdown::Both);
        copied.map(drop)
    })
}
