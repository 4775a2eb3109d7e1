//! Folders of the host, packed so that a machine can mount them read-only.
//!
//! ```text
//! <home>/cache/mounts/<content>.erofs     0444; held with a shared lock by whoever uses it
//!                     <content>.json      the digest and size of the image; its time is that of the last use
//!                     seen/<state>.json   the content that a folder in this state has
//! ```
//!
//! A folder is looked at, copied and looked at again: what changed meanwhile is refused rather than packed
//! half old and half new. The copy is made by descriptors that no link leads out of, so that whoever may write
//! to the folder cannot have another one packed. Links are packed as links. A folder in a state that was packed
//! before is not read again.

mod copy;
mod survey;

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::erofs::{self, ErofsError};
use crate::partial::{self, PartialDir};
use crate::progress::Progress;
use crate::record;
use crate::registry::digest::Digest;
use crate::store::{BUILD_TIME, Store, StoreError};
use survey::Survey;

/// The folders of the cache: of images, and of the states that folders were seen in.
const CACHE: &str = "mounts";
const SEEN: &str = "mounts/seen";
pub(crate) const CACHES: [&str; 2] = [CACHE, SEEN];

/// The largest folder, in bytes, and the most files, folders and links in it.
pub const FOLDER_BYTES: u64 = 1 << 30;
/// See [`FOLDER_BYTES`].
pub const FOLDER_ENTRIES: usize = 100_000;

/// What all packed folders of a home may take unless they are used, in bytes.
const CACHE_BYTES: u64 = 4 << 30;

/// A packed folder that was not used for so long is removed.
const CACHE_AGE: Duration = Duration::from_secs(14 * 24 * 3600);

/// A folder that was changed a moment ago may change again without its times showing it: its state is not
/// remembered. Clocks of file systems tick every 10 ms; those of network file systems every 2 s.
const SETTLED: Duration = Duration::from_secs(2);

/// A folder as an image.
#[derive(Debug, Clone)]
pub struct Packed {
    /// An EROFS image.
    pub image: PathBuf,
    /// The image's own digest.
    pub digest: String,
    /// The image's size, in bytes.
    pub bytes: u64,
    /// Keeps the image from being pruned as long as it is open.
    pub held: std::sync::Arc<File>,
}

/// Why a folder cannot be packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// There is no such folder.
    #[error("{} is no folder", path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// It is larger than a machine is given.
    #[error("{} holds more than {limit}", path.display())]
    TooLarge {
        /// The folder.
        path: PathBuf,
        /// Such as `100000 files and folders`.
        limit: String,
    },
    /// It holds something that is neither file nor folder nor link.
    #[error("{} is a {kind}, which cannot be packed", path.display())]
    Special {
        /// What it holds.
        path: PathBuf,
        /// Such as `socket`.
        kind: &'static str,
    },
    /// Another file system is mounted in it.
    #[error("another file system is mounted on {}", path.display())]
    Mounted {
        /// Where.
        path: PathBuf,
    },
    /// It changed while it was read.
    #[error("{} changed while it was packed", path.display())]
    Changed {
        /// The folder, or what changed in it.
        path: PathBuf,
    },
    /// Folders in folders without end.
    #[error("{} is nested deeper than {} folders", path.display(), crate::files::DEPTH)]
    Deep {
        /// Where the limit was reached.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        #[source]
        /// The cause.
        source: io::Error,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The packer failed.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
}

impl FolderError {
    /// Attaches operation and path to an I/O error.
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// What is kept beside an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    digest: String,
    bytes: u64,
}

/// Packs a folder, or finds it packed. Everything in it will be the property of user and group `owner`,
/// readable for everybody.
pub fn pack(
    store: &Store,
    folder: &Path,
    owner: u32,
    progress: &dyn Progress,
) -> Result<Packed, FolderError> {
    pack_between(store, folder, owner, progress, &|| {})
}

/// As [`pack`]; `between` is called when the folder was looked at and is not copied yet.
fn pack_between(
    store: &Store,
    folder: &Path,
    owner: u32,
    progress: &dyn Progress,
    between: &dyn Fn(),
) -> Result<Packed, FolderError> {
    let cache = store.cache(CACHE)?;
    let seen = store.cache(SEEN)?;
    let root = survey::open(folder)?;
    let began = SystemTime::now();
    let before = Survey::take(&root, folder)?;
    let state = seen.join(format!("{}-{owner}.json", before.state().to_hex()));
    if let Some(packed) = record::read::<String>(&state).and_then(|content| find(&cache, &content)) {
        return Ok(packed);
    }
    between();

    partial::sweep(&cache);
    let work = PartialDir::inside(&cache).map_err(FolderError::io("write to", &cache))?;
    let tree = work.path().join("tree");
    let content = copy::copy(&root, folder, &before, &tree, owner)?;
    if Survey::take(&root, folder)?.state() != before.state() {
        return Err(FolderError::Changed { path: folder.to_owned() });
    }
    let say = || progress.step("waiting for another command that packs a folder");
    let _one_packs = store.lock("mounts", BUILD_TIME, say)?;
    let packed = publish(&cache, &work.path().join("image"), &tree, &content, owner)?;
    prune_seen(&cache, CACHE_AGE);
    if before.newest.is_some_and(|newest| newest + SETTLED < began) {
        // Without the record it is copied again next time.
        let _ = record::write(&state, &content.to_hex());
    }
    Ok(packed)
}

