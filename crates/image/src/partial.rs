//! Files and folders that appear under their name only when they are complete.
//!
//! They are made beside their final place under a name that begins with [`PREFIX`] and are locked while
//! their maker lives, so that [`sweep`] can tell what a killed process left from what is still being made.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How names of unfinished files and folders begin.
pub const PREFIX: &str = ".partial-";

/// Unfinished things younger than this are never swept: they may not be locked yet.
const GRACE: Duration = Duration::from_secs(60);

/// A file in the making. Dropped without [`Partial::publish`], it is removed.
pub struct Partial {
    file: tempfile::NamedTempFile,
}

impl Partial {
    /// Creates an unfinished file in the folder of `to`.
    pub fn beside(to: &Path) -> io::Result<Partial> {
        let file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder_of(to))?;
        file.as_file().lock()?;
        Ok(Partial { file })
    }

    /// Where the file is for now.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The open file.
    pub fn as_file_mut(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Gives the file its name, replacing what had it.
    ///
    /// It is not written through to the disk first: after a power failure it may be empty. That suits what
    /// its readers check and can get again; see [`write_atomically`] for the rest.
    pub fn publish(self, to: &Path) -> io::Result<()> {
        self.file.persist(to).map_err(|failed| failed.error)?;
        Ok(())
    }
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A folder in the making. Dropped without [`PartialDir::publish`], it is removed with its contents.
pub struct PartialDir {
    folder: tempfile::TempDir,
    _lock: File,
}

impl PartialDir {
    /// Creates an unfinished folder inside `parent`, which must exist.
    pub fn inside(parent: &Path) -> io::Result<PartialDir> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::open(folder.path())?;
        lock.lock()?;
        Ok(PartialDir { folder, _lock: lock })
    }

    /// Where the folder is for now.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its name; fails if something else than an empty folder has it.
    pub fn publish(self, to: &Path) -> io::Result<()> {
        fs::rename(self.folder.path(), to)?;
        // It is no longer temporary: its new name is not the one that dropping would remove.
        let _moved = self.folder.keep();
        Ok(())
    }
}

/// Writes `bytes` to `to`, readable by the owner alone: readers see all of the old or all of the new, after
/// a power failure too.
pub fn write_atomically(to: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = Partial::beside(to)?;
    file.write_all(bytes)?;
    file.as_file_mut().sync_all()?;
    file.publish(to)
}

/// Removes what killed processes left unfinished in `folder`. Whatever cannot be removed stays.
pub fn sweep(folder: &Path) {
    sweep_older_than(folder, GRACE);
}

fn sweep_older_than(folder: &Path, grace: Duration) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let unfinished = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if unfinished && is_abandoned(&entry, grace) {
            let path = entry.path();
            // Best effort: a leftover costs space, and the next sweep tries again.
            let _ = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
                _ => fs::remove_file(path),
            };
        }
    }
}

fn is_abandoned(entry: &fs::DirEntry, grace: Duration) -> bool {
    let Ok(metadata) = entry.metadata() else { return false };
    let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    if age.is_none_or(|age| age < grace) || metadata.is_symlink() {
        return false;
    }
    match File::open(entry.path()) {
        Ok(file) => !matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_when_published_and_not_before() {
        let home = tempfile::tempdir().unwrap();
        let to = home.path().join("a");
        let mut file = Partial::beside(&to).unwrap();
        file.write_all(b"new").unwrap();
        assert!(!to.exists());
        file.publish(&to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        drop(Partial::beside(&to).unwrap());
        assert_eq!(names(home.path()), ["a"]);
    }

    #[test]
    fn a_folder_appears_when_published_and_never_over_another() {
        let home = tempfile::tempdir().unwrap();
        let to = home.path().join("k");
        let folder = PartialDir::inside(home.path()).unwrap();
        fs::write(folder.path().join("f"), "1").unwrap();
        folder.publish(&to).unwrap();
        assert_eq!(names(&to), ["f"]);
        let second = PartialDir::inside(home.path()).unwrap();
        assert!(second.publish(&to).is_err());
        assert_eq!(names(home.path()), ["k"]);
    }

    #[test]
    fn the_sweep_takes_what_nobody_holds() {
        let home = tempfile::tempdir().unwrap();
        let held = Partial::beside(&home.path().join("a")).unwrap();
        let held_dir = PartialDir::inside(home.path()).unwrap();
        fs::write(home.path().join(".partial-dead"), "").unwrap();
        fs::create_dir_all(home.path().join(".partial-dir/deep")).unwrap();
        fs::write(home.path().join("kept"), "").unwrap();

        sweep(home.path());
        assert_eq!(names(home.path()).len(), 5, "young leftovers are left alone");
        sweep_older_than(home.path(), Duration::ZERO);
        let mut expected = vec!["kept".to_owned()];
        for path in [held.path(), held_dir.path()] {
            expected.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
        expected.sort();
        assert_eq!(names(home.path()), expected);
    }
}
