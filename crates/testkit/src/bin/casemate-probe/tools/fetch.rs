//! Tools that speak with what they reach: by hand, and as an HTTP client does that heeds the environment.

use super::answers::hex;
use super::arguments::{Argument, Kind};
use super::network::{HOST, PORT, resolve};
use super::{Arguments, Failure, Hints, Reply, Tool, VARIES};
use crate::call::Call;
use serde_json::json;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The most that is read.
const MOST_READ: u64 = 1 << 20;

/// How many redirections are followed.
const REDIRECTIONS: usize = 3;

/// An address of nobody's, in a private network.
const HOME: &str = "http://10.255.255.1/";

const OPEN_WORLD: Hints = Hints { open_world: true, ..VARIES };

pub const EXCHANGE: Tool = Tool {
    name: "exchange",
    title: "Exchange bytes",
    description: "Connects, sends bytes, and returns what comes back until the other side ends or nothing comes for \
                  a while.",
    arguments: &[
        HOST,
        PORT,
        Argument::required("send", Kind::Text, "What to send, in hexadecimal."),
        Argument::integer("timeout_ms", (1, 60_000), 2000, "How long to wait for more, in milliseconds."),
    ],
    hints: OPEN_WORLD,
    slow: true,
    run: exchange,
};

pub const FETCH: Tool = Tool {
    name: "fetch",
    title: "Fetch",
    description: "Gets an http:// address, over the proxy that http_proxy names unless no_proxy names the host, \
                  and follows redirections.",
    arguments: &[
        Argument::required("url", Kind::Text, "The address."),
        Argument::integer("timeout_ms", (1, 60_000), 10_000, "How long to wait for more, in milliseconds."),
    ],
    hints: OPEN_WORLD,
    slow: true,
    run: fetch,
};

fn exchange(_: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let (host, port) = (arguments.text("host"), arguments.integer("port") as u16);
    let sent =
        unhex(arguments.text("send")).ok_or_else(|| Failure::Tool("send is no hexadecimal".to_owned()))?;
    let patience = Duration::from_millis(arguments.size("timeout_ms") as u64);
    let failed = |error| Failure::system(&format!("exchange bytes with {host}:{port}"), error);
    let received = converse(host, port, &sent, patience).map_err(failed)?;
    Ok(Reply::Json(json!({
        "bytes": received.len(),
        "hex": hex(&received),
        "text": String::from_utf8_lossy(&received),
    })))
}

fn fetch(_: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let patience = Duration::from_millis(arguments.size("timeout_ms") as u64);
    let mut url = arguments.text("url").to_owned();
    let mut followed = Vec::new();
    loop {
        let (proxy, answer) =
            get(&url, patience).map_err(|error| Failure::system(&format!("fetch {url}"), error))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        let fields = head.lines().filter_map(|line| line.split_once(':'));
        let location =
            fields.filter(|(name, _)| name.eq_ignore_ascii_case("location")).map(|(_, to)| to.trim()).next();
        match (status, location) {
            (Some(300..=399), Some(to)) if followed.len() < REDIRECTIONS => {
                followed.push(std::mem::replace(&mut url, to.to_owned()));
            }
            _ => {
                return Ok(Reply::Json(json!({
                    "url": url,
                    "followed": followed,
                    "proxy": proxy,
                    "status": status,
                    "body": body,
                })));
            }
        }
    }
}

/// The proxy, if there is one, and the whole answer.
fn get(url: &str, patience: Duration) -> io::Result<(Option<String>, String)> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "no http:// address");
    let (authority, path) = split(url).ok_or_else(wrong)?;
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let direct = variable("no_proxy").is_some_and(|list| list.split(',').any(|entry| entry == host));
    let proxy = variable("http_proxy").filter(|_| !direct);
    let (peer, target) = match &proxy {
        Some(proxy) => (split(proxy).ok_or_else(wrong)?.0, url.to_owned()),
        None => (authority, path.to_owned()),
    };
    let (peer_host, peer_port) = match proxy {
        Some(_) => peer.rsplit_once(':').unwrap_or((peer, "80")),
        None => (host, port),
    };
    let peer_port = peer_port.parse().map_err(|_| wrong())?;
    let request = format!("GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    let received = converse(peer_host, peer_port, request.as_bytes(), patience)?;
    Ok((proxy, String::from_utf8_lossy(&received).into_owned()))
}

/// Tries to reach what no machine is allowed to; says how that went.
pub fn call_home() -> String {
    match get(HOME, Duration::from_secs(10)) {
        Ok((_, answer)) => answer.lines().next().unwrap_or("no answer").to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Authority and path of an address.
fn split(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    Some((authority, if path.is_empty() { "/" } else { path }))
}

fn converse(host: &str, port: u16, sent: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    let address = resolve(host).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "host is unknown"))?;
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(sent)?;
    let mut received = Vec::new();
    match (&stream).take(MOST_READ).read_to_end(&mut received) {
        // What came before is the answer, however it ended.
        Err(error) if received.is_empty() && error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(received),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some((digit(pair[0])? << 4 | digit(*pair.get(1)?)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_in_pairs() {
        assert_eq!(unhex("00fFa1"), Some(vec![0, 255, 0xa1]));
        assert_eq!((unhex(""), unhex("0"), unhex("0g")), (Some(vec![]), None, None));
    }

    #[test]
    fn addresses_are_split() {
        assert_eq!(split("http://a:1/x?y"), Some(("a:1", "/x?y")));
        assert_eq!((split("http://a"), split("https://a/")), (Some(("a", "/")), None));
    }
}
