use super::*;
use std::{
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

mod export;

const SMALL: Option<u64> = Some(16 << 20);

struct Scene {
    _dir: tempfile::TempDir,
    volumes: Volumes,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        Self { _dir: dir, volumes: Volumes::open(&home).unwrap() }
    }
}

#[test]
fn a_volume_is_made_once_sparse_and_closed_to_others() {
    let scene = Scene::new();
    let made = scene.volumes.ensure(&name("v"), Some((16 << 20) + 1)).unwrap();
    assert_eq!(made.size_bytes, 17 << 20);
    assert!(made.disk_bytes < 2 << 20, "{made:?}");
    assert_eq!(fs::metadata(&made.path).unwrap().permissions().mode() & 0o777, 0o600);
    // Said again, said otherwise, not said.
    assert_eq!(scene.volumes.ensure(&name("v"), Some(17 << 20)).unwrap(), made);
    assert_eq!(scene.volumes.ensure(&name("v"), None).unwrap(), made);
    let other = scene.volumes.ensure(&name("v"), Some(32 << 20)).unwrap_err();
    assert_eq!(other.to_string(), "volume v has 17 MiB, not 32 MiB");
    assert_eq!(scene.volumes.list().unwrap(), [made]);
    for bytes in [0, 1 << 20, 2 << 40] {
        assert!(matches!(scene.volumes.ensure(&name("w"), Some(bytes)), Err(VolumeError::Size { .. })));
    }
    let left: Vec<_> = fs::read_dir(scene.volumes.folder()).unwrap().flatten().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn the_file_system_is_whole_and_its_root_the_servers() {
    let scene = Scene::new();
    let made = scene.volumes.ensure(&name("v"), SMALL).unwrap();
    let checked = Command::new("/usr/sbin/e2fsck").args(["-fn"]).arg(&made.path).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let root = Command::new("/usr/sbin/debugfs").args(["-R", "stat /"]).arg(&made.path).output().unwrap();
    let root = String::from_utf8_lossy(&root.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(root.contains("User: 1000 Group: 1000"), "{root}");
}

#[test]
fn a_volume_has_one_user_at_a_time() {
    let scene = Scene::new();
    scene.volumes.ensure(&name("v"), SMALL).unwrap();
    assert_eq!(scene.volumes.user(&name("v")), None);
    let held = scene.volumes.take(&name("v"), &name("first")).unwrap();
    let second = scene.volumes.take(&name("v"), &name("second")).unwrap_err();
    assert_eq!(second.to_string(), "volume v is used by machine first");
    assert_eq!(scene.volumes.get(&name("v")).unwrap().used_by.as_deref(), Some("machine first"));
    assert!(matches!(scene.volumes.remove(&name("v")), Err(VolumeError::Used { .. })));
    assert!(matches!(
        scene.volumes.export(&name("v"), io::sink()),
        Err(ExportError::Volume(VolumeError::Used { .. }))
    ));
    // As long as one who got the file from the first still has it.
    let inherited = held.try_clone().unwrap();
    drop(held);
    assert!(scene.volumes.user(&name("v")).is_some());
    drop(inherited);
    scene.volumes.take(&name("v"), &name("second")).unwrap();
}

#[test]
fn a_volume_that_is_removed_is_gone_and_one_that_never_was_is_missed() {
    let scene = Scene::new();
    scene.volumes.ensure(&name("v"), SMALL).unwrap();
    // What a killed command left.
    fs::create_dir(scene.volumes.folder().join(".w")).unwrap();
    scene.volumes.remove(&name("v")).unwrap();
    assert_eq!(scene.volumes.list().unwrap(), []);
    let left: Vec<_> = fs::read_dir(scene.volumes.folder()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    for missed in [
        scene.volumes.remove(&name("v")).unwrap_err(),
        scene.volumes.get(&name("v")).unwrap_err(),
        scene.volumes.take(&name("v"), &name("m")).unwrap_err(),
    ] {
        assert!(matches!(missed, VolumeError::Missing(_)), "{missed}");
    }
}

#[test]
fn a_volume_that_was_cut_short_is_not_used() {
    let scene = Scene::new();
    let made = scene.volumes.ensure(&name("v"), SMALL).unwrap();
    File::options().write(true).open(&made.path).unwrap().set_len(1 << 20).unwrap();
    let taken = scene.volumes.take(&name("v"), &name("m")).unwrap_err();
    assert_eq!(taken.to_string(), "volume v is damaged: its file has another size");
    scene.volumes.remove(&name("v")).unwrap();
}

#[test]
fn one_who_looks_whether_a_volume_is_free_is_in_nobodys_way() {
    let scene = Scene::new();
    scene.volumes.ensure(&name("v"), SMALL).unwrap();
    let looker = scene.volumes.open_image(&name("v"), Access::Shared).unwrap();
    let (volumes, later) = (scene.volumes.clone(), Duration::from_millis(50));
    let waiting = std::thread::spawn(move || volumes.take(&name("v"), &name("m")).map(drop));
    std::thread::sleep(later);
    drop(looker);
    waiting.join().unwrap().unwrap();
    let _reader = scene.volumes.open_image(&name("v"), Access::Shared).unwrap();
    let refused = scene.volumes.take(&name("v"), &name("m")).unwrap_err();
    assert_eq!(refused.to_string(), "volume v is used by a command that reads it");
}

#[test]
fn a_volume_is_used_listed_exported_and_removed_though_its_record_is_lost() {
    let scene = Scene::new();
    let made = scene.volumes.ensure(&name("v"), SMALL).unwrap();
    drop(scene.volumes.take(&name("v"), &name("m")).unwrap());
    let manifest = scene.volumes.dir(&name("v")).join(MANIFEST);
    // As a host leaves it that went down at the wrong moment.
    for content in [Some("".to_owned()), Some("\0".repeat(70)), Some("{".to_owned()), None] {
        match &content {
            Some(content) => fs::write(&manifest, content).unwrap(),
            None => fs::remove_file(&manifest).unwrap(),
        }
        let found = scene.volumes.ensure(&name("v"), SMALL).unwrap();
        assert_eq!((found.size_bytes, &found.path), (made.size_bytes, &made.path), "{content:?}");
        let age = made.created_at.duration_since(found.created_at).unsigned_abs();
        assert!(age < Duration::from_secs(60), "{content:?}: {found:?}");
        assert_eq!(scene.volumes.list().unwrap(), [found]);
        drop(scene.volumes.take(&name("v"), &name("m")).unwrap());
        assert!(scene.volumes.export(&name("v"), io::sink()).is_ok(), "{content:?}");
    }
    // An image that cannot be one is none.
    File::options().write(true).open(&made.path).unwrap().set_len(0).unwrap();
    assert!(matches!(scene.volumes.get(&name("v")), Err(VolumeError::Damaged { .. })));
    scene.volumes.remove(&name("v")).unwrap();
    assert_eq!(scene.volumes.list().unwrap(), []);
}

#[test]
fn a_volume_is_removed_without_its_file_and_not_if_its_user_cannot_be_told() {
    let scene = Scene::new();
    let made = scene.volumes.ensure(&name("v"), SMALL).unwrap();
    let elsewhere = scene.volumes.folder().join("lock");
    fs::remove_file(&made.path).unwrap();
    symlink(elsewhere, &made.path).unwrap();
    assert!(matches!(scene.volumes.remove(&name("v")), Err(VolumeError::Io { action: "open", .. })));
    assert!(scene.volumes.dir(&name("v")).is_dir());
    fs::remove_file(&made.path).unwrap();
    scene.volumes.remove(&name("v")).unwrap();
    assert!(!scene.volumes.dir(&name("v")).exists());
}
