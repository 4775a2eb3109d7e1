//! Writes the entries of an archive below a folder.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::path::{entry_path, link_target};
use super::{Limits, UnpackError};

/// A folder that takes the entries of archives and lets none of them touch anything outside.
///
/// Paths are raw names from the archive, relative to the folder. A later entry replaces an earlier file
/// or link of the same name; folders stay.
pub struct Tree {
    root: OwnedFd,
    limits: Limits,
    bytes: u64,
    entries: u64,
    /// The folder that was used last: entries come in the order of their folders.
    last: Option<(PathBuf, Arc<OwnedFd>)>,
}

const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::RDONLY).union(OFlags::CLOEXEC);

impl Tree {
    /// Opens the existing folder `root`. The limits count over everything that this value unpacks.
    pub fn open(root: &Path, limits: Limits) -> Result<Tree, UnpackError> {
        let root = rustix::fs::open(root, DIRECTORY, Mode::empty())
            .map_err(|errno| UnpackError::Write { path: root.to_owned(), source: errno.into() })?;
        Ok(Tree { root, limits, bytes: 0, entries: 0, last: None })
    }

    /// The limits it was opened with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The sum of the sizes of the files written so far, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes a folder, with its parents, or gives an existing one these mode bits.
    pub fn folder(&mut self, name: &[u8], mode: u32) -> Result<(), UnpackError> {
        self.count_entry()?;
        let path = entry_path(name)?;
        let folder = self.open_folder(&path).map_err(|errno| write_error(&path, errno))?;
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode & 0o1777 | 0o700))
            .map_err(|errno| write_error(&path, errno))
    }

    /// Writes a file with the bytes of `contents`.
    pub fn file(&mut self, name: &[u8], mode: u32, contents: &mut dyn Read) -> Result<(), UnpackError> {
        self.count_entry()?;
        let path = entry_path(name)?;
        let (folder, leaf) = self.parent(&path)?;
        make_room(&folder, leaf).map_err(|errno| write_error(&path, errno))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, leaf, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| write_error(&path, errno))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777 | 0o600))
            .map_err(|errno| write_error(&path, errno))?;
        self.copy(contents, &mut File::from(file), &path)
    }

    /// Makes a symbolic link. Its target is relative to the link's folder, or absolute within the root.
    pub fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        self.count_entry()?;
        let path = entry_path(name)?;
        let target = link_target(&path, target)?;
        let (folder, leaf) = self.parent(&path)?;
        make_room(&folder, leaf)
            .and_then(|()| rustix::fs::symlinkat(target, &folder, leaf))
            .map_err(|errno| write_error(&path, errno))
    }

    /// Makes a second name for the file that an earlier entry wrote as `existing`.
    pub fn hard_link(&mut self, name: &[u8], existing: &[u8]) -> Result<(), UnpackError> {
        self.count_entry()?;
        let (path, existing) = (entry_path(name)?, entry_path(existing)?);
        if path == existing {
            return Ok(());
        }
        let (from_folder, from_leaf) = self.parent(&existing)?;
        let (folder, leaf) = self.parent(&path)?;
        // Nothing is followed: a link to a symbolic link is the same symbolic link, which may lead
        // elsewhere from another folder, so it is not made.
        let kind = rustix::fs::statat(&from_folder, from_leaf, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| write_error(&existing, errno))?;
        if FileType::from_raw_mode(kind.st_mode) != FileType::RegularFile {
            return Err(UnpackError::Link { path, target: existing.display().to_string() });
        }
        make_room(&folder, leaf)
            .and_then(|()| rustix::fs::linkat(&from_folder, from_leaf, &folder, leaf, AtFlags::empty()))
            .map_err(|errno| write_error(&path, errno))
    }

    fn count_entry(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries { Err(UnpackError::TooLarge(self.limits)) } else { Ok(()) }
    }

    /// The folder that holds `path`, made if need be, and its last name.
    fn parent<'p>(&mut self, path: &'p Path) -> Result<(Arc<OwnedFd>, &'p OsStr), UnpackError> {
        let (Some(parent), Some(leaf)) = (path.parent(), path.file_name()) else {
            return Err(UnpackError::Path("./".to_owned()));
        };
        if let Some((last, folder)) = &self.last
            && last == parent
        {
            return Ok((Arc::clone(folder), leaf));
        }
        let folder = Arc::new(self.open_folder(parent).map_err(|errno| write_error(path, errno))?);
        self.last = Some((parent.to_owned(), Arc::clone(&folder)));
        Ok((folder, leaf))
    }

    /// Opens a folder below the root, making what is missing, and following no link on the way.
    fn open_folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut folder = self.root.try_clone().map_err(|_| Errno::MFILE)?;
        for part in path {
            folder = match rustix::fs::openat(&folder, part, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o755))?;
                    let made = rustix::fs::openat(&folder, part, DIRECTORY, Mode::empty())?;
                    // Whatever the umask of this process.
                    rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
                    made
                }
                opened => opened?,
            };
        }
        Ok(folder)
    }

    fn copy(&mut self, from: &mut dyn Read, to: &mut File, path: &Path) -> Result<(), UnpackError> {
        let mut chunk = [0; 32 * 1024];
        loop {
            let count = match from.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(UnpackError::Read(error)),
            };
            self.bytes += count as u64;
            if self.bytes > self.limits.bytes {
                return Err(UnpackError::TooLarge(self.limits));
            }
            to.write_all(&chunk[..count])
                .map_err(|source| UnpackError::Write { path: path.to_owned(), source })?;
        }
    }
}

