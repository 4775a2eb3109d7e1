//! From a name to addresses: on the host, so that the guest has no say in it.

use casemate_proto::egress::{Host, LOCALHOST};
use std::{
    fmt::Debug,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, time::timeout};

/// How long a lookup may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most addresses that are looked at.
const ADDRESSES: usize = 16;

/// What knows the addresses of names.
pub(super) trait Resolve: Debug + Send + Sync {
    /// All addresses of a name. May block.
    fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The host's own resolver.
#[derive(Debug)]
pub(super) struct System;

impl Resolve for System {
    fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).take(ADDRESSES).collect())
    }
}

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("the host cannot resolve the name")]
    Failed(#[source] io::Error),
    #[error("the host did not resolve the name within {} s", PATIENCE.as_secs())]
    TimedOut,
    #[error("the name has no address")]
    None,
}

/// The addresses of a host, at least one. `lookups` bounds how many threads are at it: one that hangs keeps
/// its permit.
pub(super) async fn resolve(
    resolver: &Arc<dyn Resolve>,
    lookups: &Arc<Semaphore>,
    host: &Host,
) -> Result<Vec<IpAddr>, ResolveError> {
    let name = match host {
        Host::Address(address) => return Ok(vec![*address]),
        // Whatever a resolver would say of it.
        Host::Name(name) if name == LOCALHOST => {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        Host::Name(name) => name.clone(),
    };
    let (resolver, lookups) = (Arc::clone(resolver), Arc::clone(lookups));
    let looking = async move {
        // The semaphore is never closed.
        let permit = lookups.acquire_owned().await.map_err(io::Error::other)?;
        let lookup = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            resolver.resolve(&name)
        });
        lookup.await.map_err(io::Error::other)?
    };
    let mut addresses = match timeout(PATIENCE, looking).await {
        Ok(found) => found.map_err(ResolveError::Failed)?,
        Err(_) => return Err(ResolveError::TimedOut),
    };
    addresses.truncate(ADDRESSES);
    if addresses.is_empty() { Err(ResolveError::None) } else { Ok(addresses) }
}
