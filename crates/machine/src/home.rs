//! `$CASEMATE_HOME`: where everything that outlives a command is kept.
//!
//! ```text
//! config.toml
//! images/<digest>/  kernels/<id>/  cache/     of casemate-image
//! machines/<id>/    machine.json, lock, supervisor.sock, logs/{server,console,vmm}.log
//! machines/lock     taken for decisions across machines: names, CIDs, sweeping, pruning
//! ```

use casemate_image::lock;
use rustix::fs::{Mode, OFlags};
use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long one command may keep others from deciding: each holds the lock for milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the home folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Neither `CASEMATE_HOME` nor `XDG_DATA_HOME` nor `HOME` is set.
    #[error("no home folder: neither CASEMATE_HOME nor HOME is set")]
    Unset,
    /// The path is not absolute, or is no folder.
    #[error("home {path} is no absolute path of a folder")]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// The folder belongs to somebody else, who could replace what is in it.
    #[error("home {path} belongs to user {owner}, not to user {user}")]
    Foreign {
        /// The path.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// Such as `create`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl HomeError {
    /// Attaches operation and object to an I/O error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// An opened home folder: it exists, is ours, and nobody else may enter it.
#[derive(Debug, Clone)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// The folder that the environment names: `CASEMATE_HOME`, else `casemate` in the XDG data folder.
    pub fn from_environment() -> Result<Self, HomeError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = set("CASEMATE_HOME")
            .or_else(|| set("XDG_DATA_HOME").map(|data| data.join("casemate")))
            .or_else(|| set("HOME").map(|home| home.join(".local/share/casemate")))
            .ok_or(HomeError::Unset)?;
        Self::open(&path)
    }

    /// Opens a home folder, making it if it is missing.
    pub fn open(path: &Path) -> Result<Self, HomeError> {
        if !path.is_absolute() {
            return Err(HomeError::NoFolder { path: path.to_owned() });
        }
        create_private_dir(path)?;
        let meta = fs::metadata(path).map_err(HomeError::io("look at", path))?;
        if !meta.is_dir() {
            return Err(HomeError::NoFolder { path: path.to_owned() });
        }
        let user = rustix::process::geteuid().as_raw();
        if meta.uid() != user {
            return Err(HomeError::Foreign { path: path.to_owned(), owner: meta.uid(), user });
        }
        if meta.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(HomeError::io("close to others", path))?;
        }
        let home = Self { path: path.to_owned() };
        create_private_dir(&home.machines())?;
        Ok(home)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where machines are kept.
    pub fn machines(&self) -> PathBuf {
        self.path.join("machines")
    }

    /// The folder of one machine.
    pub fn machine(&self, id: &str) -> PathBuf {
        self.machines().join(id)
    }

    /// Where what can be made again is kept.
    pub fn cache(&self) -> Result<PathBuf, HomeError> {
        let cache = self.path.join("cache");
        create_private_dir(&cache)?;
        Ok(cache)
    }

    /// Waits, for a bounded time, for the lock that decisions across machines are taken under; dropping it
    /// releases it.
    pub(crate) fn lock_machines(&self) -> Result<File, HomeError> {
        let path = self.machines_lock();
        let file = open_lock(&path)?;
        lock::within(&file, LOCK_TIMEOUT, || {}).map_err(HomeError::io("lock", &path))?;
        Ok(file)
    }

    /// The same lock, if nobody has it now.
    pub(crate) fn try_lock_machines(&self) -> Result<Option<File>, HomeError> {
        let path = self.machines_lock();
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(HomeError::io("lock", &path)(source)),
        }
    }

    fn machines_lock(&self) -> PathBuf {
        self.machines().join("lock")
    }
}

/// Opens a lock file, making it if it is missing.
pub(crate) fn open_lock(path: &Path) -> Result<File, HomeError> {
    rustix::fs::open(
        path,
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::from(0o600),
    )
    .map(File::from)
    .map_err(|errno| HomeError::io("open", path)(errno.into()))
}

/// Makes a folder, and what is missing above it, that nobody else may enter.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), HomeError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(HomeError::io("create", path))
}

/// Names one boot of the host.
pub(crate) fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Replaces a file in one step: a reader sees the old content or the new, whoever is killed.
///
/// Not waited for is the disk: what is written here is worth nothing after the host went down.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), HomeError> {
    replace(path, content, |_| Ok(()))
}

/// As [`write_atomically`], for what is needed after the host went down: the disk has it when this returns, once
/// the folder was synchronised too.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> Result<(), HomeError> {
    replace(path, content, File::sync_all)
}

/// Waits until the disk has the names in a folder.
pub(crate) fn sync_dir(path: &Path) -> Result<(), HomeError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(HomeError::io("synchronise", path))
}

fn replace(path: &Path, content: &[u8], settle: impl Fn(&File) -> io::Result<()>) -> Result<(), HomeError> {
    let error = |source| HomeError::Io { action: "write", path: path.to_owned(), source };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(HomeError::NoFolder { path: path.to_owned() });
    };
    // One writer at a time: the supervisor of a machine, or a command that holds the registry's lock. A
    // name of its own would leave a file behind for every writer that was killed.
    let mut temporary = name.to_owned();
    temporary.push(".new");
    let temporary = parent.join(temporary);
    let result = (|| {
        let mode = Mode::from(0o600);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file = File::from(rustix::fs::open(&temporary, flags, mode)?);
        io::Write::write_all(&mut file, content)?;
        settle(&file)?;
        fs::rename(&temporary, path)
    })();
    result.map_err(|source| {
        // The error that matters is the one that is returned.
        let _ = fs::remove_file(&temporary);
        error(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_that_others_may_enter_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/home");
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let home = Home::open(&path).unwrap();
        assert_eq!(fs::metadata(home.path()).unwrap().mode() & 0o777, 0o700);
        assert!(home.machines().is_dir());
    }

    #[test]
    fn a_relative_or_occupied_path_is_refused() {
        assert!(matches!(Home::open(Path::new("here")), Err(HomeError::NoFolder { .. })));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Home::open(file.path()).is_err());
    }

    #[test]
    fn an_atomic_write_leaves_no_second_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.json");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
