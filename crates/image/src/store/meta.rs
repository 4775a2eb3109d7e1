//! What an image is, as `image.json` says it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What an image is and how it is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMeta {
    /// `sha256:` and the digest of the file system in hexadecimal.
    pub digest: String,
    /// The source that it was first built from, as it is written.
    pub source: String,
    /// What starts the server: a program by its path inside, and arguments. Empty where only a request's
    /// `--command` can say.
    pub command: Vec<String>,
    /// The programs that its package brings, by name, each as a command.
    #[serde(default)]
    pub programs: BTreeMap<String, Vec<String>>,
    /// The environment that the server starts with.
    pub env: BTreeMap<String, String>,
    /// The folder that it starts in.
    pub cwd: String,
    /// What runs it.
    pub runtime: Runtime,
    /// What was installed, sorted by name and version, the runtime's parts included.
    pub packages: Vec<Package>,
    /// `sha256:` and the digest of everything that decided its contents.
    pub lock_digest: String,
    /// Size of the file system's file, in bytes.
    pub size_bytes: u64,
    /// When it was built, in seconds since 1970.
    pub created_at: u64,
}

impl ImageMeta {
    /// The digest without its `sha256:`.
    pub fn hex(&self) -> String {
        self.digest.trim_start_matches("sha256:").to_owned()
    }
}

/// What runs a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Node, supplied by casemate.
    Node,
    /// CPython, supplied by casemate.
    Python,
    /// A program that needs no library.
    Static,
    /// A program with the host's libraries.
    Native,
}

/// One installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name in its registry.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The published digest that it was checked against, as its registry writes it.
    pub integrity: String,
}
