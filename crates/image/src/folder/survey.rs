//! What a folder holds at one moment, without its contents.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, StatxTimestamp, makedev, statx,
};
use rustix::io::Errno;

use super::{FOLDER_BYTES, FOLDER_ENTRIES, FolderError};
use crate::files::DEPTH;
use crate::registry::digest::{Digest, Hasher};

/// Everything below a folder, sorted by path: a folder comes before what it holds.
pub(super) struct Survey {
    pub(super) entries: Vec<Entry>,
    /// When something in it was last changed.
    pub(super) newest: Option<SystemTime>,
}

/// Something in a folder.
pub(super) struct Entry {
    /// Relative to the folder; empty for the folder itself.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) seen: Seen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File { executable: bool },
    Link,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    device: u64,
    inode: u64,
    mode: u32,
    pub(super) bytes: u64,
    /// Seconds and nanoseconds since 1970.
    pub(super) modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Seen {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            mode: meta.mode(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl From<&Statx> for Seen {
    fn from(stat: &Statx) -> Self {
        let time = |time: StatxTimestamp| (time.tv_sec, i64::from(time.tv_nsec));
        Self {
            device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mode: u32::from(stat.stx_mode),
            bytes: stat.stx_size,
            modified: time(stat.stx_mtime),
            changed: time(stat.stx_ctime),
        }
    }
}

/// Opens the folder itself; its path may lead through links, which are its owner's.
pub(super) fn open(folder: &Path) -> Result<File, FolderError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::empty()) {
        Ok(opened) => Ok(opened.into()),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(FolderError::NoFolder { path: folder.to_owned() }),
        Err(errno) => Err(FolderError::io("open", folder)(errno.into())),
    }
}

/// Opens something below an opened folder, on a way without links and mounts.
pub(super) fn open_below(root: &File, path: &Path, flags: OFlags) -> rustix::io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // Opening a FIFO would wait for its other end. A path alone is not waited for, and takes no such flag.
    let flags = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NONBLOCK };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).map(File::from)
}

impl Survey {
    /// Looks at everything below `root`, which is the folder of that path.
    pub(super) fn take(root: &File, folder: &Path) -> Result<Self, FolderError> {
        let meta = root.metadata().map_err(FolderError::io("look at", folder))?;
        let own = Entry { path: PathBuf::new(), kind: Kind::Folder, seen: Seen::from(&meta) };
        let mut looking = Looking { root, folder, entries: vec![own], bytes: 0 };
        let mut next = 0;
        // Not by recursion: a stack has an end.
        while next < looking.entries.len() {
            if looking.entries[next].kind == Kind::Folder {
                let path = looking.entries[next].path.clone();
                looking.list(&path)?;
            }
            next += 1;
        }
        let mut entries = looking.entries;
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let newest = entries.iter().map(|entry| entry.seen.modified.max(entry.seen.changed)).max();
        let newest = newest.and_then(|(seconds, nanos)| {
            let since = Duration::new(seconds.try_into().ok()?, nanos.try_into().ok()?);
            SystemTime::UNIX_EPOCH.checked_add(since)
        });
        Ok(Self { entries, newest })
    }

    /// Names this state: another content has another, unless clocks stood still.
    pub(super) fn state(&self) -> Digest {
        let mut hasher = Hasher::sha256();
        for Entry { path, seen, .. } in &self.entries {
            let name = path.as_os_str().as_bytes();
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name);
            hasher.update(format!("{seen:?}\n").as_bytes());
        }
        hasher.finish()
    }
}

struct Looking<'a> {
    root: &'a File,
    folder: &'a Path,
    entries: Vec<Entry>,
    bytes: u64,
}

impl Looking<'_> {
    fn list(&mut self, below: &Path) -> Result<(), FolderError> {
        let shown = self.folder.join(below);
        if below.components().count() > DEPTH {
            return Err(FolderError::Deep { path: shown });
        }
        let opened = match open_below(self.root, below, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(opened) => opened,
            Err(Errno::XDEV) => return Err(FolderError::Mounted { path: shown }),
            // It was a folder a moment ago.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                return Err(FolderError::Changed { path: shown });
            }
            Err(errno) => return Err(FolderError::io("read", &shown)(errno.into())),
        };
        let failed = |errno: Errno| FolderError::io("read", &shown)(errno.into());
        for entry in Dir::read_from(&opened).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = below.join(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())));
            let shown = self.folder.join(&path);
            let basic = StatxFlags::BASIC_STATS;
            let stat = match statx(opened.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW, basic) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Err(FolderError::Changed { path: shown }),
                Err(errno) => return Err(FolderError::io("look at", &shown)(errno.into())),
            };
            let seen = Seen::from(&stat);
            let kind = kind(seen.mode).map_err(|kind| FolderError::Special { path: shown, kind })?;
            if let Kind::File { .. } = kind {
                self.bytes = self.bytes.saturating_add(seen.bytes);
            }
            self.entries.push(Entry { path, kind, seen });
            self.check_limits()?;
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), FolderError> {
        let limit = if self.entries.len() > FOLDER_ENTRIES {
            format!("{FOLDER_ENTRIES} files and folders")
        } else if self.bytes > FOLDER_BYTES {
            format!("{} MiB", FOLDER_BYTES >> 20)
        } else {
            return Ok(());
        };
        Err(FolderError::TooLarge { path: self.folder.to_owned(), limit })
    }
}

fn kind(mode: u32) -> Result<Kind, &'static str> {
    match FileType::from_raw_mode(mode) {
        FileType::Directory => Ok(Kind::Folder),
        FileType::RegularFile => Ok(Kind::File { executable: mode & 0o111 != 0 }),
        FileType::Symlink => Ok(Kind::Link),
        FileType::Fifo => Err("named pipe"),
        FileType::Socket => Err("socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Err("device"),
        _ => Err("file of an unknown kind"),
    }
}
