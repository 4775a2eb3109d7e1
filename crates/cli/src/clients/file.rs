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

use super::ClientError;
use crate::files::rename_new;
use rustix::{
    fs::{Gid, Mode, OFlags, Uid, fchown},
    io::Errno,
    process::{Pid, test_kill_process},
};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Larger files are no configuration; Claude Code keeps a history in its own.
pub const LIMIT: u64 = 32 << 20;

const BACKUP: &str = ".casemate-backup-";
const ABSENT: &str = ".casemate-absent-";
const NEW: &str = ".casemate-new-";

/// Digits of a digest in a backup's name.
const DIGITS: usize = 16;

/// How many names of backups may be those of something else.
const PLANTED: u64 = 16;

/// How long another command may keep a file, and how often its lock is tried meanwhile.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(5);

/// A client's file as it was read.
#[derive(Debug)]
pub struct ClientFile {
    path: PathBuf,
    content: Option<Content>,
    lock: Option<File>,
}

#[derive(Debug)]
struct Content {
    text: String,
    mode: u32,
    owner: (u32, u32),
}

/// What a file was before casemate wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    path: PathBuf,
    /// There was no file.
    absent: bool,
    digest: String,
    /// Later ones have larger ones.
    number: u64,
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
        let kind = if self.content.is_some() { BACKUP } else { ABSENT };
        let last = self.backups()?.iter().map(|backup| backup.number).max().unwrap_or(0);
        let name = |number| beside(&self.path, &format!("{kind}{}-{number}", digest(text.as_bytes())));
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

    fn backups(&self) -> Result<Vec<Backup>, ClientError> {
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
        // A rename that a power failure undoes leaves the old file, which is whole too.
        let _ = File::open(self.folder()).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// Removes what commands left that were killed while they wrote.
    fn sweep(&self) {
        for entry in fs::read_dir(self.folder()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let rest = self.suffix(&name).and_then(|suffix| suffix.strip_prefix(NEW));
            let number = rest.and_then(|pid| pid.parse::<u32>().ok()).and_then(|pid| i32::try_from(pid).ok());
            let writer = number.and_then(Pid::from_raw);
            if writer.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH)) {
                // What cannot be removed does no harm.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// What follows the file's own name in that of a file beside it.
    fn suffix<'a>(&self, name: &'a OsStr) -> Option<&'a str> {
        name.to_str()?.strip_prefix(self.path.file_name()?.to_str()?)
    }

    /// Writes a file with the mode and the owner of this one, under a name that it keeps for a moment.
    fn put(&self, text: &str) -> io::Result<PathBuf> {
        self.sweep();
        let path = beside(&self.path, &format!("{NEW}{}", std::process::id()));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?);
        let written = (|| {
            file.write_all(text.as_bytes())?;
            let (mode, owner) = match &self.content {
                Some(content) => (content.mode, content.owner),
                // Whoever edits somebody else's home as root leaves nothing of root's there.
                None => (0o600, fs::metadata(self.folder()).map(|meta| (meta.uid(), meta.gid()))?),
            };
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != owner {
                let changed = fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)));
                // A new file may be ours in a folder that is not.
                if self.content.is_some() {
                    changed?;
                }
            }
            file.set_permissions(Permissions::from_mode(mode))?;
            file.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&path);
        }
        written.map(|()| path)
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
    let until = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            // The file is still compared with what was read before it is replaced.
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => {
                let held = "another casemate command holds its folder's lock, and may be stopped";
                return Err(failed(io::Error::new(ErrorKind::TimedOut, held)));
            }
        }
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

