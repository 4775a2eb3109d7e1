//! File systems that a machine is given beside its root: folders of the host, read-only, and volumes.
//!
//! The image has no folder for most of them, and cannot get one: it is read-only. So a layer that holds nothing
//! but empty folders is put above it. Every path that is walked here is the image's or was made a moment ago:
//! nothing of a server runs yet, and a volume, which one may have filled with links, is mounted and not entered.

use crate::root::{RootError, WRITABLE, create_folder, inside, mount, wait_for};
use crate::{log, modules};
use casemate_proto::mount::{Kind, Mount, SERVER_ID};
use rustix::fs::AtFlags;
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// Where the layer of empty folders is made, in the agent's tree.
pub const POINTS: &str = "/layers/points";

/// As many folders as targets can have parts.
const POINTS_OPTIONS: &str = "size=1m,nr_inodes=4096,mode=755";

/// Where the kernel lists block devices.
const BLOCK_DEVICES: &str = "/sys/block";

/// A block device that the kernel has found shows up within a moment.
const DEVICE_TRIES: u32 = 1000;
const DEVICE_WAIT: Duration = Duration::from_millis(2);

/// The longest serial that is read: virtio's has 20 bytes.
const SERIAL_BYTES: usize = 64;

/// What `mke2fs` makes in every new file system, for a repair that is never made here.
const LOST_AND_FOUND: &str = "lost+found";

/// A volume that its device has damaged is not written to any more. What is removed is given back to the host. What
/// is written is on the device within a second or two, not within half a minute: machines are killed.
const VOLUME_OPTIONS: &str = "errors=remount-ro,discard,nodelalloc,commit=1";

/// Makes a layer with the folders that targets need and the image at `base` has not; answers where it is, if
/// it is needed.
pub fn make_points(mounts: &[Mount], base: &str) -> Result<Option<&'static str>, RootError> {
    let needed = mounts.iter().filter(|mount| !is_in_writable(mount));
    let mut made = None;
    for target in needed.map(|mount| mount.target.as_str()) {
        if exists(base, target)? {
            continue;
        }
        if made.is_none() {
            for folder in ["/layers", POINTS] {
                create_folder(folder)?;
            }
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            mount("tmpfs", POINTS, "tmpfs", flags, Some(POINTS_OPTIONS))?;
            made = Some(POINTS);
        }
        for path in parents(target) {
            let point = format!("{POINTS}{path}");
            create_folder(&point)?;
            // What is in both layers looks as it does in the upper one.
            let mode =
                fs::symlink_metadata(format!("{base}{path}")).map_or(0o755, |meta| meta.mode() & 0o7777);
            let set = fs::set_permissions(&point, Permissions::from_mode(mode));
            set.map_err(|source| RootError::Create { path: point, source })?;
        }
    }
    Ok(made)
}

