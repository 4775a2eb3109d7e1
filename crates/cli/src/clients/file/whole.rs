//! A file that is written whole beside another one, and then takes its place at once.
//!
//! Nothing that somebody put under the name that it has meanwhile is written to or followed; it keeps the owner of
//! what it replaces, and its own name tells who wrote it, so that it is swept up after that one was killed.

use rustix::{
    fs::{Gid, Mode, OFlags, Uid, fchown},
    io::Errno,
    process::{Pid, test_kill_process},
};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// What the name of a file begins with, behind that of the one it will replace, and before the writer's number.
pub(super) const NEW: &str = ".casemate-new-";

/// Replaces a file, or makes it. It has this mode then, and the owner that it had; what it was before is gone.
pub fn replace(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let owner = match fs::symlink_metadata(path) {
        Ok(meta) => Some((meta.uid(), meta.gid())),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let new = put(path, mode, owner, text)?;
    if let Err(error) = fs::rename(&new, path) {
        // The error that matters is the one that is returned.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    sync_folder(path);
    Ok(())
}

/// Writes a file for the place of `path`, under a name that it keeps for a moment. Without an owner it gets that of
/// the folder.
pub(super) fn put(path: &Path, mode: u32, owner: Option<(u32, u32)>, text: &str) -> io::Result<PathBuf> {
    sweep(path);
    let new = beside(path, &format!("{NEW}{}", std::process::id()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(&new, flags, Mode::RUSR | Mode::WUSR)?);
    let written = (|| {
        file.write_all(text.as_bytes())?;
        let wanted = match owner {
            Some(owner) => owner,
            // Whoever edits somebody else's home as root leaves nothing of root's there.
            None => fs::metadata(folder(path)).map(|meta| (meta.uid(), meta.gid()))?,
        };
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != wanted {
            let changed = fchown(&file, Some(Uid::from_raw(wanted.0)), Some(Gid::from_raw(wanted.1)));
            // A new file may be ours in a folder that is not.
            if owner.is_some() {
                changed?;
            }
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.map(|()| new)
}

/// Has the name of a file survive a power failure.
pub(super) fn sync_folder(path: &Path) {
    // A rename that a power failure undoes leaves the old file, which is whole too.
    let _ = File::open(folder(path)).and_then(|folder| folder.sync_all());
}

/// What follows the name of a file in that of another one beside it.
pub(super) fn suffix<'a>(path: &Path, name: &'a OsStr) -> Option<&'a str> {
    name.to_str()?.strip_prefix(path.file_name()?.to_str()?)
}

/// The file whose name is that of another one with this behind it.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes what commands left that were killed while they wrote.
fn sweep(path: &Path) {
    for entry in fs::read_dir(folder(path)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = suffix(path, &name).and_then(|suffix| suffix.strip_prefix(NEW));
        let number = rest.and_then(|pid| pid.parse::<u32>().ok()).and_then(|pid| i32::try_from(pid).ok());
        let writer = number.and_then(Pid::from_raw);
        if writer.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH)) {
            // What cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}