impl Content {
    fn read(path: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Read { path: path.to_owned(), source };
        let not_regular = || ClientError::NotRegular { path: path.to_owned() };
        // Before it is opened, which may do something to a device.
        if !fs::symlink_metadata(path).map_err(failed)?.is_file() {
            return Err(not_regular());
        }
        // And after it, in case that it was exchanged: without waiting for a pipe's other end.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let file = File::from(opened);
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(not_regular());
        }
        let too_large = || ClientError::TooLarge { path: path.to_owned(), limit: LIMIT };
        if meta.len() > LIMIT {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        (&file).take(LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LIMIT {
            return Err(too_large());
        }
        let text = String::from_utf8(bytes).map_err(|_| ClientError::NotText { path: path.to_owned() })?;
        Ok(Self { text, mode: meta.mode() & 0o7777, owner: (meta.uid(), meta.gid()) })
    }
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..DIGITS].to_owned()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn undo(path: &Path) -> Since {
        let file = ClientFile::read(path).unwrap();
        let (backup, since) = file.backup().unwrap();
        file.restore(&backup).unwrap();
        since
    }

    #[test]
    fn changes_are_undone_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/mcp.json");
        for text in ["one", "two", "three"] {
            ClientFile::read(&path).unwrap().replace(text).unwrap();
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        for text in ["two", "one"] {
            assert_eq!(undo(&path), Since::Unchanged);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(undo(&path), Since::Unchanged);
        assert_eq!(names(path.parent().unwrap()), [""; 0]);
        let file = ClientFile::read(&path).unwrap();
        assert!(matches!(file.backup(), Err(ClientError::NoBackup { .. })));
    }

    #[test]
    fn mode_and_link_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("mcp.json"), dir.path().join("elsewhere.json"));
        fs::write(&target, "old").unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o640)).unwrap();
        symlink("elsewhere.json", &path).unwrap();
        let backup = ClientFile::read(&path).unwrap().replace("new").unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("elsewhere.json"));
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        for path in [&target, &backup] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o640);
        }
        undo(&path);
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_file_that_somebody_writes_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mcp.json");
        fs::write(&path, "old").unwrap();
        let file = ClientFile::read(&path).unwrap();
        fs::write(&path, "theirs").unwrap();
        assert!(matches!(file.replace("ours"), Err(ClientError::Raced { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(names(dir.path()), ["mcp.json"]);
    }

    #[test]
    fn what_was_written_since_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mcp.json");
        fs::write(&path, "old").unwrap();
        ClientFile::read(&path).unwrap().replace("new").unwrap();
        fs::write(&path, "theirs").unwrap();
        assert_eq!(ClientFile::read(&path).unwrap().backup().unwrap().1, Since::Changed);
        fs::remove_file(&path).unwrap();
        let (backup, since) = ClientFile::read(&path).unwrap().backup().unwrap();
        assert_eq!((backup.text().unwrap().as_deref(), since), (Some("old"), Since::Removed));
    }

    #[test]
    fn what_a_killed_command_left_is_swept_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mcp.json");
        fs::write(&path, "old").unwrap();
        // No process has such a number; the first one always runs.
        fs::write(beside(&path, &format!("{NEW}999999999")), "half").unwrap();
        fs::write(beside(&path, &format!("{NEW}1")), "somebody's").unwrap();
        // Killed between the backup and the file.
        fs::write(beside(&path, &format!("{BACKUP}{}-1", digest(b"never written"))), "old").unwrap();
        let file = ClientFile::read(&path).unwrap();
        assert_eq!(file.backup().unwrap().1, Since::Unchanged);
        file.replace("new").unwrap();
        assert_eq!(names(dir.path()).iter().filter(|name| name.contains(NEW)).count(), 1);
        undo(&path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }

    #[test]
    fn planted_links_are_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("mcp.json"), dir.path().join("victim"));
        fs::write(&path, "old").unwrap();
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, beside(&path, &format!("{BACKUP}{}-1", digest(b"new")))).unwrap();
        symlink(&victim, beside(&path, &format!("{NEW}{}", std::process::id()))).unwrap();
        let backup = ClientFile::read(&path).unwrap().replace("new").unwrap();
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
        assert!(fs::symlink_metadata(backup).unwrap().is_file());
    }

    #[test]
    fn no_backup_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mcp.json");
        fs::write(&path, "first").unwrap();
        let write = |text: &str| ClientFile::read(&path).unwrap().replace(text);
        write("new").unwrap();
        // The same is written over something else, and fails, and is written.
        fs::write(&path, "theirs").unwrap();
        let occupied = beside(&path, &format!("{NEW}{}", std::process::id()));
        fs::create_dir(&occupied).unwrap();
        assert!(matches!(write("new"), Err(ClientError::Write { .. })));
        assert_eq!(ClientFile::read(&path).unwrap().backups().unwrap().len(), 1);
        fs::remove_dir(&occupied).unwrap();
        write("new").unwrap();
        assert_eq!(undo(&path), Since::Unchanged);
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        // The other one is there still: the only copy of what the file was before casemate.
        let (backup, since) = ClientFile::read(&path).unwrap().backup().unwrap();
        assert_eq!((backup.text().unwrap().as_deref(), since), (Some("first"), Since::Changed));
    }

    #[test]
    fn commands_at_the_same_time_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mcp.json");
        fs::write(&path, "0").unwrap();
        let count = || {
            for _ in 0..20 {
                let file = ClientFile::open(&path).unwrap();
                let next = file.text().unwrap().parse::<u32>().unwrap() + 1;
                file.replace(&next.to_string()).unwrap();
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(count))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "80");
        assert_eq!(names(dir.path()).len(), 81);
        for number in (0..80).rev() {
            assert_eq!(undo(&path), Since::Unchanged);
            assert_eq!(fs::read_to_string(&path).unwrap(), number.to_string());
        }
        assert_eq!(names(dir.path()), ["mcp.json"]);
    }

    #[test]
    fn what_is_made_belongs_to_the_owner_of_the_folder_above() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::process::geteuid().is_root();
        // Who is not root can make nothing that is another's.
        let owner = if root { 54321 } else { rustix::process::geteuid().as_raw() };
        std::os::unix::fs::chown(dir.path(), Some(owner), None).unwrap();
        let path = dir.path().join("a/b/mcp.json");
        let backup = ClientFile::read(&path).unwrap().replace("new").unwrap();
        for made in [&path, &backup, path.parent().unwrap(), &dir.path().join("a")] {
            let meta = fs::metadata(made).unwrap();
            assert_eq!((meta.uid(), meta.mode() & 0o077), (owner, 0), "{}", made.display());
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| ClientFile::read(&dir.path().join(name)).unwrap_err();
        let make = |name: &str| dir.path().join(name);
        File::create(make("huge")).unwrap().set_len(LIMIT + 1).unwrap();
        fs::write(make("binary"), b"{\xff}").unwrap();
        fs::create_dir(make("folder")).unwrap();
        symlink("/dev/zero", make("device")).unwrap();
        symlink("nowhere", make("dangling")).unwrap();
        symlink("loop", make("loop")).unwrap();
        let pipe = make("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(matches!(read("huge"), ClientError::TooLarge { .. }));
        assert!(matches!(read("binary"), ClientError::NotText { .. }));
        assert!(matches!(read("dangling"), ClientError::Dangling { .. }));
        assert!(matches!(read("loop"), ClientError::Read { .. }));
        assert!(matches!(read("binary/below"), ClientError::Read { .. }));
        for name in ["folder", "device", "pipe"] {
            assert!(matches!(read(name), ClientError::NotRegular { .. }), "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn undone_means_byte_for_byte(
            texts in prop::collection::vec(prop_oneof!["[ab]", "\\PC{0,30}(\r?\n)?\\PC{0,9}"], 1..7)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            // The same text twice in a row is no change, and nobody writes it.
            let mut texts = texts;
            texts.dedup();
            fs::write(&path, &texts[0]).unwrap();
            for text in &texts[1..] {
                ClientFile::read(&path).unwrap().replace(text).unwrap();
            }
            for text in texts.iter().rev().skip(1) {
                prop_assert_eq!(undo(&path), Since::Unchanged);
                prop_assert_eq!(&fs::read_to_string(&path).unwrap(), text);
            }
            prop_assert_eq!(names(dir.path()), ["f"]);
        }
    }
}
