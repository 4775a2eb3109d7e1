//! What decides an image's contents, and the records that make a second build find the first.
//!
//! ```text
//! cache/resolved/<request>.json   when a request was resolved, and to which lock
//! cache/lockfiles/<lock>.json     the lock itself
//! cache/built/<lock>.json         the digest of the image made from it
//! ```
//!
//! Any of them may be missing or damaged: then it is made again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BuildError, BuildRequest, Context};
use crate::files::failed;
use crate::record;
use crate::registry::digest::{Digest, Hasher};
use crate::runtime::RuntimeLock;
use crate::source::Source;
use crate::store::{Image, StoreError};

/// Everything that decides an image's contents.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Lock {
    pub(super) runtime: RuntimeLock,
    /// What the server's own part is made of: packages with versions and digests, or digests of files.
    pub(super) contents: Vec<String>,
    /// What the installer reads, by file name: may name addresses, which decide nothing.
    pub(super) files: BTreeMap<String, String>,
    /// Hosts that the packages' files are on, as addresses of the registry named them.
    pub(super) hosts: Vec<String>,
    /// Whether packages may run code of theirs while they are installed.
    pub(super) scripts: bool,
}

impl Lock {
    /// Nothing that is fetched beside a runtime.
    pub(super) fn bare(runtime: RuntimeLock, contents: Vec<String>) -> Self {
        Self { runtime, contents, files: BTreeMap::new(), hosts: Vec::new(), scripts: false }
    }

    /// The digest that names the lock.
    pub(super) fn digest(&self) -> Digest {
        let mut hasher = Hasher::sha256();
        let RuntimeLock { parts, tools, layout, runtime } = &self.runtime;
        hasher.update(
            format!("{runtime:?}\n{}\n{}\n", parts.digest_with(tools, *layout), self.scripts).as_bytes(),
        );
        for line in &self.contents {
            hasher.update(format!("{}\n{line}\n", line.len()).as_bytes());
        }
        hasher.finish()
    }
}

/// What a request asks for, and how long an answer to it holds.
pub(super) struct RequestKey {
    pub(super) digest: String,
    holds: Holds,
}

enum Holds {
    /// The registries move on.
    For(Duration),
    /// The request names one version; what that depends on stays as it was first resolved.
    Always,
    /// Finding out is cheap and the host's files may change at any time.
    Never,
}

pub(super) fn request_key(request: &BuildRequest<'_>) -> Result<RequestKey, BuildError> {
    let holds = match &request.source {
        Source::Npm { version, .. } | Source::Pypi { version, .. }
            if version.as_deref().is_some_and(super::versions::is_exact) =>
        {
            Holds::Always
        }
        Source::Npm { .. } | Source::Pypi { .. } | Source::Dir(_) => Holds::For(record::REUSE),
        Source::Command(_) | Source::Builtin | Source::Oci(_) => Holds::Never,
    };
    let mut hasher = Hasher::sha256();
    let mut add = |text: &str| hasher.update(format!("{}\n{text}\n", text.len()).as_bytes());
    match &request.source {
        // The programs of a package are all in its image.
        Source::Npm { name, version, .. } => add(&format!("npm {name} {version:?}")),
        Source::Pypi { name, version, with, .. } => add(&format!("pypi {name} {version:?} {with:?}")),
        Source::Dir(folder) => {
            let folder = std::path::absolute(folder).map_err(failed("find", folder))?;
            add(&format!("dir {} {:?}", folder.display(), request.command));
            add(&super::dir::digest(&folder)?.to_hex());
        }
        other => add(&other.to_string()),
    }
    add(&request.allow_scripts.to_string());
    Ok(RequestKey { digest: hasher.finish().to_hex(), holds })
}

/// The lock that this request had when it was last resolved, if that still holds.
pub(super) fn recorded(context: &Context<'_>, key: &RequestKey) -> Result<Option<Lock>, BuildError> {
    if context.request.refresh {
        return Ok(None);
    }
    let at = path(context, "resolved", &key.digest, ".json")?;
    let recorded: Option<String> = match key.holds {
        Holds::For(duration) => record::read_recent(&at, duration),
        Holds::Always => record::read(&at),
        Holds::Never => None,
    };
    let Some(digest) = recorded.filter(|digest| Digest::from_hex(digest).is_some()) else { return Ok(None) };
    let lock = record::read::<Lock>(&path(context, "lockfiles", &digest, ".json")?);
    Ok(lock.filter(|lock| lock.digest().to_hex() == digest && lock.runtime.is_current_layout()))
}

/// Remembers what a request was resolved to.
pub(super) fn remember(context: &Context<'_>, key: &RequestKey, lock: &Lock) -> Result<(), BuildError> {
    let digest = lock.digest().to_hex();
    record::write(&path(context, "lockfiles", &digest, ".json")?, lock)?;
    Ok(record::write(&path(context, "resolved", &key.digest, ".json")?, &digest)?)
}

/// The image that was made from a lock, if it still exists.
pub(super) fn built(context: &Context<'_>, lock: &Digest) -> Option<Image> {
    let digest: String = record::read(&path(context, "built", &lock.to_hex(), ".json").ok()?)?;
    context.store.image(&digest).ok()
}

/// Remembers the image that was made from a lock.
pub(super) fn remember_built(context: &Context<'_>, lock: &Digest, image: &Image) -> Result<(), BuildError> {
    Ok(record::write(&path(context, "built", &lock.to_hex(), ".json")?, &image.digest)?)
}

fn path(context: &Context<'_>, folder: &str, name: &str, ending: &str) -> Result<PathBuf, StoreError> {
    Ok(context.store.cache(folder)?.join(format!("{name}{ending}")))
}