/// Makes an image of the copy, unless there is one of this content. The lock of all packed folders has to be held.
fn publish(
    cache: &Path,
    unfinished: &Path,
    tree: &Path,
    content: &Digest,
    owner: u32,
) -> Result<Packed, FolderError> {
    let name = content.to_hex();
    if let Some(packed) = find(cache, &name) {
        return Ok(packed);
    }
    let digest = erofs::pack_folder(tree, unfinished, content, owner)?;
    let (image, kept) = (cache.join(format!("{name}.erofs")), cache.join(format!("{name}.json")));
    let finish = || {
        fs::set_permissions(unfinished, fs::Permissions::from_mode(0o444))?;
        let bytes = fs::metadata(unfinished)?.len();
        fs::rename(unfinished, &image)?;
        Ok(bytes)
    };
    let bytes = finish().map_err(FolderError::io("write", &image))?;
    let written = record::write(&kept, &Kept { digest: digest.to_string(), bytes });
    written.map_err(|error| FolderError::io("write", &kept)(io::Error::other(error)))?;
    let lost =
        || FolderError::Io { operation: "read", path: image.clone(), source: io::ErrorKind::NotFound.into() };
    let packed = find(cache, &name).ok_or_else(lost)?;
    prune_to(cache, CACHE_BYTES, CACHE_AGE);
    Ok(packed)
}

/// The image of this content, held.
fn find(cache: &Path, content: &str) -> Option<Packed> {
    Digest::from_hex(content)?;
    let (image, kept) = (cache.join(format!("{content}.erofs")), cache.join(format!("{content}.json")));
    let held = File::open(&image).ok()?;
    // Who has it for itself is removing it.
    held.try_lock_shared().ok()?;
    // Read once the image cannot be pruned any more: before, it may have been another's.
    let Kept { digest, bytes } = record::read(&kept)?;
    let (opened, named) = (held.metadata().ok()?, fs::metadata(&image).ok()?);
    if opened.len() != bytes || opened.ino() != named.ino() {
        return None;
    }
    // For pruning: it was used now.
    if let Ok(kept) = File::options().append(true).open(&kept) {
        let _ = kept.set_modified(SystemTime::now());
    }
    Some(Packed { image, digest, bytes, held: held.into() })
}

/// Removes the packed folders that no machine uses; returns their bytes.
pub fn prune(store: &Store) -> Result<u64, FolderError> {
    let cache = store.cache(CACHE)?;
    let _one_packs = store.lock("mounts", BUILD_TIME, || {})?;
    Ok(prune_to(&cache, 0, Duration::ZERO))
}

/// Removes what was not used for `age`, and the least recently used until what is left takes no more than
/// `limit` bytes. What is held stays.
fn prune_to(cache: &Path, limit: u64, age: Duration) -> u64 {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path());
    let images = entries.filter(|path| path.extension().is_some_and(|extension| extension == "erofs"));
    let mut images: Vec<(SystemTime, u64, PathBuf)> = images
        .filter_map(|image| {
            let bytes = fs::metadata(&image).ok()?.len();
            // One without a record is one that nobody finds.
            let used = fs::metadata(image.with_extension("json")).and_then(|meta| meta.modified());
            Some((used.unwrap_or(SystemTime::UNIX_EPOCH), bytes, image))
        })
        .collect();
    images.sort();
    let (now, mut left) = (SystemTime::now(), images.iter().map(|(_, bytes, _)| bytes).sum::<u64>());
    let mut removed = 0;
    for (used, bytes, image) in images {
        let unused = now.duration_since(used).unwrap_or_default();
        if (left > limit || unused >= age) && remove(&image) {
            left -= bytes;
            removed += bytes;
        }
    }
    prune_seen(cache, CACHE_AGE);
    removed
}

/// Removes the records of states whose image is gone, and those that are older than `age`: each change of a folder
/// makes a new one.
fn prune_seen(cache: &Path, age: Duration) {
    let now = SystemTime::now();
    for entry in fs::read_dir(cache.join("seen")).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let written = entry.metadata().and_then(|meta| meta.modified());
        let is_young = written.is_ok_and(|at| now.duration_since(at).unwrap_or_default() < age);
        let content = record::read::<String>(&path).filter(|content| Digest::from_hex(content).is_some());
        let is_kept = content.is_some_and(|content| cache.join(format!("{content}.erofs")).exists());
        if !(is_young && is_kept) {
            // Without it a folder is read once more.
            let _ = fs::remove_file(path);
        }
    }
}

fn remove(image: &Path) -> bool {
    let Ok(file) = File::open(image) else { return false };
    if !matches!(file.try_lock(), Ok(()) | Err(TryLockError::Error(_))) {
        return false;
    }
    // The record first: an image without one is found by nobody.
    let kept = fs::remove_file(image.with_extension("json"));
    match kept {
        Err(error) if error.kind() != io::ErrorKind::NotFound => false,
        _ => fs::remove_file(image).is_ok(),
    }
}

#[cfg(test)]
mod tests;
