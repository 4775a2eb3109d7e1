//! What a machine may reach, and whether a request is of that: decided without looking anything up.

use super::address;
use casemate_proto::{
    control,
    egress::{Allow, Forward, Host, LOCALHOST, PROXY_PORT, Request, Target},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// The most entries of a list, so that looking one up stays cheap.
const ENTRIES: usize = 256;

/// What a machine may reach; nothing, unless something is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Targets of the server's own choice.
    #[serde(default)]
    pub allow: Vec<Allow>,
    /// Ports of guest loopback that lead to one target each.
    #[serde(default)]
    pub forward: Vec<Forward>,
}

/// Why entries do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Two forwards begin at one port.
    #[error("port {0} of the machine is forwarded twice")]
    Twice(u16),
    /// The agent's own port.
    #[error("port {PROXY_PORT} of the machine is where casemate's proxy listens")]
    Proxy,
    /// The server's own port.
    #[error("port {0} of the machine is the server's own")]
    Server(u16),
    /// More entries than are looked through.
    #[error("more than {ENTRIES} entries")]
    TooMany,
}

/// Why a request is not of what a machine may reach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("it is not on the allow list of this machine; --allow {0} would put it there")]
    Unlisted(Target),
    #[error("port {0} of the machine is not forwarded")]
    NoForward(u16),
    #[error(
        "it is {address}, which is {kind}: such an address is reached only where the allow list names it, \
         as in --allow {address}"
    )]
    Special { address: String, kind: &'static str },
}

impl Egress {
    /// Whether there is no way out.
    pub fn is_none(&self) -> bool {
        self.allow.is_empty() && self.forward.is_empty()
    }

    /// Adds what another layer allows.
    pub fn extend(&mut self, other: &Self) {
        self.allow.extend(other.allow.iter().cloned());
        self.forward.extend(other.forward.iter().cloned());
    }

    /// Whether its entries go together, beside a server that listens on `own_port`.
    pub fn check(&self, own_port: Option<u16>) -> Result<(), Conflict> {
        if self.allow.len() > ENTRIES || self.forward.len() > ENTRIES {
            return Err(Conflict::TooMany);
        }
        if own_port == Some(PROXY_PORT) && !self.allow.is_empty() {
            return Err(Conflict::Proxy);
        }
        for (index, forward) in self.forward.iter().enumerate() {
            let port = forward.guest_port;
            if port == PROXY_PORT {
                return Err(Conflict::Proxy);
            }
            if own_port == Some(port) {
                return Err(Conflict::Server(port));
            }
            if self.forward[..index].iter().any(|earlier| earlier.guest_port == port) {
                return Err(Conflict::Twice(port));
            }
        }
        Ok(())
    }

    /// What each forwarded port of guest loopback leads to.
    ///
    /// What is allowed on this host's own loopback is forwarded from the same port: a program that is told of
    /// `127.0.0.1` asks no proxy, whatever its environment says.
    pub fn forwards(&self, own_port: Option<u16>) -> BTreeMap<u16, Target> {
        let local = self.allow.iter().filter(|allow| allow.is_local());
        let local = local.filter(|allow| allow.port() != PROXY_PORT && Some(allow.port()) != own_port);
        let implied = local.filter_map(Allow::target).map(|target| (target.port, target));
        let said = self.forward.iter().map(|forward| (forward.guest_port, forward.to.clone()));
        implied.chain(said).collect()
    }

    /// What the agent is to open, if anything.
    pub(crate) fn ways(&self, own_port: Option<u16>) -> Option<control::Egress> {
        let forwards: Vec<u16> = self.forwards(own_port).into_keys().collect();
        let proxy = (!self.allow.is_empty()).then_some(PROXY_PORT);
        let names =
            self.allow.iter().filter(|allow| allow.is_named() && !allow.is_local()).cloned().collect();
        (!self.is_none()).then_some(control::Egress { proxy, forwards, names })
    }

    /// Where a request leads, if it may.
    pub(super) fn judge(&self, request: &Request, own_port: Option<u16>) -> Result<Target, Denied> {
        match request {
            Request::Connect(target) if self.allow.iter().any(|allow| allow.matches(target)) => {
                Ok(target.clone())
            }
            Request::Connect(target) => Err(Denied::Unlisted(target.clone())),
            Request::Forward(port) => self.forwards(own_port).remove(port).ok_or(Denied::NoForward(*port)),
        }
    }

