//! A client's file: read within bounds, replaced at once or not at all, and what it was before kept beside it.
//!
//! The backup's name carries a digest of what casemate wrote in its stead, and a number that counts up. So a
//! file tells by itself whether it is still what casemate wrote, several changes are undone one after the other,
//! and there is no record that could get lost or disagree. A backup may be the only copy of what somebody wrote:
//! it gets its name when it is whole, and never in the place of another one.
//!
//! ```text
//! mcp.json                                       written by casemate, digest 8f3a...
//! mcp.json.casemate-backup-8f3a5c9b12de4f70-2    what it was before that
//! mcp.json.casemate-absent-8f3a5c9b12de4f70-2    instead, if there was no file before that
//! ```
//!
//! Commands of casemate wait for each other: the lock is that of the folder, so that no file is left beside the
//! client's. Clients do not lock their files. Whether the file is still the one that was read is looked at just
//! before it is replaced; a client that writes in that moment is not seen.

mod backup;
mod content;
#[cfg(test)]
mod tests;
pub mod whole;

pub use backup::{Backup, Since};

use super::ClientError;
use crate::files::rename_new;
use casemate_image::lock;
use content::Content;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown};
use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// Larger files are no configuration; Claude Code keeps a history in its own.
pub const LIMIT: u64 = 32 << 20;

/// How many names of backups may be those of something else.
const PLANTED: u64 = 16;

/// How long another command may keep a file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A client's file as it was read.
#[derive(Debug)]
pub struct ClientFile {
    path: PathBuf,
    content: Option<Content>,
    lock: Option<File>,
}

impl ClientFile {
    /// Reads a file, which need not exist. A link is followed, so that it stays one when the file is replaced.
    pub fn read(path: &Path) -> Result<Self, ClientError> {
        let mut file = Self { path: resolve(path)?, content: None, lock: None };
        file.content = file.present()?;
        Ok(file)
    }

    /// Reads a file that is to be written: other commands of casemate wait until this is dropped.
    pub fn open(path: &Path) -> Result<Self, ClientError> {
        let mut file = Self { path: resolve(path)?, content: None, lock: None };
        // Where there is no folder nobody has written yet; the file is locked once there is one.
        file.lock = if file.folder().is_dir() { lock(file.folder())? } else { None };
        file.content = file.present()?;
        Ok(file)
    }

    /// The file, with links followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says; nothing if there is no such file.
    pub fn text(&self) -> Option<&str> {
        self.content.as_ref().map(|content| content.text.as_str())
    }

