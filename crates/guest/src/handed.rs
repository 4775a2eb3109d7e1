//! Files that the agent hands to the server's programs: `/run/casemate`, which they can read and not change.

use casemate_proto::control::{AUTHORITIES_PATH, AUTHORITY_PATH, Trust};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::mount::MountFlags;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The folder below `/run`.
pub const FOLDER: &str = "casemate";
/// What the folder's own file system may hold, where it gets one.
const OWN_OPTIONS: &str = "size=2m,nr_inodes=32,mode=755";

/// Writes whom programs are to trust.
pub fn hand_trust(run: &Path, trust: &Trust) -> io::Result<()> {
    let folder = make_folder(run)?;
    for (path, content) in [(AUTHORITY_PATH, &trust.authority), (AUTHORITIES_PATH, &trust.authorities)] {
        let name = Path::new(path).file_name().ok_or(io::ErrorKind::InvalidInput)?;
        write(&folder, &name.to_string_lossy(), content.as_bytes())?;
    }
    Ok(())
}

/// Makes the folder below `run`.
///
/// Where the server could rename it or may not execute from it, it gets a file system of its own, which takes the
/// privilege to mount.
pub fn make_folder(run: &Path) -> io::Result<PathBuf> {
    let folder = run.join(FOLDER);
    create_folder(&folder)?;
    let own = rustix::process::geteuid().as_raw();
    let outer = rustix::fs::open(run, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let owned = rustix::fs::fstat(&outer)?.st_uid == own;
    let executes = !rustix::fs::fstatvfs(&outer)?.f_flag.contains(StatVfsMountFlags::NOEXEC);
    let mounted = fs::symlink_metadata(&folder)?.dev() != fs::symlink_metadata(run)?.dev();
    if mounted || (owned && executes) {
        return Ok(folder);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let options = std::ffi::CString::new(OWN_OPTIONS)?;
    rustix::mount::mount("tmpfs", &folder, "tmpfs", flags, Some(&*options))?;
    Ok(folder)
}

/// Creates a folder that all may read, unless it is there.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(folder, flags, Mode::empty())?;
    Ok(rustix::fs::fchmod(&opened, Mode::from_raw_mode(0o755))?)
}

/// Writes a file anew that all may read; one that a process has mapped stays what it was for that process.
pub fn write(folder: &Path, name: &str, content: &[u8]) -> io::Result<File> {
    let path = folder.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    file.write_all_at(content, 0)?;
    // The mask of the agent's process may have taken bits away.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444))?;
    Ok(file)
}
