//! Templates: snapshots that machines are restored from.
//!
//! ```text
//! templates/secret         keys the digest of configured values; never leaves this folder
//! templates/<key>.lock     taken by the command that builds it, and by the one that removes it
//! templates/<key>.<n>.partial/  what a builder has written so far, or what is being removed
//! templates/<key>/memory   guest memory, sparse, 0444: handed to VMMs, which cannot write it
//!                 state    the state of processors and devices
//!                 template.json
//!                 verified the boot of the host in which `memory` was last compared with its digest
//! ```
//!
//! A template appears whole, by a rename, is never changed, and is a pure function of its [`key`]: it holds
//! no client's byte. One that is damaged, or of another host, is not used: the machine starts cold, or a new
//! one is built.

pub mod key;
mod obtain;
pub(crate) mod pages;
mod prune;

pub use crate::spec::Level;
use crate::{
    backend::qemu::tsc,
    home::{Home, HomeError, boot_id, create_private_dir, open_lock, write_atomically},
};
use casemate_image::lock;
use jiff::{SignedDuration, Timestamp};
pub use key::{Ingredients, KeyError};
pub use obtain::{Step, obtain};
pub use prune::{Policy, Pruned};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const MANIFEST: &str = "template.json";
const MEMORY: &str = "memory";
const STATE: &str = "state";
const VERIFIED: &str = "verified";
const PARTIAL: &str = ".partial";

/// The longest device state: it is some 12 KiB.
pub(crate) const STATE_BYTES: usize = 1 << 20;

/// The longest `template.json`.
const MANIFEST_BYTES: u64 = 1 << 20;

/// For so long a server of which no template could be made is not tried again.
const REFUSED_FOR: SignedDuration = SignedDuration::from_hours(1);

/// How far the time stamp counter may be from that of the host that made it: a measurement's error, and not
/// another processor's.
const TSC_PER_THOUSAND: u64 = 2;