    /// Whether a target that may be reached may be reached at this address, which it has just resolved to.
    pub(super) fn admit(&self, target: &Target, address: IpAddr) -> Result<(), Denied> {
        let at = Target { host: Host::Address(address.to_canonical()), port: target.port };
        let is_named = target.host == at.host
            || (target.host == Host::Name(LOCALHOST.to_owned()) && address.is_loopback())
            || self.allow.iter().any(|allow| allow.matches(&at));
        let kind = match address::special(address) {
            _ if is_named => return Ok(()),
            Some(kind) => kind,
            None if address::is_own(address) => "this host's own",
            None => return Ok(()),
        };
        Err(Denied::Special { address: at.to_string(), kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(allow: &[&str], forward: &[&str]) -> Egress {
        Egress {
            allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
            forward: forward.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn connect(target: &str) -> Request {
        Request::Connect(target.parse().unwrap())
    }

    fn is_allowed(allow: &str, target: &str) -> bool {
        egress(&[allow], &[]).judge(&connect(target), None).is_ok()
    }

    #[test]
    fn an_entry_allows_its_host_and_port_and_no_other() {
        assert!(is_allowed("api.example:443", "API.example.:443"));
        assert!(!is_allowed("api.example:443", "api.example:80"));
        assert!(!is_allowed("api.example:443", "xapi.example:443"));
        assert!(!is_allowed("api.example:443", "a.api.example:443"));
        assert!(is_allowed("*.example.com:443", "a.example.com:443"));
        assert!(is_allowed("*.example.com:443", "a.b.example.com:443"));
        assert!(!is_allowed("*.example.com:443", "example.com:443"));
        assert!(!is_allowed("*.example.com:443", "badexample.com:443"));
        assert!(!is_allowed("*.example.com:443", "a.example.com.evil.net:443"));
        assert!(is_allowed("127.0.0.1:80", "[::ffff:127.0.0.1]:80"));
        assert!(!is_allowed("127.0.0.1:80", "localhost:80"));
        assert!(egress(&[], &[]).judge(&connect("a.example:1"), None).is_err());
    }

    #[test]
    fn an_address_that_is_not_public_has_to_be_named() {
        let admits = |egress: &Egress, target: &str, address: &str| {
            egress.admit(&target.parse().unwrap(), address.parse().unwrap()).is_ok()
        };
        let name = egress(&["a.example:80"], &[]);
        assert!(admits(&name, "a.example:80", "1.1.1.1"));
        for address in ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00::1"] {
            assert!(!admits(&name, "a.example:80", address), "{address}");
        }
        let both = egress(&["a.example:80", "10.1.2.3:80"], &[]);
        assert!(admits(&both, "a.example:80", "10.1.2.3"));
        assert!(!admits(&both, "a.example:80", "10.1.2.4"));
        // Named with another port.
        assert!(!admits(&egress(&["a.example:80", "10.1.2.3:81"], &[]), "a.example:80", "10.1.2.3"));
        assert!(admits(&egress(&["localhost:80"], &[]), "localhost:80", "127.0.0.1"));
        assert!(!admits(&egress(&["localhost:80"], &[]), "localhost:80", "10.0.0.1"));
        assert!(admits(&egress(&[], &["1=10.0.0.1:80"]), "10.0.0.1:80", "10.0.0.1"));
        assert!(!admits(&egress(&[], &["1=a.example:80"]), "a.example:80", "10.0.0.1"));
    }

    #[test]
    fn what_is_allowed_on_loopback_is_forwarded_from_the_same_port() {
        let egress =
            egress(&["127.0.0.1:80", "localhost:81", "a.example:82", "127.0.0.1:5254"], &["80=b.example:1"]);
        let forwards: Vec<_> =
            egress.forwards(None).into_iter().map(|(port, to)| format!("{port}={to}")).collect();
        assert_eq!(forwards, ["80=b.example:1", "81=localhost:81"]);
        assert!(!egress.forwards(Some(81)).contains_key(&81));
        assert_eq!(egress.judge(&Request::Forward(80), None).unwrap().to_string(), "b.example:1");
        assert_eq!(egress.judge(&Request::Forward(82), None), Err(Denied::NoForward(82)));
    }

    #[test]
    fn ports_are_forwarded_once() {
        assert_eq!(egress(&[], &["1=a.example:1", "1=b.example:1"]).check(None), Err(Conflict::Twice(1)));
        assert_eq!(egress(&[], &["5254=a.example:1"]).check(None), Err(Conflict::Proxy));
        assert_eq!(egress(&[], &["80=a.example:1"]).check(Some(80)), Err(Conflict::Server(80)));
        assert_eq!(egress(&["a.example:1"], &["80=a.example:1"]).check(Some(81)), Ok(()));
        assert_eq!(egress(&["a.example:1"], &[]).check(Some(PROXY_PORT)), Err(Conflict::Proxy));
        // Without a list there is no proxy.
        assert_eq!(egress(&[], &["80=a.example:1"]).check(Some(PROXY_PORT)), Ok(()));
    }
}
