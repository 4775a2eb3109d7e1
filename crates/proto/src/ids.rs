//! Names and numbers that identify things; parsed once, trusted afterwards.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Why a text is no valid [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid name {0:?}: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit")]
pub struct InvalidName(pub String);

/// The name of a server or a machine: safe as a file name, a host name's label and a metric's label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidName(text.chars().take(80).collect())) }
    }
}

as_text!(Name => InvalidName);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The context id of a machine: unique among live machines, a name rather than an address where the
/// backend has no vsock device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cid(pub u32);

impl Cid {
    /// Every id that a machine may get, in the order of preference: 100 to 199, then from 1000 up.
    pub fn candidates() -> impl Iterator<Item = Cid> {
        (100..=199).chain(1000..=u32::MAX - 1).map(Cid)
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_or_options_are_refused() {
        for bad in ["", ".", "..", "-x", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "9", "my-server_1.2", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn the_hundred_and_first_machine_gets_1000() {
        assert_eq!(Cid::candidates().next(), Some(Cid(100)));
        assert_eq!(Cid::candidates().nth(99), Some(Cid(199)));
        assert_eq!(Cid::candidates().nth(100), Some(Cid(1000)));
    }
}