/// How often the lock of a template is tried.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The home folder failed.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// It can have none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It is not there.
    #[error("no template {0}")]
    Missing(String),
    /// More than one begins with these digits.
    #[error("more than one template begins with {0}")]
    Ambiguous(String),
    /// It is none of a template.
    #[error("{0:?} is no key: write 4 to 32 of its hexadecimal digits")]
    NoKey(String),
    /// It is not what it was when it was made.
    #[error("template {key} is damaged: {what}")]
    Damaged {
        /// Which.
        key: String,
        /// What is wrong.
        what: &'static str,
    },
    /// It was made on another host.
    #[error("template {key} was made by {by}")]
    Foreign {
        /// Which.
        key: String,
        /// What is other.
        by: &'static str,
    },
    /// It cannot be read or written.
    #[error("cannot {action} template {key}")]
    Io {
        /// Such as `read`.
        action: &'static str,
        /// Which.
        key: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The content of `template.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its key.
    pub key: String,
    /// What it depends on.
    pub ingredients: Ingredients,
    /// The server that it was first built for, for people.
    pub server: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it holds, or why it could not be made.
    pub outcome: Outcome,
}

/// What became of building a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It can be restored.
    Made(Contents),
    /// The server cannot have one of this level.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What a template holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Guest memory that is no zeros, in bytes.
    pub memory_bytes: u64,
    /// Its digest, see `pages`.
    pub memory_digest: String,
    /// The device state's digest.
    pub state_digest: String,
    /// The time stamp counter of the host that made it, in kHz: the guest has measured by it.
    pub tsc_khz: u64,
    /// How long the builder took, in milliseconds.
    pub build_ms: u64,
}

/// A template, opened for one machine.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) memory: File,
    pub(crate) state: Vec<u8>,
}

/// The templates of a home folder.
#[derive(Debug, Clone)]
pub struct Templates {
    home: Home,
}

impl Templates {
    /// The templates of this home.
    pub fn open(home: &Home) -> Result<Self, HomeError> {
        let templates = Self { home: home.clone() };
        create_private_dir(&templates.folder())?;
        Ok(templates)
    }

    /// Removes what killed builders left in a home. Cheap where there is nothing.
    pub(crate) fn sweep_home(home: &Home) {
        Self { home: home.clone() }.sweep();
    }

    /// Where they are.
    fn folder(&self) -> PathBuf {
        self.home.path().join("templates")
    }

    fn dir(&self, key: &str) -> PathBuf {
        self.folder().join(key)
    }

    /// A folder of a builder, or of what is being removed; named so that a builder that was killed and is
    /// still dying never meets the next one.
    fn partial(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.folder().join(format!("{key}.lock"))
    }

    /// What keys digests of configured values: drawn once, never told.
    pub(crate) fn secret(&self) -> Result<[u8; 32], HomeError> {
        let path = self.folder().join("secret");
        if let Some(secret) = read_secret(&path) {
            return Ok(secret);
        }
        let _one_draws_it = self.home.lock_machines()?;
        if let Some(secret) = read_secret(&path) {
            return Ok(secret);
        }
        let mut secret = [0; 32];
        rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| HomeError::io("draw", &path)(errno.into()))?;
        write_atomically(&path, &secret)?;
        Ok(secret)
    }

    /// All templates, the latest used last.
    pub fn list(&self) -> Result<Vec<Listed>, HomeError> {
        let folder = self.folder();
        let entries = fs::read_dir(&folder).map_err(HomeError::io("list", &folder))?;
        let mut listed: Vec<Listed> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok().filter(|name| is_key(name)))
            .filter_map(|key| self.look(&key))
            .collect();
        listed.sort_by_key(|listed| listed.used_at);
        Ok(listed)
    }

    /// The template whose key begins with these digits, of which there have to be four.
    pub fn find(&self, digits: &str) -> Result<Listed, TemplateError> {
        let is_prefix = (4..=32).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_prefix {
            return Err(TemplateError::NoKey(digits.to_owned()));
        }
        let digits = digits.to_ascii_lowercase();
        let mut found: Vec<Listed> = self.list()?;
        found.retain(|template| template.key.starts_with(&digits));
        match (found.pop(), found.is_empty()) {
            (Some(template), true) => Ok(template),
            (Some(_), false) => Err(TemplateError::Ambiguous(digits)),
            (None, _) => Err(TemplateError::Missing(digits)),
        }
    }

    fn look(&self, key: &str) -> Option<Listed> {
        let dir = self.dir(key);
        let manifest = self.manifest(key).ok();
        let meta = fs::metadata(dir.join(VERIFIED)).or_else(|_| fs::metadata(&dir)).ok()?;
        let used_at = meta.modified().ok().and_then(|time| Timestamp::try_from(time).ok())?;
        let disk_bytes = [MEMORY, STATE, MANIFEST].iter().map(|name| disk_bytes(&dir.join(name))).sum();
        Some(Listed { key: key.to_owned(), manifest, used_at, disk_bytes })
    }

    /// What is written down about a template.
    pub(crate) fn manifest(&self, key: &str) -> Result<Manifest, TemplateError> {
        let path = self.dir(key).join(MANIFEST);
        let text = match File::open(&path) {
            Ok(file) => read_bounded(file, MANIFEST_BYTES),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TemplateError::Missing(key.to_owned()));
            }
            Err(source) => Err(source),
        };
        let text = text.map_err(failed("read", key))?;
        let damaged = |what| TemplateError::Damaged { key: key.to_owned(), what };
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|_| damaged("template.json cannot be read"))?;
        // Its own words for what it was made of have to give its name.
        if manifest.key != key || manifest.ingredients.key() != key {
            return Err(damaged("template.json belongs to another"));
        }
        Ok(manifest)
    }

    /// Whether a template can be restored now; compares its memory with its digest the first time that it is
    /// used in a boot of the host. With `verify` it compares memory and device state now, which is no use of
    /// the template.
    pub fn check(&self, key: &str, verify: bool) -> Result<Manifest, TemplateError> {
        let manifest = self.manifest(key)?;
        let Outcome::Made(contents) = &manifest.outcome else { return Ok(manifest) };
        let memory = self.open_memory(&manifest)?;
        let stamp = self.dir(key).join(VERIFIED);
        let boot = boot_id();
        if verify || fs::read_to_string(&stamp).ok() != boot {
            let khz = tsc::khz(&self.home);
            if khz.abs_diff(contents.tsc_khz) > contents.tsc_khz / 1000 * TSC_PER_THOUSAND {
                return Err(TemplateError::Foreign { key: key.to_owned(), by: "a host with another clock" });
            }
            if verify {
                self.open_for_machine(key)?;
            }
            let used_at = fs::metadata(&stamp).and_then(|meta| meta.modified()).ok().filter(|_| verify);
            let bytes = u64::from(manifest.ingredients.memory_mb) << 20;
            let found = pages::digest(&memory, bytes).map_err(failed("read", key))?;
            if found != contents.memory_digest {
                // So that no machine of this boot relies on an earlier look.
                let _ = fs::remove_file(&stamp);
                return Err(TemplateError::Damaged { key: key.to_owned(), what: "its memory has changed" });
            }
            // Without the stamp it is verified again next time.
            if let Some(boot) = boot {
                let _ = write_atomically(&stamp, boot.as_bytes());
            }
            if let (Some(used_at), Ok(stamp)) = (used_at, File::options().write(true).open(&stamp)) {
                let _ = stamp.set_modified(used_at);
            }
        } else if let Ok(stamp) = File::options().write(true).open(&stamp) {
            // For pruning: it was used now.
            let _ = stamp.set_modified(std::time::SystemTime::now());
        }
        Ok(manifest)
    }

    fn open_memory(&self, manifest: &Manifest) -> Result<File, TemplateError> {
        let key = &manifest.key;
        let memory = File::open(self.dir(key).join(MEMORY)).map_err(failed("open", key))?;
        let length = memory.metadata().map_err(failed("open", key))?.len();
        if length != u64::from(manifest.ingredients.memory_mb) << 20 {
            let what = "its memory has another size";
            return Err(TemplateError::Damaged { key: key.clone(), what });
        }
        Ok(memory)
    }

    /// Opens a template for a machine; its device state is compared with its digest each time.
    pub(crate) fn open_for_machine(&self, key: &str) -> Result<Opened, TemplateError> {
        let manifest = self.manifest(key)?;
        let Outcome::Made(contents) = &manifest.outcome else {
            return Err(TemplateError::Missing(key.to_owned()));
        };
        let memory = self.open_memory(&manifest)?;
        let state = File::open(self.dir(key).join(STATE));
        let state =
            state.and_then(|file| read_bounded(file, STATE_BYTES as u64)).map_err(failed("read", key))?;
        if blake3::hash(&state).to_hex().as_str() != contents.state_digest {
            let what = "its device state has changed";
            return Err(TemplateError::Damaged { key: key.to_owned(), what });
        }
        Ok(Opened { memory, state })
    }

    /// Tries to become the one who builds or removes a template.
    pub(crate) fn try_lock(&self, key: &str) -> Result<Option<File>, HomeError> {
        let path = self.lock_path(key);
        let file = open_lock(&path)?;
        match file.try_lock() {
            // Whoever removed the template may have removed the file that was opened, and another may have made
            // and locked a new one.
            Ok(()) if is_at(&file, &path) => Ok(Some(file)),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(HomeError::io("lock", &path)(source)),
        }
    }

    /// Waits until this process is the one who builds a template, at most for `patience`. Dropping the file ends
    /// that. May be cancelled.
    pub(crate) async fn lock(&self, key: &str, patience: Duration) -> Result<File, HomeError> {
        let until = Instant::now() + patience;
        loop {
            if let Some(lock) = self.try_lock(key)? {
                return Ok(lock);
            }
            if Instant::now() >= until {
                let path = self.lock_path(key);
                return Err(HomeError::io("lock", &path)(lock::held(&open_lock(&path)?, patience)));
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Makes an empty folder for a builder and returns its name. The template's lock has to be held.
    pub(crate) fn begin(&self, key: &str) -> Result<String, TemplateError> {
        let name = partial_name(key)?;
        create_private_dir(&self.partial(&name))?;
        Ok(name)
    }

    /// Removes a builder's folder; what cannot be removed now is swept by a later command.
    pub(crate) fn abandon(&self, folder: &str) {
        let _ = fs::remove_dir_all(self.partial(folder));
    }

    /// Writes what a builder's machine is at this moment into the builder's folder.
    pub(crate) fn write(
        &self,
        folder: &str,
        memory: &File,
        memory_mb: u32,
        state: &[u8],
        build_ms: u64,
    ) -> Result<Contents, TemplateError> {
        let (partial, key) = (self.partial(folder), key_of(folder));
        let file = create(&partial.join(MEMORY)).map_err(failed("write", key))?;
        let (memory_digest, memory_bytes) =
            pages::copy(memory, u64::from(memory_mb) << 20, &file).map_err(failed("write", key))?;
        let readable = fs::Permissions::from_mode(0o444);
        file.set_permissions(readable).map_err(failed("write", key))?;
        let mut file = create(&partial.join(STATE)).map_err(failed("write", key))?;
        io::Write::write_all(&mut file, state).map_err(failed("write", key))?;
        let state_digest = blake3::hash(state).to_hex().to_string();
        Ok(Contents { memory_bytes, memory_digest, state_digest, tsc_khz: tsc::khz(&self.home), build_ms })
    }

    /// Makes what a builder wrote a template, in one step. Its lock has to be held.
    pub(crate) fn publish(&self, manifest: &Manifest, folder: &str) -> Result<(), TemplateError> {
        let (key, partial) = (&manifest.key, self.partial(folder));
        // Strings and numbers: it serialises.
        write_atomically(&partial.join(MANIFEST), &serde_json::to_vec_pretty(manifest).unwrap_or_default())?;
        if let (Outcome::Made(_), Some(boot)) = (&manifest.outcome, boot_id()) {
            write_atomically(&partial.join(VERIFIED), boot.as_bytes())?;
        }
        self.discard(key)?;
        fs::rename(&partial, self.dir(key)).map_err(failed("publish", key))
    }

    /// Removes a template that cannot be used. Machines that were restored from it keep its memory. Its lock
    /// has to be held.
    pub(crate) fn discard(&self, key: &str) -> Result<(), TemplateError> {
        let (dir, going) = (self.dir(key), self.partial(&partial_name(key)?));
        // In one step, so that nobody sees a half of it.
        match fs::rename(&dir, &going) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed("remove", key)(source)),
            Ok(()) => {}
        }
        fs::remove_dir_all(&going).map_err(failed("remove", key))
    }

    /// Removes what killed builders left. Cheap where there is nothing.
    pub(crate) fn sweep(&self) {
        for entry in fs::read_dir(self.folder()).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let key = key_of(&name);
            if name.ends_with(PARTIAL) && is_key(key) && matches!(self.try_lock(key), Ok(Some(_))) {
                // What cannot be removed now is tried again by the next command.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// One template, for people.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// What is written down about it; nothing where that cannot be read.
    pub manifest: Option<Manifest>,
    /// When a machine was last restored from it.
    pub used_at: Timestamp,
    /// What it takes on disk, in bytes.
    pub disk_bytes: u64,
}

impl Manifest {
    /// Why there is no template of this level, if that was found out not long ago.
    pub(crate) fn refusal(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Refused { reason } if Timestamp::now().duration_since(self.created_at) < REFUSED_FOR => {
                Some(reason)
            }
            _ => None,
        }
    }
}

/// Whether this is the file that is there.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(opened), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (opened.dev(), opened.ino()) == (there.dev(), there.ino())
}

fn is_key(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The key of the template that a folder is for.
fn key_of(folder: &str) -> &str {
    folder.split('.').next().unwrap_or_default()
}

fn partial_name(key: &str) -> Result<String, TemplateError> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| failed("name a folder of", key)(errno.into()))?;
    Ok(format!("{key}.{:08x}{PARTIAL}", u32::from_ne_bytes(bytes)))
}

fn read_secret(path: &Path) -> Option<[u8; 32]> {
    fs::read(path).ok()?.try_into().ok()
}

fn read_bounded(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Creates a file that nobody else may read.
fn create(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::open(path, flags, Mode::from(0o600))?))
}

fn disk_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
}

fn failed(action: &'static str, key: &str) -> impl FnOnce(io::Error) -> TemplateError {
    move |source| TemplateError::Io { action, key: key.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_who_builds_without_end_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::open(&Home::open(&dir.path().join("home")).unwrap()).unwrap();
        let key = "0".repeat(32);
        let soon = Duration::from_millis(50);
        let held = templates.lock(&key, soon).await.unwrap();
        let HomeError::Io { source, .. } = templates.lock(&key, soon).await.unwrap_err() else { panic!() };
        assert_eq!(source.kind(), io::ErrorKind::TimedOut);
        assert!(
            source.to_string().contains(&format!("process {} has held it", std::process::id())),
            "{source}"
        );
        drop(held);
        templates.lock(&key, soon).await.unwrap();
    }
}
