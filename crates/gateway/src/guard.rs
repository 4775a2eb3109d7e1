//! Under which names the gateway may be addressed, and which pages may speak with it.
//!
//! A page of any site can have its visitor's browser send requests to a port of the visitor's own machine, and
//! with a name server of its own even under a name of its own (DNS rebinding). So `Host` has to be a name that
//! is known here, and `Origin`, which browsers send and programs need not, that of an allowed page (2025-11-25,
//! transports, security warning).

use crate::refusal::Refusal;
use hyper::{
    HeaderMap, Uri,
    header::{HOST, HeaderName, HeaderValue, ORIGIN},
    http::uri::Authority,
};
use std::net::IpAddr;

/// The names of this machine for itself.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Who may be asked for, and by whom.
#[derive(Debug, Clone)]
pub struct Guard {
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Guard {
    /// This machine's own names and `listen`, unless that is no particular address; `hosts` and whole `origins`
    /// (`https://app.example`) beside them.
    pub fn new(listen: IpAddr, hosts: &[String], origins: &[String]) -> Self {
        let own = (!listen.is_unspecified()).then(|| listen.to_string());
        let own = LOOPBACK.iter().map(|&name| name.to_owned()).chain(own);
        let hosts = own.chain(hosts.iter().map(|host| bare(host).to_owned())).collect();
        Self {
            hosts,
            origins: origins.iter().map(|origin| origin.trim_end_matches('/').to_owned()).collect(),
        }
    }

    /// Checks a request; gives the origin that it comes from, if it says one.
    pub(crate) fn check<'a>(
        &self,
        uri: &Uri,
        headers: &'a HeaderMap,
    ) -> Result<Option<&'a HeaderValue>, Refusal> {
        let host = sole(headers, &HOST).map_err(|_| Refusal::NoHost)?.ok_or(Refusal::NoHost)?;
        let knows_host = host.to_str().is_ok_and(|host| self.knows(host));
        // A request may name its host in its first line too, which is then the one that counts.
        let knows_target = uri.authority().is_none_or(|authority| self.knows(authority.as_str()));
        if !knows_host || !knows_target {
            return Err(Refusal::Host);
        }
        let origin = sole(headers, &ORIGIN).map_err(|_| Refusal::Origin)?;
        match origin {
            Some(origin) if !origin.to_str().is_ok_and(|origin| self.allows(origin)) => Err(Refusal::Origin),
            origin => Ok(origin),
        }
    }

    fn allows(&self, origin: &str) -> bool {
        if self.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) {
            return true;
        }
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.is_some_and(|authority| self.knows(authority))
    }

    fn knows(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = authority.host();
        // Nothing else: a user name before it would make another host of what looks like a known one.
        let whole = authority.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        whole == authority.as_str() && self.hosts.iter().any(|known| known.eq_ignore_ascii_case(bare(host)))
    }
}

/// A host without the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// A header is there more than once.
#[derive(Debug)]
pub(crate) struct Twice;

/// The one value of a header.
pub(crate) fn sole<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Twice> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Twice) } else { Ok(first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        let listen = "192.0.2.7".parse().unwrap();
        Guard::new(listen, &["gate.example".to_owned()], &["https://app.example".to_owned()])
    }

    fn checked(uri: &str, fields: &[(&'static str, &str)]) -> Result<bool, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        guard().check(&uri.parse().unwrap(), &headers).map(|origin| origin.is_some())
    }

    #[test]
    fn own_names_and_allowed_ones_are_hosts_at_any_port() {
        for host in
            ["localhost", "LOCALHOST:3000", "127.0.0.1:1", "[::1]:3000", "192.0.2.7:80", "gate.example"]
        {
            assert!(matches!(checked("/mcp/x", &[("host", host)]), Ok(false)), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "localhost:x",
            "127.0.0.1@evil.example",
            "[::1",
            "192.0.2.8",
            "::1",
            "",
        ] {
            assert!(matches!(checked("/mcp/x", &[("host", host)]), Err(Refusal::Host)), "{host}");
        }
    }

    #[test]
    fn a_host_is_said_once_and_the_target_says_no_other() {
        assert!(matches!(checked("/", &[]), Err(Refusal::NoHost)));
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert!(matches!(checked("/", &twice), Err(Refusal::NoHost)));
        let absolute = checked("http://evil.example/mcp/x", &[("host", "localhost")]);
        assert!(matches!(absolute, Err(Refusal::Host)));
        assert!(checked("http://localhost:3000/mcp/x", &[("host", "localhost")]).is_ok());
    }

    #[test]
    fn pages_of_this_machine_and_allowed_ones_may_speak() {
        let from = |origin: &str| checked("/", &[("host", "localhost"), ("origin", origin)]);
        for origin in ["http://localhost:5173", "https://127.0.0.1", "http://[::1]:1", "https://app.example"]
        {
            assert!(matches!(from(origin), Ok(true)), "{origin}");
        }
        for origin in [
            "null",
            "https://evil.example",
            "http://app.example",
            "https://app.example.evil.example",
            "https://app.example:8443",
            "file://",
            "localhost",
        ] {
            assert!(matches!(from(origin), Err(Refusal::Origin)), "{origin}");
        }
        let twice =
            [("host", "localhost"), ("origin", "http://localhost"), ("origin", "https://evil.example")];
        assert!(matches!(checked("/", &twice), Err(Refusal::Origin)));
    }

    #[test]
    fn an_address_that_is_any_address_is_no_name() {
        let guard = Guard::new("0.0.0.0".parse().unwrap(), &[], &[]);
        assert!(!guard.knows("0.0.0.0:3000") && guard.knows("localhost"));
    }
}
