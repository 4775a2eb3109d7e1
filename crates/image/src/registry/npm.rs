//! The npm registry's description of a package (its "packument").

use std::collections::BTreeMap;

use serde::Deserialize;

use super::address::Base;
use super::http::{Http, HttpError};

/// The abbreviated form, where the registry has it.
const ACCEPT: &str = "application/vnd.npm.install-v1+json, application/json;q=0.8";

/// Packages with thousands of versions reach tens of megabytes.
const PACKUMENT_BYTES: u64 = 128 << 20;

/// Why the registry's answer is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NpmError {
    /// It could not be fetched.
    #[error("cannot read the npm registry named by {origin}")]
    Fetch {
        /// Where the registry's address was configured.
        origin: String,
        #[source]
        /// The cause.
        source: Box<HttpError>,
    },
    /// It is no description of a package.
    #[error("the npm registry's answer about {name} is malformed")]
    Malformed {
        /// The package.
        name: String,
        #[source]
        /// The cause.
        source: serde_json::Error,
    },
}

/// What the registry knows of one package.
#[derive(Debug, Clone, Deserialize)]
pub struct Packument {
    #[serde(default, rename = "dist-tags")]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    versions: BTreeMap<String, Version>,
}

#[derive(Debug, Clone, Deserialize)]
struct Version {
    dist: Dist,
}

/// Where one version's archive is.
#[derive(Debug, Clone, Deserialize)]
pub struct Dist {
    /// Its address.
    pub tarball: String,
    /// Its digests, as Subresource Integrity writes them.
    #[serde(default)]
    pub integrity: Option<String>,
}

impl Packument {
    /// Asks the registry for a package; nothing if it has none of this name.
    pub fn fetch(http: &Http, registry: &Base, name: &str) -> Result<Option<Packument>, NpmError> {
        // A scope's slash is part of the name, not of the path.
        let url = registry.join(&name.replace('/', "%2f"));
        match http.get(&url, Some(ACCEPT), PACKUMENT_BYTES) {
            Ok(body) => {
                let malformed = |source| NpmError::Malformed { name: name.to_owned(), source };
                serde_json::from_slice(&body).map(Some).map_err(malformed)
            }
            Err(HttpError::Status { status: 404 | 405 | 410, .. }) => Ok(None),
            Err(source) => {
                Err(NpmError::Fetch { origin: registry.origin().to_owned(), source: Box::new(source) })
            }
        }
    }

    /// Its versions, in the order of their text.
    pub fn versions(&self) -> impl Iterator<Item = (&str, &Dist)> {
        self.versions.iter().map(|(version, entry)| (version.as_str(), &entry.dist))
    }

    /// Whether this version or tag exists.
    pub fn has(&self, version_or_tag: &str) -> bool {
        self.versions.contains_key(version_or_tag) || self.tags.contains_key(version_or_tag)
    }

    /// What a tag such as `latest` stands for.
    pub fn tag(&self, tag: &str) -> Option<&str> {
        self.tags.get(tag).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_missing_digests_are_tolerated() {
        let json = r#"{"name":"x","dist-tags":{"latest":"1.0.0"},"versions":{
            "1.0.0":{"bin":1,"dist":{"tarball":"http://t.test/x.tgz","integrity":"sha512-AA=="}},
            "0.9.0":{"dist":{"tarball":"http://t.test/y.tgz","shasum":"00"}}}}"#;
        let packument: Packument = serde_json::from_str(json).unwrap();
        assert!(packument.has("latest") && packument.has("0.9.0") && !packument.has("2.0.0"));
        assert_eq!(packument.tag("latest"), Some("1.0.0"));
        assert_eq!(packument.versions().map(|(version, _)| version).collect::<Vec<_>>(), ["0.9.0", "1.0.0"]);
    }
}
