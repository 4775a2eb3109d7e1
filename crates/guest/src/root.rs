//! The root file system that servers live in: read-only, with a few bounded folders to write to.
//!
//! It is put together below [`ROOT`] in the agent's own tree, where the agent can look into it; each child
//! makes it its root (see `wall`). Nothing of the initramfs and no device but those listed here is in it.

use crate::{log, modules, mounts};
use casemate_proto::control::Limits;
use casemate_proto::mount::{Mount, SERVER_ID};
use rustix::fs::{CWD, FileType, Mode, makedev};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::io;
use std::os::unix::fs::symlink;
use std::time::Duration;

/// Where the machine's root is mounted in the agent's tree.
pub const ROOT: &str = "/machine";
/// The server's home folder, inside the root.
pub const HOME: &str = "/home/casemate";
/// Folders inside the root that can be written to.
pub const WRITABLE: [&str; 4] = ["/tmp", "/run", HOME, "/dev/shm"];

/// Where a runtime keeps the code that it compiled, inside the root.
const CODE_CACHE: &str = "/run/casemate-code";

/// Names in `/run` that are mounted.
const MOUNTED: [&str; 2] = ["casemate", "casemate-code"];

/// What compiled code may take: that of a large server takes some 10 MiB.
const CODE_CACHE_OPTIONS: &str = "size=32m,mode=700";

const LOWER: &str = "/layers/lower";
const UPPER: &str = "/layers/upper";

/// Character devices of the root: name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// A block device that the kernel has found shows up within a moment.
const DEVICE_TRIES: u32 = 1000;
const DEVICE_WAIT: Duration = Duration::from_millis(2);

/// Why the root could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file system could not be mounted.
    #[error("mount {what} on {target}")]
    Mount {
        /// The device or the kind of file system.
        what: String,
        /// Where.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// A folder, device or link could not be made.
    #[error("create {path}")]
    Create {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Something of the image is where a folder would have to be.
    #[error("{target} cannot be mounted on: in the image {by} is no folder")]
    Occupied {
        /// Where something was to be mounted.
        target: String,
        /// What is there, a link or a file.
        by: String,
    },
    /// The device did not show up.
    #[error("block device {0} does not exist")]
    NoDevice(String),
}

/// Mounts everything but `wanted`, for which there is a folder afterwards; on failure nothing of it stays
/// mounted.
pub async fn assemble(
    device: &str,
    overlay: Option<&str>,
    wanted: &[Mount],
    limits: &Limits,
) -> Result<(), RootError> {
    let result = try_assemble(device, overlay, wanted, limits).await;
    if result.is_err() {
        for target in [ROOT, UPPER, LOWER, mounts::POINTS] {
            // Not mounted yet, most of the time.
            let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
        }
    }
    result
}

async fn try_assemble(
    device: &str,
    overlay: Option<&str>,
    wanted: &[Mount],
    limits: &Limits,
) -> Result<(), RootError> {
    let read_only = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    create_folder(ROOT)?;
    wait_for(device).await?;
    if overlay.is_none() && wanted.is_empty() {
        mount(device, ROOT, "erofs", read_only, None)?;
    } else {
        for folder in ["/layers", LOWER] {
            create_folder(folder)?;
        }
        mount(device, LOWER, "erofs", read_only, None)?;
        let points = mounts::make_points(wanted, LOWER)?;
        let lower = points.map_or_else(|| LOWER.to_owned(), |points| format!("{points}:{LOWER}"));
        match overlay {
            None if points.is_none() => {
                let moved = rustix::mount::mount_move(LOWER, ROOT);
                moved.map_err(|error| RootError::Mount {
                    what: LOWER.into(),
                    target: ROOT.into(),
                    source: error.into(),
                })?;
            }
            None => {
                modules::load(modules::OVERLAY);
                mount("overlay", ROOT, "overlay", read_only, Some(&format!("lowerdir={lower}")))?;
            }
            Some(upper) => {
                modules::load(modules::OVERLAY);
                wait_for(upper).await?;
                let writable = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
                create_folder(UPPER)?;
                mount(upper, UPPER, "ext4", writable, None)?;
                let (top, work) = (format!("{UPPER}/upper"), format!("{UPPER}/work"));
                create_folder(&top)?;
                create_folder(&work)?;
                let options = format!("lowerdir={lower},upperdir={top},workdir={work}");
                mount("overlay", ROOT, "overlay", writable, Some(&options))?;
            }
        }
    }
    mount_bounded(limits)?;
    fill_dev(limits)?;
    let hidden = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Other users' processes, the agent's first of all, do not exist for the server.
    mount("proc", &inside("/proc"), "proc", hidden, Some("hidepid=2"))
}

/// The folders that are written to: each has a size, and none makes devices or set-uid programs.
fn mount_bounded(limits: &Limits) -> Result<(), RootError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let own = format!("uid={SERVER_ID},gid={SERVER_ID}");
    let folders = [
        ("/tmp", limits.tmp_bytes, "mode=1777".to_owned()),
        ("/run", limits.run_bytes, format!("mode=755,{own}")),
        (HOME, limits.home_bytes, format!("mode=700,{own}")),
    ];
    for (folder, bytes, options) in folders {
        let options = format!("size={bytes},{options}");
        mount("tmpfs", &inside(folder), "tmpfs", flags, Some(&options))?;
    }
    Ok(())
}

