//! Copies what was looked at, and nothing else.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::FolderError;
use super::survey::{Entry, Kind, Seen, Survey, open_below};
use crate::registry::digest::{Digest, Hasher};

/// Copies everything in the survey into the new folder `tree` and returns the digest of what was copied:
/// names, kinds, times and contents.
pub(super) fn copy(
    root: &File,
    folder: &Path,
    survey: &Survey,
    tree: &Path,
    owner: u32,
) -> Result<Digest, FolderError> {
    let mut hasher = Hasher::sha256();
    hasher.update(format!("folder 1 {owner}\n").as_bytes());
    for entry in &survey.entries {
        let Entry { path, kind, seen } = entry;
        let (source, target) = (folder.join(path), tree.join(path));
        let name = path.as_os_str().as_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(format!("{kind:?} {:?}\n", seen.modified).as_bytes());
        match kind {
            Kind::Folder => fs::create_dir(&target).map_err(FolderError::io("create", &target))?,
            Kind::File { executable } => {
                let bytes = copy_file(root, &source, entry, &target, *executable, &mut hasher)?;
                hasher.update(&bytes.to_le_bytes());
            }
            Kind::Link => {
                let leads_to = read_link(root, path).map_err(|errno| changed_or("read", &source, errno))?;
                hasher.update(&(leads_to.len() as u64).to_le_bytes());
                hasher.update(&leads_to);
                let leads_to = Path::new(std::ffi::OsStr::from_bytes(&leads_to));
                std::os::unix::fs::symlink(leads_to, &target).map_err(FolderError::io("create", &target))?;
            }
        }
        if *kind == Kind::Link {
            set_link_time(&target, seen);
        }
    }
    // Making what is in a folder changes its time: those deepest down first.
    for entry in survey.entries.iter().rev().filter(|entry| entry.kind == Kind::Folder) {
        let target = tree.join(&entry.path);
        let set = || {
            let opened = File::open(&target)?;
            opened.set_permissions(Permissions::from_mode(0o755))?;
            set_time(&opened, &entry.seen)
        };
        set().map_err(FolderError::io("change", &target))?;
    }
    Ok(hasher.finish())
}

fn copy_file(
    root: &File,
    source: &Path,
    entry: &Entry,
    target: &Path,
    executable: bool,
    hasher: &mut Hasher,
) -> Result<u64, FolderError> {
    let opened = open_below(root, &entry.path, OFlags::RDONLY);
    let mut from = opened.map_err(|errno| changed_or("open", source, errno))?;
    let meta = from.metadata().map_err(FolderError::io("look at", source))?;
    let changed = || FolderError::Changed { path: source.to_owned() };
    // What was opened is what was looked at.
    if Seen::from(&meta) != entry.seen {
        return Err(changed());
    }
    let mut to = File::create_new(target).map_err(FolderError::io("create", target))?;
    let (mut chunk, mut bytes) = (vec![0; 256 << 10], 0);
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FolderError::io("read", source)(error)),
        };
        bytes += count as u64;
        // One that grows while it is read is never read to its end.
        if bytes > entry.seen.bytes {
            return Err(changed());
        }
        hasher.update(&chunk[..count]);
        to.write_all(&chunk[..count]).map_err(FolderError::io("write", target))?;
    }
    if bytes != entry.seen.bytes {
        return Err(changed());
    }
    let mode = if executable { 0o755 } else { 0o644 };
    let finish = || {
        to.set_permissions(Permissions::from_mode(mode))?;
        set_time(&to, &entry.seen)
    };
    finish().map_err(FolderError::io("change", target))?;
    Ok(bytes)
}

/// The text of a link below an opened folder.
fn read_link(root: &File, path: &Path) -> rustix::io::Result<Vec<u8>> {
    let link = open_below(root, path, OFlags::PATH)?;
    rustix::fs::readlinkat(link, c"", Vec::new()).map(|text| text.into_bytes())
}

/// What was there a moment ago and is not any more, or is something else.
fn changed_or(operation: &'static str, path: &Path, errno: Errno) -> FolderError {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO => {
            FolderError::Changed { path: path.to_owned() }
        }
        Errno::XDEV => FolderError::Mounted { path: path.to_owned() },
        errno => FolderError::io(operation, path)(errno.into()),
    }
}

fn set_time(file: &File, seen: &Seen) -> io::Result<()> {
    let (seconds, nanos) = seen.modified;
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
        // Before 1970, which EROFS cannot hold.
        return file.set_modified(SystemTime::UNIX_EPOCH);
    };
    let modified = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
    file.set_times(FileTimes::new().set_modified(modified))
}

fn set_link_time(link: &Path, seen: &Seen) {
    let time = Timespec { tv_sec: seen.modified.0.max(0), tv_nsec: seen.modified.1 as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    // A link's time is for people; a file system that has none loses nothing.
    let _ = rustix::fs::utimensat(CWD, link, &times, AtFlags::SYMLINK_NOFOLLOW);
}
