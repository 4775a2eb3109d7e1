//! Entries of the lists that say what a machine may reach.

use super::{Host, InvalidTarget, Target, parse_port};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An entry of the allow list: `HOST:PORT` or `*.SUFFIX:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Allow {
    hosts: Hosts,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    /// This one.
    One(Host),
    /// Every name below this one, and not this one itself.
    Below(String),
}

/// A fixed way out: `GUESTPORT=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// The port on guest loopback.
    pub guest_port: u16,
    /// Where it leads.
    pub to: Target,
}

/// Why a text is no entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEntry {
    /// The target is none.
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    /// A `*` stands elsewhere than before a dot at the beginning.
    #[error("a '*' stands only at the beginning, as in *.example.com:443; nothing allows every host")]
    Star,
    /// The suffix is a whole top-level domain.
    #[error("the name after '*.' has no dot in it, and would allow half of the Internet")]
    TopLevel,
    /// Nothing can be connected to there.
    #[error("this address stands for no single host")]
    NoHost,
    /// There is no guest port.
    #[error("no port of the machine in it; write GUESTPORT=HOST:PORT")]
    GuestPort,
}

impl FromStr for Allow {
    type Err = InvalidEntry;
    fn from_str(text: &str) -> Result<Self, InvalidEntry> {
        let Some(rest) = text.strip_prefix("*.") else {
            if text.contains('*') {
                return Err(InvalidEntry::Star);
            }
            let Target { host, port } = single(text)?;
            return Ok(Self { hosts: Hosts::One(host), port });
        };
        if rest.contains('*') {
            return Err(InvalidEntry::Star);
        }
        let Target { host, port } = rest.parse()?;
        match host {
            Host::Name(suffix) if suffix.contains('.') => Ok(Self { hosts: Hosts::Below(suffix), port }),
            Host::Name(_) => Err(InvalidEntry::TopLevel),
            Host::Address(_) => Err(InvalidEntry::Star),
        }
    }
}

impl FromStr for Forward {
    type Err = InvalidEntry;
    fn from_str(text: &str) -> Result<Self, InvalidEntry> {
        let (port, target) = text.split_once('=').ok_or(InvalidEntry::GuestPort)?;
        let guest_port = parse_port(port).ok_or(InvalidEntry::GuestPort)?;
        Ok(Self { guest_port, to: single(target)? })
    }
}

/// A target that is one host: on Linux a connection to `0.0.0.0` reaches the host itself.
fn single(text: &str) -> Result<Target, InvalidEntry> {
    let target: Target = text.parse()?;
    match target.host {
        Host::Address(address) if address.is_unspecified() || address.is_multicast() => {
            Err(InvalidEntry::NoHost)
        }
        _ => Ok(target),
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::One(host) => write!(f, "{host}:{}", self.port),
            Hosts::Below(suffix) => write!(f, "*.{suffix}:{}", self.port),
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.guest_port, self.to)
    }
}

as_text!(Allow => InvalidEntry, Forward => InvalidEntry);

impl Allow {
    /// Whether it stands for this target.
    pub fn matches(&self, target: &Target) -> bool {
        let host = match (&self.hosts, &target.host) {
            (Hosts::One(host), asked) => host == asked,
            (Hosts::Below(suffix), Host::Name(name)) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Hosts::Below(_), Host::Address(_)) => false,
        };
        host && self.port == target.port
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The target, where it stands for one alone.
    pub fn target(&self) -> Option<Target> {
        match &self.hosts {
            Hosts::One(host) => Some(Target { host: host.clone(), port: self.port }),
            Hosts::Below(_) => None,
        }
    }

    /// Whether names match it, and not an address.
    pub fn is_named(&self) -> bool {
        !matches!(self.hosts, Hosts::One(Host::Address(_)))
    }

    /// Whether it stands for this host itself.
    pub fn is_local(&self) -> bool {
        match &self.hosts {
            Hosts::One(Host::Address(address)) => address.is_loopback(),
            Hosts::One(Host::Name(name)) => name == super::LOCALHOST,
            Hosts::Below(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_that_would_allow_more_than_they_seem_to_are_refused() {
        let refusal = |text: &str| text.parse::<Allow>().unwrap_err();
        assert_eq!(refusal("*.com:443"), InvalidEntry::TopLevel);
        for text in ["*:443", "a.*.example:443", "*.*.example.com:1", "*a.example.com:1", "*.10.0.0.1:1"] {
            assert!(matches!(refusal(text), InvalidEntry::Star | InvalidEntry::Target(_)), "{text}");
        }
        for text in ["0.0.0.0:80", "[::]:80", "224.0.0.1:80", "[::ffff:0.0.0.0]:80"] {
            assert_eq!(refusal(text), InvalidEntry::NoHost, "{text}");
        }
        assert_eq!(refusal("example.com"), InvalidEntry::Target(InvalidTarget::NoPort));
        assert_eq!("x=a.example:1".parse::<Forward>().unwrap_err(), InvalidEntry::GuestPort);
        assert_eq!("a.example:1".parse::<Forward>().unwrap_err(), InvalidEntry::GuestPort);
    }

    proptest! {
        #[test]
        fn entries_read_back_as_they_are_shown(text in "(\\*\\.)?[a-z.]{1,12}:[0-9]{1,5}") {
            if let Ok(entry) = text.parse::<Allow>() {
                prop_assert_eq!(entry.to_string().parse::<Allow>(), Ok(entry));
            }
        }
    }
}
