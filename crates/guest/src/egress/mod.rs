//! The ways out of a machine, where its host gives it any: a proxy on loopback, and ports that lead to one
//! target each.
//!
//! ```text
//! program ── 127.0.0.1:5254 ── http, socks ─┐
//! program ── 127.0.0.1:N ───── (as it is) ──┼── way ══ port 5254 ══ host
//! program ── 192.52.193.x:N ── (as it is) ──┘
//!               └── names: what 127.0.0.1:53 says of a name
//! ```
//!
//! The host decides about each connection and makes it. What is refused here is only what could be
//! misunderstood on the way.

mod dns;
mod head;
mod http;
mod names;
mod socks;
mod way;

use crate::agent::Kernel;
use crate::log;
use crate::reaper::lock;
use casemate_link::Connector;
use casemate_proto::control;
use casemate_proto::egress::Request;
use names::Names;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use way::Way;

/// Connections of programs that are open at once, also those that have asked for nothing yet.
const CONNECTIONS: usize = 128;

/// How long a program may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is moved at once.
const BUFFER_BYTES: usize = 16 << 10;

/// After a failed accept (descriptors ran out), before the next.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// The ways out of this machine.
#[derive(Debug, Default)]
pub struct Egress {
    /// To the host.
    link: Mutex<Option<Connector>>,
    open: Mutex<Option<Open>>,
}

/// What is listened on, until this is dropped.
#[derive(Debug)]
struct Open {
    config: control::Egress,
    listening: JoinSet<()>,
}

impl Egress {
    /// Streams to the host are opened over this link from now on.
    pub fn use_link(&self, link: Connector) {
        *lock(&self.link) = Some(link);
    }

    /// Opens the ways out that a configuration names, and closes others. Those that are open stay as they are
    /// if it names the same ones.
    pub async fn configure(&self, config: Option<&control::Egress>, kernel: Kernel) -> io::Result<()> {
        if lock(&self.open).as_ref().map(|open| &open.config) == config {
            return Ok(());
        }
        let old = lock(&self.open).take();
        if let Some(mut old) = old {
            // Another may want the same ports.
            old.listening.shutdown().await;
        }
        let Some(config) = config else { return Ok(()) };
        let link = lock(&self.link).clone().ok_or(io::ErrorKind::NotConnected)?;
        let way = Way::new(link);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut listening = JoinSet::new();
        let proxy = config.proxy.map(|port| (port, Use::Proxy)).into_iter();
        let straight = |&port| (port, Use::Straight(Request::Forward(port)));
        for (port, purpose) in proxy.chain(config.forwards.iter().map(straight)) {
            for listener in listen(port).await? {
                listening.spawn(serve(listener, purpose.clone(), way.clone(), room.clone()));
            }
        }
        // The host's loopback is nobody's to add addresses to.
        if !config.names.is_empty() && kernel == Kernel::Own {
            match Names::open(config.names.clone(), way, room).await {
                Ok(names) => drop(listening.spawn(names.serve())),
                // Without the right to such a port, or where it is taken: the proxy is there all the same.
                Err(error) => log::warn(format_args!("listen for questions about names: {error}")),
            }
        }
        *lock(&self.open) = Some(Open { config: config.clone(), listening });
        Ok(())
    }

    /// Whether what listens at an address is one of these ways, and none of the server's.
    pub fn is_way(&self, address: SocketAddr) -> bool {
        lock(&self.open).as_ref().is_some_and(|open| is_way(&open.config, address))
    }
}

fn is_way(config: &control::Egress, address: SocketAddr) -> bool {
    let port = address.port();
    match address.ip().to_canonical() {
        IpAddr::V4(ip) if names::holds(ip) => !config.names.is_empty(),
        ip if [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&ip) => {
            config.proxy == Some(port) || config.forwards.contains(&port)
        }
        _ => false,
    }
}

/// What a port is for.
#[derive(Debug, Clone)]
enum Use {
    /// The client says where it wants to go.
    Proxy,
    /// There is one way to go.
    Straight(Request),
}

/// Listens on loopback: where there is IPv6, on both.
async fn listen(port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?];
    // A kernel without IPv6 has no such address.
    listeners.extend(TcpListener::bind((IpAddr::from(Ipv6Addr::LOCALHOST), port)).await);
    Ok(listeners)
}

async fn serve(listener: TcpListener, purpose: Use, way: Way, room: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((client, _)) = accepted else {
            tokio::time::sleep(AFTER_FAILURE).await;
            continue;
        };
        // One too many is closed at once.
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let (way, purpose) = (way.clone(), purpose.clone());
        connections.spawn(async move {
            // Answers are small and followed by bytes that somebody waits for.
            let _ = client.set_nodelay(true);
            // How a connection ends is between its two ends; what the host refuses it has logged.
            let _ = match purpose {
                Use::Proxy => proxy(client, &way).await,
                Use::Straight(request) => straight(client, &way, &request).await,
            };
            drop(permit);
        });
    }
}

/// Serves whichever protocol the client speaks.
async fn proxy(client: TcpStream, way: &Way) -> io::Result<()> {
    let mut first = [0];
    match timeout(PATIENCE, client.peek(&mut first)).await?? {
        0 => Ok(()),
        _ if first[0] == socks::VERSION => socks::serve(client, way).await,
        _ => http::serve(client, way).await,
    }
}

async fn straight(mut client: TcpStream, way: &Way, request: &Request) -> io::Result<()> {
    match way.open(request).await {
        Ok(mut outside) => join(&mut client, &mut outside).await,
        // Whatever is spoken here, this is not said in it.
        Err(_) => client.shutdown().await,
    }
}

/// Moves bytes both ways until both ends have ended.
async fn join(client: &mut TcpStream, outside: &mut casemate_link::Stream) -> io::Result<()> {
    tokio::io::copy_bidirectional_with_sizes(client, outside, BUFFER_BYTES, BUFFER_BYTES).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_out_are_told_from_what_a_server_listens_on() {
        let names = vec!["a.example:80".parse().unwrap()];
        let config = control::Egress { proxy: Some(5254), forwards: vec![22], names };
        let is_way = |address: &str| is_way(&config, address.parse().unwrap());
        for way in ["127.0.0.1:5254", "[::1]:5254", "127.0.0.1:22", "[::1]:22", "192.52.193.1:80"] {
            assert!(is_way(way), "{way}");
        }
        for servers in ["127.0.0.1:80", "0.0.0.0:5254", "[::]:22", "127.0.0.2:22", "192.52.194.1:80"] {
            assert!(!is_way(servers), "{servers}");
        }
    }
}
