//! Port 5255: to the HTTP port of a server on guest loopback; and whether it listens there.

use crate::agent::Agent;
use crate::{failure, inventory};
use casemate_link::Incoming;
use casemate_proto::control::{Failure, FailureCode, ServerState, Transport};
use casemate_proto::limits::HANDSHAKE_TIMEOUT;
use casemate_proto::mux::ResetCode;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// How long a server that has just been started may take to listen; the host waits a little longer.
const PATIENCE: Duration = HANDSHAKE_TIMEOUT.saturating_sub(Duration::from_secs(1));
const TRY_AGAIN: Duration = Duration::from_millis(25);
const BUFFER_BYTES: usize = 64 << 10;

/// How long a server that listens on other ports may take to listen on its own: some open several.
const ELSEWHERE: Duration = Duration::from_secs(15);

/// The most ports that are named where the right one is not among them.
const NAMED: usize = 8;

/// Carries one connection, starting the server if none was started.
pub async fn carry(agent: &Agent, incoming: Incoming) {
    let port = match port_of(agent) {
        Ok(port) => port,
        Err(failure) => return incoming.refuse(ResetCode::Refused, &failure.message),
    };
    let mut server = match connect(agent, port).await {
        Ok(server) => server,
        Err(reason) => return incoming.refuse(ResetCode::Refused, &reason),
    };
    let mut client = incoming.accept();
    // How a connection ends is between its two ends.
    let _ =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES).await;
}

/// `listen`: starts the server, should it not run, and waits until it listens on its port.
pub async fn listen(agent: &Agent, patience: Duration) -> Result<(), Failure> {
    let port = port_of(agent)?;
    let process = {
        let turn = agent.server.turn().await;
        if matches!(agent.server.state(), ServerState::Exited(_)) {
            return Err(failure::new(FailureCode::State, "the server has ended"));
        }
        agent.server.ensure(&turn)?
    };
    let until = Instant::now() + patience;
    let mut elsewhere_since = None;
    loop {
        let listening = listening(agent);
        if reachable(&listening, port).is_some() {
            return Ok(());
        }
        let now = Instant::now();
        let since = *elsewhere_since.get_or_insert(now);
        if listening.is_empty() {
            elsewhere_since = None;
        }
        if now >= until || (!listening.is_empty() && now.duration_since(since) >= ELSEWHERE) {
            return Err(failure::new(FailureCode::Deadline, describe(&listening, port)));
        }
        tokio::select! {
            () = sleep(TRY_AGAIN) => {}
            () = process.over() => return Err(failure::new(FailureCode::State, "the server has ended")),
        }
    }
}

fn port_of(agent: &Agent) -> Result<u16, Failure> {
    match agent.server.launch()?.transport {
        Transport::Http { port } => Ok(port),
        Transport::Stdio => {
            Err(failure::new(FailureCode::State, "the server is reached by its conversation"))
        }
    }
}

async fn connect(agent: &Agent, port: u16) -> Result<TcpStream, String> {
    let process = {
        let turn = agent.server.turn().await;
        match agent.server.state() {
            // A server of this kind serves all its clients with one process; whether its end is to be followed
            // by another is for the host to say.
            ServerState::Exited(_) => return Err("the server has ended".to_owned()),
            _ => agent.server.ensure(&turn).map_err(|failure| failure.message)?,
        }
    };
    let until = Instant::now() + PATIENCE;
    loop {
        // Where it listens is looked up: a server may be bound to one family of addresses alone.
        let listening = listening(agent);
        let address = reachable(&listening, port);
        match address {
            Some(address) => match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Answers are written in pieces, and none is to wait for the next.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < until => {}
                Err(error) => return Err(format!("connect to the server's port {port}: {error}")),
            },
            None if Instant::now() < until => {}
            None => return Err(describe(&listening, port)),
        }
        tokio::select! {
            () = sleep(TRY_AGAIN) => {}
            () = process.over() => return Err("the server has ended".to_owned()),
        }
    }
}

/// Where connections are taken, but for the ways out of the machine: those the agent opened itself.
fn listening(agent: &Agent) -> Vec<SocketAddr> {
    let mut listening = inventory::listening();
    listening.retain(|&address| !agent.egress.is_way(address));
    listening
}

/// The address by which the agent reaches a port, of those that are listened on.
fn reachable(listening: &[SocketAddr], port: u16) -> Option<SocketAddr> {
    let on_port = listening.iter().filter(|address| address.port() == port);
    let mut ways = on_port.filter_map(|address| {
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip if ip.to_canonical().is_loopback() => ip,
            // There is no interface for another.
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    });
    ways.next()
}

/// That nobody listens on a port, and who listens on which.
fn describe(listening: &[SocketAddr], port: u16) -> String {
    if listening.is_empty() {
        return format!("it does not listen on port {port}, nor on any other");
    }
    let mut others: Vec<String> = listening.iter().map(SocketAddr::to_string).collect();
    others.dedup();
    let more = if others.len() > NAMED { " and others" } else { "" };
    others.truncate(NAMED);
    format!("it does not listen on port {port}, but on {}{more}", others.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_server_is_reached_by_the_loopback_address_that_it_is_bound_to() {
        let way = |texts: &[&str]| reachable(&addresses(texts), 80).map(|address| address.to_string());
        assert_eq!(way(&["127.0.0.1:80"]).as_deref(), Some("127.0.0.1:80"));
        assert_eq!(way(&["0.0.0.0:81", "0.0.0.0:80"]).as_deref(), Some("127.0.0.1:80"));
        assert_eq!(way(&["[::]:80"]).as_deref(), Some("[::1]:80"));
        assert_eq!(way(&["[::1]:80", "127.0.0.1:80"]).as_deref(), Some("[::1]:80"));
        assert_eq!(way(&["127.0.0.2:80"]).as_deref(), Some("127.0.0.2:80"));
        assert_eq!(way(&["10.0.0.1:80", "127.0.0.1:8080"]), None);
    }

    #[test]
    fn a_wrong_port_is_told_with_the_right_ones() {
        assert_eq!(describe(&[], 80), "it does not listen on port 80, nor on any other");
        let two = addresses(&["127.0.0.1:3001", "[::1]:3002"]);
        assert_eq!(describe(&two, 80), "it does not listen on port 80, but on 127.0.0.1:3001, [::1]:3002");
        let many: Vec<SocketAddr> =
            (1..100).map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).collect();
        assert!(describe(&many, 200).ends_with("127.0.0.1:8 and others"));
    }
}