/// Whether the image at `base` has this folder; what is in its way is an error.
fn exists(base: &str, target: &str) -> Result<bool, RootError> {
    for path in parents(target) {
        match fs::symlink_metadata(format!("{base}{path}")) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(RootError::Occupied { target: target.to_owned(), by: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(RootError::Create { path: target.to_owned(), source }),
        }
    }
    Ok(true)
}

/// `/a`, `/a/b` and `/a/b/c` of `/a/b/c`.
fn parents(target: &str) -> impl Iterator<Item = &str> {
    let ends = target.match_indices('/').map(|(at, _)| at).skip(1).chain([target.len()]);
    ends.map(|end| &target[..end])
}

/// Whether its folder is made in one that is written to, and not in the image.
fn is_in_writable(mount: &Mount) -> bool {
    WRITABLE.iter().any(|folder| mount.target.is_below(folder))
}

/// Mounts everything into the assembled root.
pub async fn mount_all(mounts: &[Mount]) -> Result<(), RootError> {
    for wanted in mounts {
        let device = device(&wanted.serial).await?;
        if is_in_writable(wanted) {
            make_writable_point(wanted)?;
        }
        let target = inside(wanted.target.as_str());
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        match wanted.kind {
            Kind::Folder => mount(&device, &target, "erofs", flags | MountFlags::RDONLY, None)?,
            Kind::Volume => {
                modules::load(modules::OVERLAY);
                mount(&device, &target, "ext4", flags, Some(VOLUME_OPTIONS))?;
                tidy_new_volume(&target);
            }
        }
    }
    Ok(())
}

/// Makes the target's folder, and what is missing above it, in a folder that is the server's.
fn make_writable_point(wanted: &Mount) -> Result<(), RootError> {
    for path in parents(wanted.target.as_str()) {
        let path = inside(path);
        let failed = |source| RootError::Create { path: path.clone(), source };
        match fs::create_dir(&path) {
            Ok(()) => {
                std::os::unix::fs::chown(&path, Some(SERVER_ID), Some(SERVER_ID)).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed(source)),
        }
    }
    Ok(())
}

/// Removes from a volume that is mounted for the first time the one folder that its server may not enter.
fn tidy_new_volume(volume: &str) {
    // One that a server has made is its own.
    let is_roots = |meta: &Metadata| meta.is_dir() && meta.uid() == 0;
    let path = Path::new(volume).join(LOST_AND_FOUND);
    if fs::symlink_metadata(&path).is_ok_and(|meta| is_roots(&meta)) {
        // Where something is in it, it stays.
        let _ = rustix::fs::unlinkat(rustix::fs::CWD, &path, AtFlags::REMOVEDIR);
    }
}

/// Unmounts everything, so that what was written is on the devices; the error is that of the last one that
/// could not be unmounted.
pub fn unmount_all(mounts: &[Mount]) -> io::Result<()> {
    let mut result = Ok(());
    for mounted in mounts.iter().rev() {
        let target = inside(mounted.target.as_str());
        if let Err(error) = rustix::mount::unmount(&*target, UnmountFlags::NOFOLLOW) {
            result = Err(error.into());
        }
    }
    result
}

/// Has what was written to volumes written to their devices.
pub fn sync(mounts: &[Mount]) {
    for volume in mounts.iter().filter(|mount| mount.kind == Kind::Volume) {
        let target = inside(volume.target.as_str());
        let synced = fs::File::open(&target).and_then(|root| Ok(rustix::fs::syncfs(root)?));
        if let Err(error) = synced {
            log::warn(format_args!("write out {target}: {error}"));
        }
    }
}

/// Those that are mounted in folders that a server can write to: they have to be out of the way before
/// everything there is removed.
pub fn in_writable(mounts: &[Mount]) -> Vec<Mount> {
    mounts.iter().filter(|mount| is_in_writable(mount)).cloned().collect()
}

/// The block device with this serial.
async fn device(serial: &str) -> Result<String, RootError> {
    for attempt in 0..DEVICE_TRIES {
        let devices = fs::read_dir(BLOCK_DEVICES).into_iter().flatten().flatten();
        let found = devices.map(|entry| entry.path()).find(|path| {
            let text = fs::read(path.join("serial")).unwrap_or_default();
            text.len() <= SERIAL_BYTES && text.trim_ascii() == serial.as_bytes()
        });
        if let Some(name) = found.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()) {
            let device = format!("/dev/{name}");
            wait_for(&device).await?;
            return Ok(device);
        }
        if attempt > 0 {
            tokio::time::sleep(DEVICE_WAIT).await;
        }
    }
    Err(RootError::NoDevice(serial.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mounts(target: &str) -> Vec<Mount> {
        vec![Mount { serial: "s".into(), target: target.parse().unwrap(), kind: Kind::Folder }]
    }

    #[test]
    fn a_path_has_its_parents_first() {
        let all: Vec<_> = parents("/a/bc/d").collect();
        assert_eq!(all, ["/a", "/a/bc", "/a/bc/d"]);
    }

    #[test]
    fn a_target_that_the_image_has_needs_no_layer_and_one_behind_a_link_is_refused() {
        let image = tempfile::tempdir().unwrap();
        let base = image.path().to_str().unwrap();
        fs::create_dir_all(image.path().join("srv/data")).unwrap();
        symlink("srv", image.path().join("link")).unwrap();
        fs::write(image.path().join("file"), "").unwrap();
        assert_eq!(make_points(&mounts("/srv/data"), base).unwrap(), None);
        assert!(!exists(base, "/srv/other/deep").unwrap());
        for (target, by) in [("/link", "/link"), ("/link/data", "/link"), ("/file/x", "/file")] {
            let error = make_points(&mounts(target), base).unwrap_err();
            assert!(matches!(&error, RootError::Occupied { by: found, .. } if found == by), "{error}");
        }
        // Made in folders that are empty at every start.
        for target in ["/tmp/x", "/home/casemate/a/b", "/run/x", "/tmp"] {
            assert_eq!(make_points(&mounts(target), base).unwrap(), None, "{target}");
        }
    }
}