    /// Replaces the file and returns where the old one is kept. Mode and owner stay; a new file is its
    /// user's alone. If this fails the file is as it was.
    pub fn replace(&self, text: &str) -> Result<PathBuf, ClientError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| ClientError::Write { path, source }
        };
        if self.content.is_none() {
            make_folder(self.folder()).map_err(write(self.folder()))?;
        }
        let _lock = self.locked()?;
        self.check_unchanged()?;
        let last = self.backups()?.iter().map(|backup| backup.number).max().unwrap_or(0);
        let name = |number| backup::name(&self.path, self.content.is_none(), text, number);
        let new = self.put(self.text().unwrap_or_default()).map_err(write(&name(last)))?;
        let mut number = last.saturating_add(1);
        let backup = loop {
            match rename_new(&new, &name(number)) {
                Ok(()) => break name(number),
                // Not a backup, and not ours to remove.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && number - last < PLANTED => {
                    number += 1
                }
                Err(error) => {
                    let _ = fs::remove_file(&new);
                    return Err(write(&name(number))(error));
                }
            }
        };
        let replaced = self.swap(text);
        if replaced.is_err() {
            // It is this command's own. The error that matters is the one that is returned.
            let _ = fs::remove_file(&backup);
        }
        replaced.map(|()| backup)
    }

    /// Makes the file again what it was, to the byte; the backup is gone afterwards.
    pub fn restore(&self, backup: &Backup) -> Result<(), ClientError> {
        let failed = |source| ClientError::Write { path: self.path.clone(), source };
        let _lock = self.locked()?;
        self.check_unchanged()?;
        if !backup.absent {
            return fs::rename(&backup.path, &self.path).map_err(failed);
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        backup.discard()
    }

    /// Replaces the file without keeping what it is now.
    pub fn overwrite(&self, text: &str) -> Result<(), ClientError> {
        let _lock = self.locked()?;
        self.swap(text)
    }

    /// The lock, unless this has it already.
    fn locked(&self) -> Result<Option<File>, ClientError> {
        if self.lock.is_some() { Ok(None) } else { lock(self.folder()) }
    }

    fn swap(&self, text: &str) -> Result<(), ClientError> {
        let failed = |source| ClientError::Write { path: self.path.clone(), source };
        let new = self.put(text).map_err(failed)?;
        let replaced = self.check_unchanged().and_then(|()| fs::rename(&new, &self.path).map_err(failed));
        if replaced.is_err() {
            let _ = fs::remove_file(&new);
            return replaced;
        }
        whole::sync_folder(&self.path);
        Ok(())
    }

    /// What follows the file's own name in that of a file beside it.
    fn suffix<'a>(&self, name: &'a OsStr) -> Option<&'a str> {
        whole::suffix(&self.path, name)
    }

    /// Writes a file with the mode and the owner of this one, under a name that it keeps for a moment.
    fn put(&self, text: &str) -> io::Result<PathBuf> {
        let mode = self.content.as_ref().map_or(0o600, |content| content.mode);
        whole::put(&self.path, mode, self.content.as_ref().map(|content| content.owner), text)
    }

    fn check_unchanged(&self) -> Result<(), ClientError> {
        let now = self.present()?.map(|content| content.text);
        match now.as_deref() == self.text() {
            true => Ok(()),
            false => Err(ClientError::Raced { path: self.path.clone() }),
        }
    }

    /// What the file says now, if there is one.
    fn present(&self) -> Result<Option<Content>, ClientError> {
        match Content::read(&self.path) {
            Ok(content) => Ok(Some(content)),
            Err(ClientError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

/// The file that a path leads to, or would.
fn resolve(path: &Path) -> Result<PathBuf, ClientError> {
    let failed = |source| ClientError::Read { path: path.to_owned(), source };
    match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok() {
                return Err(ClientError::Dangling { path: path.to_owned() });
            }
            std::path::absolute(path).map_err(failed)
        }
        resolved => resolved.map_err(failed),
    }
}

/// Waits for the lock of a folder; there is none on file systems that cannot lock folders.
fn lock(folder: &Path) -> Result<Option<File>, ClientError> {
    let failed = |source| ClientError::Write { path: folder.to_owned(), source };
    let file = File::open(folder).map_err(failed)?;
    match lock::within(&file, LOCK_TIMEOUT, || {}) {
        Ok(()) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            Err(failed(io::Error::new(ErrorKind::TimedOut, format!("its folder is locked: {error}"))))
        }
        // The file is still compared with what was read before it is replaced.
        Err(_) => Ok(None),
    }
}

/// Makes a folder, and what is missing above it, for the owner of the nearest folder that is there: whoever edits
/// somebody else's home as root leaves nothing of root's there.
fn make_folder(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.is_dir()).collect();
    for folder in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        let above = fs::metadata(folder.parent().unwrap_or(Path::new("/")))?;
        // The folder itself: its owner-to-be may have put a link there by now.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = File::from(rustix::fs::open(folder, flags, Mode::empty())?);
        let own = made.metadata()?;
        if (own.uid(), own.gid()) != (above.uid(), above.gid()) {
            // A folder may be ours below one that is not.
            let _ = fchown(&made, Some(Uid::from_raw(above.uid())), Some(Gid::from_raw(above.gid())));
        }
    }
    Ok(())
}
