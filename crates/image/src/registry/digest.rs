//! Digests that registries publish, and hashing while bytes pass by.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256, Sha512};

/// A published digest that fetched bytes must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digest {
    /// SHA-256, as Debian and PyPI publish.
    Sha256([u8; 32]),
    /// SHA-512, as npm publishes.
    Sha512([u8; 64]),
}

impl Digest {
    /// Parses 64 or 128 hexadecimal digits, as SHA-256 or SHA-512.
    pub fn from_hex(text: &str) -> Option<Digest> {
        match text.len() {
            64 => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some(Digest::Sha256(bytes))
            }
            128 => {
                let mut bytes = [0; 64];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some(Digest::Sha512(bytes))
            }
            _ => None,
        }
    }

    /// Wraps raw bytes by their length: 32 for SHA-256, 64 for SHA-512.
    pub fn from_bytes(bytes: &[u8]) -> Option<Digest> {
        match bytes.len() {
            32 => bytes.try_into().ok().map(Digest::Sha256),
            64 => bytes.try_into().ok().map(Digest::Sha512),
            _ => None,
        }
    }

    /// The digest in lowercase hexadecimal.
    pub fn to_hex(&self) -> String {
        match self {
            Digest::Sha256(bytes) => hex::encode(bytes),
            Digest::Sha512(bytes) => hex::encode(bytes),
        }
    }

    /// A hasher of the same kind.
    pub fn hasher(&self) -> Hasher {
        match self {
            Digest::Sha256(_) => Hasher::sha256(),
            Digest::Sha512(_) => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }

    /// Whether `bytes` have this digest.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }

    /// Whether the file at `path` has this digest.
    pub fn matches_file(&self, path: &Path) -> io::Result<bool> {
        let mut hasher = self.hasher();
        io::copy(&mut File::open(path)?, &mut hasher)?;
        Ok(hasher.finish() == *self)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Digest::Sha256(_) => "sha256",
            Digest::Sha512(_) => "sha512",
        };
        write!(f, "{kind}:{}", self.to_hex())
    }
}

/// A running hash; also a [`Write`] that takes everything.
pub enum Hasher {
    /// SHA-256.
    Sha256(Box<Sha256>),
    /// SHA-512.
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// A SHA-256 hasher.
    pub fn sha256() -> Hasher {
        Hasher::Sha256(Box::new(Sha256::new()))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Hasher::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trip_and_match() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest = Digest::from_hex(empty).unwrap();
        assert_eq!(digest.to_hex(), empty);
        assert_eq!(digest.to_string(), format!("sha256:{empty}"));
        assert!(digest.matches(b""));
        assert!(!digest.matches(b"x"));
        let long = Digest::from_bytes(&[7; 64]).unwrap();
        assert_eq!(Digest::from_hex(&long.to_hex()), Some(long));
    }

    #[test]
    fn wrong_lengths_and_letters_are_refused() {
        for text in ["", "e3", &"g".repeat(64), &"a".repeat(63), &"a".repeat(65), &"é".repeat(32)] {
            assert_eq!(Digest::from_hex(text), None, "{text}");
        }
        assert_eq!(Digest::from_bytes(&[0; 20]), None);
    }
}
