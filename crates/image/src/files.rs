//! Walks over folders that installers and strangers filled: no symbolic link is ever followed.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// A folder deeper than this is refused: it would exhaust the stack of everything that walks it.
pub(crate) const DEPTH: usize = 128;

/// Why a folder could not be walked or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// The operating system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        #[source]
        /// The cause.
        source: io::Error,
    },
    /// Folders in folders without end.
    #[error("{path} is nested deeper than {DEPTH} folders")]
    Deep {
        /// Where the limit was reached.
        path: PathBuf,
    },
}

/// Calls `visit` for everything below `folder`, a folder before what it holds.
pub fn walk(
    folder: &Path,
    visit: &mut dyn FnMut(&Path, &Metadata) -> Result<(), FilesError>,
) -> Result<(), FilesError> {
    walk_to(folder, 0, visit)
}

fn walk_to(
    folder: &Path,
    depth: usize,
    visit: &mut dyn FnMut(&Path, &Metadata) -> Result<(), FilesError>,
) -> Result<(), FilesError> {
    if depth > DEPTH {
        return Err(FilesError::Deep { path: folder.to_owned() });
    }
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let path = entry.map_err(failed("read", folder))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        visit(&path, &metadata)?;
        if metadata.is_dir() {
            walk_to(&path, depth + 1, visit)?;
        }
    }
    Ok(())
}

/// Bytes on disk of everything below `folder`, as far as it can be read: it may be changing meanwhile.
pub fn size(folder: &Path) -> u64 {
    fn add(folder: &Path, depth: usize) -> u64 {
        let Ok(entries) = fs::read_dir(folder) else { return 0 };
        let entries = entries.flatten().filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)));
        entries
            .map(|(path, metadata)| {
                let below = if metadata.is_dir() && depth < DEPTH { add(&path, depth + 1) } else { 0 };
                metadata.blocks() * 512 + below
            })
            .sum()
    }
    add(folder, 0)
}

/// Makes `folder` and everything in it the property of user and group `id`, unless the folder is that
/// already. Needs root.
pub fn give(folder: &Path, id: u32) -> Result<(), FilesError> {
    if fs::symlink_metadata(folder).map_err(failed("look at", folder))?.uid() == id {
        return Ok(());
    }
    let chown = |path: &Path| {
        std::os::unix::fs::lchown(path, Some(id), Some(id)).map_err(failed("change the owner of", path))
    };
    walk(folder, &mut |path, metadata| if metadata.uid() == id { Ok(()) } else { chown(path) })?;
    // Last, so that a walk that was broken off is made again.
    chown(folder)
}

/// Makes a tree fit to become an image: nothing writable by group or others, nothing setuid, every folder and
/// file readable, and neither devices nor sockets.
pub fn seal(folder: &Path) -> Result<(), FilesError> {
    set_mode(folder, 0o755)?;
    walk(folder, &mut |path, metadata| {
        let kind = metadata.file_type();
        if kind.is_dir() {
            set_mode(path, 0o755)
        } else if kind.is_file() {
            set_mode(path, if metadata.mode() & 0o111 == 0 { 0o644 } else { 0o755 })
        } else if kind.is_symlink() {
            Ok(())
        } else {
            debug_assert!(
                kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device()
            );
            fs::remove_file(path).map_err(failed("remove", path))
        }
    })
}

/// Removes a folder with everything in it, whatever modes its folders have; that it is absent is no error.
pub fn remove(folder: &Path) -> Result<(), FilesError> {
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", folder)(error)),
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return fs::remove_file(folder).map_err(failed("remove", folder)),
    }
    set_mode(folder, 0o700)?;
    walk(folder, &mut |path, metadata| if metadata.is_dir() { set_mode(path, 0o700) } else { Ok(()) })?;
    fs::remove_dir_all(folder).map_err(failed("remove", folder))
}

/// Copies everything below `from` into the folder `to`, which is made if it is missing. `take` says which
/// paths, relative to `from`, are wanted; what is in an unwanted folder is not asked for.
pub fn copy(from: &Path, to: &Path, take: &dyn Fn(&Path, &Metadata) -> bool) -> Result<(), FilesError> {
    let copy = |from: &Path, to: &Path| fs::copy(from, to).map(drop);
    copy_to(from, Path::new(""), to, 0, &Copying { take, copy: &copy })
}

/// As [`copy`], but files get a second name where the file system allows it. Nobody may change them
/// afterwards.
pub fn link(from: &Path, to: &Path, take: &dyn Fn(&Path, &Metadata) -> bool) -> Result<(), FilesError> {
    let link = |from: &Path, to: &Path| fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop));
    copy_to(from, Path::new(""), to, 0, &Copying { take, copy: &link })
}

