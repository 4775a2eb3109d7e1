//! Volumes: named file systems that servers write to and that outlive their machines.
//!
//! ```text
//! volumes/lock                 taken for making, finding and removing
//! volumes/<name>/volume.ext4   sparse; locked by whoever uses it
//!                volume.json   its size and when it was made; without it the image tells
//!                user          the machine that used it last
//! ```
//!
//! A volume belongs to one machine at a time: the lock is that of the opened file which the supervisor holds for
//! all of the machine's life and the VMM inherits, so that it is free when neither can write any more, whoever
//! was killed. The host's kernel never mounts one.

mod export;
mod ext4;
mod make;

use crate::home::{
    Home, HomeError, create_private_dir, open_lock, sync_dir, write_atomically, write_durably,
};
use casemate_image::lock;
use casemate_proto::ids::Name;
pub use export::{ExportError, Exported, Unread};
use jiff::Timestamp;
pub(crate) use make::MAKER_BOUNDS;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, TryLockError},
    io,
    ops::RangeInclusive,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The sizes that a volume can have, in bytes: smaller ones have no room for a journal.
pub const SIZES: RangeInclusive<u64> = 16 << 20..=1 << 40;

/// The size of a volume of which none was said, in bytes.
pub const DEFAULT_BYTES: u64 = 1 << 30;

/// How long one command may keep others from making and removing volumes. Making one takes milliseconds, removing
/// a large one seconds.
const DECISION_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one who wants a volume for itself waits for those who only look whether it is free, and how often it
/// tries meanwhile.
const LOOKERS_TIMEOUT: Duration = Duration::from_millis(500);
const LOOKERS_POLL: Duration = Duration::from_millis(5);

const IMAGE: &str = "volume.ext4";
const MANIFEST: &str = "volume.json";
const USER: &str = "user";

/// How names of folders begin that are not volumes yet, or not any more: no volume's name does.
const UNFINISHED: &str = ".";

/// The longest `volume.json`, and the longest name of a machine.
const MANIFEST_BYTES: u64 = 64 << 10;

/// Why a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The home folder failed.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// There is none of that name.
    #[error("no volume is named {0}")]
    Missing(Name),
    /// It is larger or smaller than any volume.
    #[error("a volume has {} MiB to {} GiB, not {bytes} bytes", SIZES.start() >> 20, SIZES.end() >> 30)]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// It exists, with another size.
    #[error("volume {name} has {} MiB, not {} MiB", has >> 20, wanted >> 20)]
    OtherSize {
        /// Which.
        name: Name,
        /// Its size in bytes.
        has: u64,
        /// What was asked for, in bytes.
        wanted: u64,
    },
    /// Somebody uses it.
    #[error("volume {name} is used by {by}")]
    Used {
        /// Which.
        name: Name,
        /// Such as `machine notes`.
        by: String,
    },
    /// It is not as it was made.
    #[error("volume {name} is damaged: {what}")]
    Damaged {
        /// Which.
        name: Name,
        /// What is wrong.
        what: &'static str,
    },
    /// The program that makes file systems is missing.
    #[error("mke2fs is not installed; install e2fsprogs (apt-get install e2fsprogs)")]
    NoMaker,
    /// That program failed.
    #[error("mke2fs failed: {0}")]
    Maker(String),
    /// The operating system refused.
    #[error("cannot {action} volume {name}")]
    Io {
        /// Such as `make`.
        action: &'static str,
        /// Which.
        name: Name,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is written down about a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    size_bytes: u64,
    created_at: Timestamp,
}

impl Manifest {
    /// What the image itself tells.
    fn of(image: &fs::Metadata) -> Self {
        let written = image.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
        Self { size_bytes: image.len(), created_at: written.unwrap_or(Timestamp::UNIX_EPOCH) }
    }
}

/// A volume, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its name.
    pub name: Name,
    /// What it can hold, in bytes, its own tables among that.
    pub size_bytes: u64,
    /// What it takes on the host's disk, in bytes.
    pub disk_bytes: u64,
    /// When it was made, or written last if that is not known any more.
    pub created_at: Timestamp,
    /// The machine that uses it now.
    pub used_by: Option<String>,
    /// The file that it is.
    pub path: PathBuf,
}

