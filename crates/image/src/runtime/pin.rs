//! Packages pinned to the digest that their registry publishes.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::build::{BuildError, Context};
use crate::registry::digest::{Digest, Hasher};
use crate::store::Package;

/// The largest package of a runtime.
const PIN_BYTES: u64 = 256 << 20;

/// One package: what it is, and where it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Where it may be fetched; not part of what it is.
    pub(crate) url: String,
    pub(crate) digest: HexDigest,
}

/// A digest, written in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct HexDigest(pub(crate) Digest);

impl From<HexDigest> for String {
    fn from(digest: HexDigest) -> String {
        digest.0.to_hex()
    }
}

impl TryFrom<String> for HexDigest {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Digest::from_hex(&text).map(HexDigest).ok_or("not a SHA-256 or SHA-512 digest")
    }
}

/// Packages, in the order in which they are unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Pins(pub(crate) Vec<Pin>);

impl Pins {
    /// One digest over these and other pins: what they are, not where they were.
    pub(crate) fn digest_with(&self, others: &Pins, layout: u32) -> Digest {
        let mut hasher = Hasher::sha256();
        hasher.update(&layout.to_le_bytes());
        for pin in self.0.iter().chain(&others.0) {
            hasher.update(format!("{}\0{}\0{}\n", pin.name, pin.version, pin.digest.0).as_bytes());
        }
        hasher.finish()
    }

    /// Fetches what the cache does not hold; the files come with their pins, in order.
    pub(crate) fn fetch(&self, context: &Context<'_>) -> Result<Vec<(&Pin, PathBuf)>, BuildError> {
        let folder = context.store.cache("files")?;
        let fetch = |pin: &Pin| -> Result<PathBuf, BuildError> {
            let file = folder.join(pin.digest.0.to_hex());
            if !file.exists() {
                context.progress.step(&format!("downloading {} {}", pin.name, pin.version));
                context.http.download(&pin.url, &file, &pin.digest.0, PIN_BYTES, context.progress)?;
            }
            Ok(file)
        };
        self.0.iter().map(|pin| Ok((pin, fetch(pin)?))).collect()
    }

    pub(crate) fn packages(&self) -> impl Iterator<Item = Package> + '_ {
        self.0.iter().map(|pin| Package {
            name: pin.name.clone(),
            version: pin.version.clone(),
            integrity: pin.digest.0.to_string(),
        })
    }
}

/// Reads an npm integrity (`sha512-BASE64`), of which several may stand in a row.
pub(crate) fn npm_integrity(text: &str) -> Option<Digest> {
    text.split_whitespace().find_map(|one| {
        let encoded = one.strip_prefix("sha512-").or_else(|| one.strip_prefix("sha256-"))?;
        Digest::from_bytes(&STANDARD.decode(encoded).ok()?)
    })
}

/// The numbers of a plain version `a.b.c`; nothing for pre-releases and other forms.
pub(crate) fn plain_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let version = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integrities_are_read() {
        let digest = Digest::from_bytes(&[1; 64]).unwrap();
        let text = format!("sha1-AAAA sha512-{}", STANDARD.encode([1; 64]));
        assert_eq!(npm_integrity(&text), Some(digest));
        for wrong in ["", "sha512-", "sha512-AAAA", "md5-AAAA", "sha512-*"] {
            assert_eq!(npm_integrity(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn plain_versions_are_ordered_by_their_numbers() {
        assert!(plain_version("22.9.0") < plain_version("22.10.0"));
        for other in ["22", "1.2", "1.2.3-rc.1", "1.2.3.4", "a.b.c", "1.2.99999999999"] {
            assert_eq!(plain_version(other), None, "{other}");
        }
    }

    #[test]
    fn where_a_package_was_is_not_what_it_is() {
        let pin = |url: &str, version: &str| Pin {
            name: "n".into(),
            version: version.into(),
            url: url.into(),
            digest: HexDigest(Digest::from_bytes(&[1; 32]).unwrap()),
        };
        let digest = |pin| Pins(vec![pin]).digest_with(&Pins::default(), 1);
        assert_eq!(digest(pin("http://a/", "1")), digest(pin("http://b/", "1")));
        assert_ne!(digest(pin("http://a/", "1")), digest(pin("http://a/", "2")));
    }
}