fn fill_dev(limits: &Limits) -> Result<(), RootError> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("tmpfs", &inside("/dev"), "tmpfs", flags, Some("size=64k,nr_inodes=64,mode=755"))?;
    for (name, major, minor) in DEVICES {
        let path = inside(&format!("/dev/{name}"));
        let everybody = Mode::from_raw_mode(0o666);
        let created =
            rustix::fs::mknodat(CWD, &*path, FileType::CharacterDevice, everybody, makedev(major, minor))
                // The mask of the agent's process took some bits away.
                .and_then(|()| rustix::fs::chmod(&*path, everybody));
        created.map_err(|error| RootError::Create { path, source: error.into() })?;
    }
    for (name, target) in LINKS {
        let path = inside(&format!("/dev/{name}"));
        symlink(target, &path).map_err(|source| RootError::Create { path, source })?;
    }
    let (pts, shm) = (inside("/dev/pts"), inside("/dev/shm"));
    create_folder(&pts)?;
    create_folder(&shm)?;
    mount("devpts", &pts, "devpts", flags, Some("newinstance,mode=620,ptmxmode=666"))?;
    let options = format!("size={},mode=1777", limits.tmp_bytes);
    mount("tmpfs", &shm, "tmpfs", flags | MountFlags::NODEV, Some(&options))?;
    // Nothing is to be added any more.
    rustix::mount::mount_remount(inside("/dev"), flags | MountFlags::RDONLY, "").map_err(|error| {
        RootError::Mount { what: "tmpfs".into(), target: inside("/dev"), source: error.into() }
    })
}

/// Mounts a folder for compiled code and says where it is inside the root.
pub fn mount_code_cache() -> Result<String, RootError> {
    let target = inside(CODE_CACHE);
    create_folder(&target)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = format!("{CODE_CACHE_OPTIONS},uid={SERVER_ID},gid={SERVER_ID}");
    mount("tmpfs", &target, "tmpfs", flags, Some(&options))?;
    Ok(CODE_CACHE.to_owned())
}

/// Makes compiled code unchangeable: what a server's clones execute, none of them may have written. Does
/// nothing where there is none.
pub fn seal_code_cache() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    match rustix::mount::mount_remount(inside(CODE_CACHE), flags, "") {
        // No such folder, or nothing mounted on it.
        Err(Errno::NOENT | Errno::INVAL) => Ok(()),
        remounted => Ok(remounted?),
    }
}

/// Empties the folders that a server can write to, but for what is mounted in them. No server may run.
pub fn wipe() -> io::Result<()> {
    for folder in WRITABLE {
        for entry in std::fs::read_dir(inside(folder))? {
            let entry = entry?;
            if folder == "/run" && MOUNTED.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            // Neither follows a link.
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

pub(crate) fn inside(path: &str) -> String {
    format!("{ROOT}{path}")
}

pub(crate) fn create_folder(path: &str) -> Result<(), RootError> {
    match std::fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(RootError::Create { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

pub(crate) fn mount(
    what: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: Option<&str>,
) -> Result<(), RootError> {
    let failed = |source| RootError::Mount { what: what.to_owned(), target: target.to_owned(), source };
    let options = options.map(CString::new).transpose().map_err(|error| failed(error.into()))?;
    rustix::mount::mount(what, target, kind, flags, options.as_deref()).map_err(|error| failed(error.into()))
}

pub(crate) async fn wait_for(device: &str) -> Result<(), RootError> {
    for attempt in 0..DEVICE_TRIES {
        match rustix::fs::stat(device) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice => return Ok(()),
            Err(error) if error != Errno::NOENT => log::warn(format_args!("look for {device}: {error}")),
            _ => {}
        }
        if attempt > 0 {
            tokio::time::sleep(DEVICE_WAIT).await;
        }
    }
    Err(RootError::NoDevice(device.to_owned()))
}
