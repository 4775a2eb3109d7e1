//! What a file was before casemate wrote it: how it is named, and which one belongs to what the file says now.

use super::{ClientError, ClientFile, Content, whole::beside};
use std::{
    ffi::OsStr,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

const BACKUP: &str = ".casemate-backup-";
const ABSENT: &str = ".casemate-absent-";

/// Digits of a digest in a backup's name.
const DIGITS: usize = 16;

/// What a file was before casemate wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub(super) path: PathBuf,
    /// There was no file.
    pub(super) absent: bool,
    digest: String,
    /// Later ones have larger ones.
    pub(super) number: u64,
}

/// What happened to a file after casemate wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// It is what casemate wrote.
    Unchanged,
    /// Somebody wrote it.
    Changed,
    /// It is gone.
    Removed,
}

impl Backup {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the client's file said; nothing if there was none.
    pub fn text(&self) -> Result<Option<String>, ClientError> {
        if self.absent { Ok(None) } else { Content::read(&self.path).map(|content| Some(content.text)) }
    }

    /// Removes the backup.
    pub fn discard(&self) -> Result<(), ClientError> {
        fs::remove_file(&self.path).map_err(|source| ClientError::Write { path: self.path.clone(), source })
    }
}

/// What the backup of a file is called.
pub(super) fn name(file: &Path, absent: bool, written: &str, number: u64) -> PathBuf {
    let kind = if absent { ABSENT } else { BACKUP };
    beside(file, &format!("{kind}{}-{number}", digest(written.as_bytes())))
}

/// The part of a name that stands for what casemate wrote.
fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..DIGITS].to_owned()
}

impl ClientFile {
    /// What the file was before casemate wrote it: the backup of its present content if there is one, else the
    /// newest one.
    pub fn backup(&self) -> Result<(Backup, Since), ClientError> {
        let backups = self.backups()?;
        let present = self.text().map(|text| digest(text.as_bytes()));
        let of_present = backups.iter().filter(|backup| Some(&backup.digest) == present.as_ref());
        if let Some(backup) = of_present.max_by_key(|backup| backup.number) {
            return Ok((backup.clone(), Since::Unchanged));
        }
        let newest = backups.into_iter().max_by_key(|backup| backup.number);
        let newest = newest.ok_or_else(|| ClientError::NoBackup { path: self.path.clone() })?;
        // Whoever wrote the backup was killed before it replaced the file.
        if newest.text()?.as_deref() == self.text() {
            return Ok((newest, Since::Unchanged));
        }
        Ok((newest, if present.is_some() { Since::Changed } else { Since::Removed }))
    }

    pub(super) fn backups(&self) -> Result<Vec<Backup>, ClientError> {
        let failed = |source| ClientError::Read { path: self.path.clone(), source };
        let mut backups = Vec::new();
        let entries = match fs::read_dir(self.folder()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(backups),
            Err(source) => return Err(failed(source)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Some((absent, digest, number)) = self.is_backup(&entry.file_name()) else { continue };
            if fs::symlink_metadata(entry.path()).map_err(failed)?.is_file() {
                backups.push(Backup { path: entry.path(), absent, digest, number });
            }
        }
        Ok(backups)
    }

    /// Whether a name is that of a backup of this file: of no file, after what was written, and its number.
    fn is_backup(&self, name: &OsStr) -> Option<(bool, String, u64)> {
        let rest = self.suffix(name)?;
        let (absent, rest) = match rest.strip_prefix(BACKUP) {
            Some(rest) => (false, rest),
            None => (true, rest.strip_prefix(ABSENT)?),
        };
        let (digest, number) = rest.split_once('-')?;
        let is_digest = digest.len() == DIGITS && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some((absent, digest.to_owned(), number.parse().ok()?)).filter(|_| is_digest)
    }
}