/// Removes the file or link of this name, if there is one. A folder of this name is an error.
fn make_room(folder: &OwnedFd, leaf: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(folder, leaf, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn write_error(path: &Path, errno: Errno) -> UnpackError {
    UnpackError::Write { path: path.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn tree(limits: Limits) -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        let tree = Tree::open(&folder.path().join("root"), limits).unwrap();
        (folder, tree)
    }

    #[test]
    fn files_folders_and_links() {
        let (home, mut tree) = tree(Limits::default());
        let root = home.path().join("root");
        tree.folder(b"./d", 0o555).unwrap();
        tree.file(b"d/deep/f", 0o4755, &mut &b"one"[..]).unwrap();
        tree.file(b"d/deep/f", 0o6644, &mut &b"two"[..]).unwrap();
        tree.symlink(b"d/l", b"/d/deep/f").unwrap();
        tree.hard_link(b"h", b"./d/deep/f").unwrap();
        let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(fs::read(root.join("d/l")).unwrap(), b"two");
        assert_eq!(fs::read(root.join("h")).unwrap(), b"two");
        assert_eq!((mode("d"), mode("d/deep"), mode("h")), (0o755, 0o755, 0o644));
        assert_eq!(fs::read_link(root.join("d/l")).unwrap(), Path::new("deep/f"));
        assert_eq!(tree.bytes(), 6);
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let (home, mut tree) = tree(Limits::default());
        let outside = home.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "safe").unwrap();
        // A link that the archive could not make itself.
        std::os::unix::fs::symlink(&outside, home.path().join("root/out")).unwrap();
        std::os::unix::fs::symlink(outside.join("victim"), home.path().join("root/file")).unwrap();
        tree.folder(b"inner", 0o755).unwrap();
        tree.symlink(b"link", b"inner").unwrap();

        assert!(tree.file(b"out/victim", 0o644, &mut &b"bad"[..]).is_err());
        assert!(tree.folder(b"out", 0o777).is_err());
        assert!(tree.folder(b"out/new", 0o777).is_err());
        assert!(tree.symlink(b"out/new", b"x").is_err());
        assert!(tree.hard_link(b"stolen", b"out/victim").is_err());
        assert!(tree.hard_link(b"stolen", b"file").is_err());
        assert!(tree.file(b"link/f", 0o644, &mut &b"x"[..]).is_err());
        // The link itself is replaced, not what it names.
        tree.file(b"file", 0o644, &mut &b"new"[..]).unwrap();
        assert_eq!(fs::read(outside.join("victim")).unwrap(), b"safe");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert!(!home.path().join("root/stolen").exists());
    }

    #[test]
    fn limits_hold() {
        let (_home, mut small) = tree(Limits { bytes: 5, entries: 3 });
        small.file(b"a", 0o644, &mut &b"12345"[..]).unwrap();
        let more = small.file(b"b", 0o644, &mut io::repeat(0));
        assert!(matches!(more, Err(UnpackError::TooLarge(_))));
        small.folder(b"c", 0o755).unwrap();
        assert!(matches!(small.folder(b"d", 0o755), Err(UnpackError::TooLarge(_))));
    }

    #[test]
    fn a_file_does_not_replace_a_folder_nor_the_root() {
        let (_home, mut tree) = tree(Limits::default());
        tree.folder(b"d", 0o755).unwrap();
        assert!(matches!(tree.file(b"d", 0o644, &mut io::empty()), Err(UnpackError::Write { .. })));
        assert!(matches!(tree.file(b".", 0o644, &mut io::empty()), Err(UnpackError::Path(_))));
        tree.folder(b"./", 0o755).unwrap();
    }
}