/// The volumes of a home folder.
#[derive(Debug, Clone)]
pub struct Volumes {
    home: Home,
}

/// What a file system takes that is to have so many bytes.
fn whole_blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(1 << 20)
}

impl Volumes {
    /// The volumes of this home.
    pub fn open(home: &Home) -> Result<Self, HomeError> {
        let volumes = Self { home: home.clone() };
        create_private_dir(&volumes.folder())?;
        Ok(volumes)
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("volumes")
    }

    fn dir(&self, name: &Name) -> PathBuf {
        self.folder().join(name.as_str())
    }

    fn lock(&self) -> Result<File, HomeError> {
        let path = self.folder().join("lock");
        let file = open_lock(&path)?;
        lock::within(&file, DECISION_TIMEOUT, || {}).map_err(HomeError::io("lock", &path))?;
        Ok(file)
    }

    /// All volumes, by name.
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let folder = self.folder();
        let entries = fs::read_dir(&folder).map_err(HomeError::io("list", &folder))?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<Name>().ok());
        // One that cannot be read, or is being removed, does not hide the others.
        let mut volumes: Vec<Volume> =
            names.filter(|name| self.dir(name).is_dir()).filter_map(|name| self.get(&name).ok()).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// The volume of this name.
    pub fn get(&self, name: &Name) -> Result<Volume, VolumeError> {
        self.find(name)?;
        let path = self.dir(name).join(IMAGE);
        let meta = fs::metadata(&path).map_err(failed("look at", name))?;
        // What is written down tells whether the image is whole; nothing else depends on it.
        let manifest = self.manifest(name).unwrap_or_else(|| Manifest::of(&meta));
        if meta.len() != manifest.size_bytes || !SIZES.contains(&meta.len()) {
            return Err(VolumeError::Damaged { name: name.clone(), what: "its file has another size" });
        }
        Ok(Volume {
            name: name.clone(),
            size_bytes: manifest.size_bytes,
            disk_bytes: meta.blocks() * 512,
            created_at: manifest.created_at,
            used_by: self.user(name),
            path,
        })
    }

    /// The volume of this name, if there is one. A size that was said has to be the one that it has, and one that
    /// a volume can have.
    pub fn fitting(&self, name: &Name, bytes: Option<u64>) -> Result<Option<Volume>, VolumeError> {
        let wanted = bytes.map(whole_blocks);
        if let Some(bytes) = wanted.filter(|bytes| !SIZES.contains(bytes)) {
            return Err(VolumeError::Size { bytes });
        }
        match (self.get(name), wanted) {
            (Err(VolumeError::Missing(_)), _) => Ok(None),
            (Ok(volume), Some(wanted)) if volume.size_bytes != wanted => {
                let (name, has) = (name.clone(), volume.size_bytes);
                Err(VolumeError::OtherSize { name, has, wanted })
            }
            (found, _) => found.map(Some),
        }
    }

    /// Makes the volume of this name, or finds it made. A size that was said has to be the one that it has.
    pub fn ensure(&self, name: &Name, bytes: Option<u64>) -> Result<Volume, VolumeError> {
        let _one_makes_it = self.lock()?;
        self.sweep();
        if let Some(volume) = self.fitting(name, bytes)? {
            return Ok(volume);
        }
        let dir = self.folder().join(format!("{UNFINISHED}{name}"));
        create_private_dir(&dir)?;
        let size_bytes = bytes.map_or(DEFAULT_BYTES, whole_blocks);
        make::file_system(name, &dir.join(IMAGE), size_bytes)?;
        let manifest = Manifest { size_bytes, created_at: Timestamp::now() };
        // Numbers and times: it serialises.
        let text = serde_json::to_vec(&manifest).unwrap_or_default();
        write_durably(&dir.join(MANIFEST), &text)?;
        sync_dir(&dir)?;
        fs::rename(&dir, self.dir(name)).map_err(failed("make", name))?;
        sync_dir(&self.folder())?;
        self.get(name)
    }

    /// Removes a volume with everything in it, unless somebody uses it.
    pub fn remove(&self, name: &Name) -> Result<(), VolumeError> {
        let _one_removes_it = self.lock()?;
        self.sweep();
        self.find(name)?;
        let _held = match self.open_image(name, Access::Alone) {
            Ok(held) => Some(held),
            // One without a file can be removed too. Of any other it has to be sure that nobody uses it.
            Err(VolumeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let gone = self.folder().join(format!("{UNFINISHED}{name}"));
        fs::rename(self.dir(name), &gone).map_err(failed("remove", name))?;
        fs::remove_dir_all(&gone).map_err(failed("remove", name))
    }

    /// Opens a volume for a machine, which has it for itself until the file is closed everywhere.
    pub(crate) fn take(&self, name: &Name, machine: &Name) -> Result<File, VolumeError> {
        let volume = self.get(name)?;
        let file = self.open_image(name, Access::Alone)?;
        debug_assert_eq!(volume.name, *name);
        write_atomically(&self.dir(name).join(USER), format!("machine {machine}").as_bytes())?;
        Ok(file)
    }

    /// Who uses a volume now.
    pub fn user(&self, name: &Name) -> Option<String> {
        match self.open_image(name, Access::Shared) {
            Err(VolumeError::Used { by, .. }) => Some(by),
            _ => None,
        }
    }

    fn open_image(&self, name: &Name, access: Access) -> Result<File, VolumeError> {
        let path = self.dir(name).join(IMAGE);
        let way = if access == Access::Alone { OFlags::RDWR } else { OFlags::RDONLY };
        let opened = rustix::fs::open(&path, way | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty());
        let file = File::from(opened.map_err(|errno| failed("open", name)(errno.into()))?);
        let until = Instant::now() + LOOKERS_TIMEOUT;
        loop {
            let locked = match access {
                Access::Alone => file.try_lock(),
                Access::Shared => file.try_lock_shared(),
            };
            match locked {
                // It may have been removed, and made again, before it was locked.
                Ok(()) if is_at(&file, &path) => return Ok(file),
                Ok(()) => return Err(VolumeError::Missing(name.clone())),
                Err(TryLockError::Error(source)) => return Err(failed("lock", name)(source)),
                Err(TryLockError::WouldBlock) => {}
            }
            let is_looked_at = access == Access::Alone && file.try_lock_shared().is_ok();
            if !is_looked_at || Instant::now() > until {
                return Err(self.used(name, is_looked_at));
            }
            file.unlock().map_err(failed("lock", name))?;
            std::thread::sleep(LOOKERS_POLL);
        }
    }

    fn used(&self, name: &Name, is_looked_at: bool) -> VolumeError {
        let machine = read_bounded(&self.dir(name).join(USER)).filter(|_| !is_looked_at);
        let by = machine.unwrap_or_else(|| "a command that reads it".to_owned());
        VolumeError::Used { name: name.clone(), by }
    }

    fn find(&self, name: &Name) -> Result<(), VolumeError> {
        if self.dir(name).is_dir() { Ok(()) } else { Err(VolumeError::Missing(name.clone())) }
    }

    /// What is written down about a volume, if it can be read.
    fn manifest(&self, name: &Name) -> Option<Manifest> {
        serde_json::from_str(&read_bounded(&self.dir(name).join(MANIFEST))?).ok()
    }

    /// Removes what was not made, or not removed, to its end. The lock has to be held.
    fn sweep(&self) {
        for entry in fs::read_dir(self.folder()).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(UNFINISHED)) {
                // What cannot be removed now is tried again by the next command.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Whether others may have a volume too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Alone,
    Shared,
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(opened), Ok(named)) => (opened.dev(), opened.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn read_bounded(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    io::Read::read_to_string(&mut io::Read::take(file, MANIFEST_BYTES), &mut text).ok()?;
    Some(text)
}

fn failed(action: &'static str, name: &Name) -> impl FnOnce(io::Error) -> VolumeError {
    let name = name.clone();
    move |source| VolumeError::Io { action, name, source }
}

#[cfg(test)]
mod tests;