struct Copying<'a> {
    take: &'a dyn Fn(&Path, &Metadata) -> bool,
    copy: &'a dyn Fn(&Path, &Path) -> io::Result<()>,
}

fn copy_to(from: &Path, below: &Path, to: &Path, depth: usize, how: &Copying<'_>) -> Result<(), FilesError> {
    if depth > DEPTH {
        return Err(FilesError::Deep { path: from.to_owned() });
    }
    fs::create_dir_all(to).map_err(failed("create", to))?;
    for entry in fs::read_dir(from).map_err(failed("read", from))? {
        let entry = entry.map_err(failed("read", from))?;
        let (source, target, name) =
            (entry.path(), to.join(entry.file_name()), below.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&source).map_err(failed("look at", &source))?;
        if !(how.take)(&name, &metadata) {
            continue;
        }
        let kind = metadata.file_type();
        if kind.is_dir() {
            copy_to(&source, &name, &target, depth + 1, how)?;
        } else if kind.is_symlink() {
            let leads_to = fs::read_link(&source).map_err(failed("read", &source))?;
            std::os::unix::fs::symlink(leads_to, &target).map_err(failed("create", &target))?;
        } else if kind.is_file() {
            (how.copy)(&source, &target).map_err(failed("copy", &source))?;
        }
    }
    Ok(())
}

/// Opens a plain file at a path below `folder`, which may not lead through any link.
pub fn open_below(folder: &Path, path: &Path) -> io::Result<File> {
    let root = File::open(folder)?;
    // Opening a FIFO would wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = File::from(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Reads a plain file below `folder`, at most `limit` bytes of it; a larger one is an error.
pub fn read_below(folder: &Path, path: &Path, limit: u64) -> Result<Vec<u8>, FilesError> {
    let read = || {
        let mut bytes = Vec::new();
        open_below(folder, path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    };
    read().map_err(failed("read", &folder.join(path)))
}

/// Turns an error of the operating system into one that says what was being done to which path.
pub fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Io { operation, path, source }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), FilesError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("change the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn sealing_leaves_plain_files_and_touches_nothing_outside() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(&outside, "x").unwrap();
        set_mode(&outside, 0o600).unwrap();
        fs::write(tree.join("program"), "x").unwrap();
        set_mode(&tree.join("program"), 0o4777).unwrap();
        fs::write(tree.join("secret"), "x").unwrap();
        set_mode(&tree.join("secret"), 0o600).unwrap();
        set_mode(&tree.join("sub"), 0o777).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();

        seal(&tree).unwrap();
        assert_eq!(mode(&tree.join("program")), 0o755);
        assert_eq!(mode(&tree.join("secret")), 0o644);
        assert_eq!(mode(&tree.join("sub")), 0o755);
        assert_eq!(mode(&outside), 0o600, "the link was followed");
        assert!(!tree.join("socket").exists());
    }

    #[test]
    fn removing_takes_what_its_maker_closed() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        std::os::unix::fs::symlink("/", tree.join("root")).unwrap();
        set_mode(&tree.join("a"), 0).unwrap();
        remove(&tree).unwrap();
        assert!(!tree.exists());
        remove(&tree).unwrap();
        assert!(Path::new("/usr").exists());
    }

    #[test]
    fn copying_takes_what_is_wanted_and_keeps_links_as_links() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("node_modules/x")).unwrap();
        fs::create_dir_all(from.join("lib")).unwrap();
        fs::write(from.join("lib/a"), "a").unwrap();
        std::os::unix::fs::symlink("lib/a", from.join("b")).unwrap();
        copy(&from, &to, &|path, _| path != Path::new("node_modules")).unwrap();
        assert_eq!(fs::read(to.join("lib/a")).unwrap(), b"a");
        assert_eq!(fs::read_link(to.join("b")).unwrap(), Path::new("lib/a"));
        assert!(!to.join("node_modules").exists());
    }

    #[test]
    fn reading_below_follows_nothing_out() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("real")).unwrap();
        fs::write(tree.join("real/file"), "1234").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", tree.join("file")).unwrap();
        std::os::unix::fs::symlink("real", tree.join("link")).unwrap();
        let read = |path: &str| read_below(&tree, Path::new(path), 4);
        assert_eq!(read("real/file").unwrap(), b"1234");
        for path in ["file", "link/file", "../tree/real/file", "/etc/passwd", "real", "none"] {
            assert!(read(path).is_err(), "{path}");
        }
        assert!(read_below(&tree, Path::new("real/file"), 3).is_err());
    }

    #[test]
    fn endless_nesting_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", DEPTH + 3).collect();
        fs::create_dir_all(folder.path().join(deep)).unwrap();
        assert!(matches!(seal(folder.path()), Err(FilesError::Deep { .. })));
    }
}
