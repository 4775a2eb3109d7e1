use super::*;
use std::{collections::BTreeMap, io::Read, os::unix::fs::PermissionsExt, process::Command};

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

    /// Puts what is in a folder into a volume, as if a machine had written it.
    fn fill(&self, volume: &str, folder: &Path) {
        let image = self.volumes.get(&name(volume)).unwrap().path;
        let made = Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
            .args([folder, &image])
            .status()
            .unwrap();
        assert!(made.success());
        drop(self.volumes.take(&name(volume), &name("m")).unwrap());
    }

    fn export(&self, volume: &str) -> (Result<Exported, ExportError>, Vec<u8>) {
        let mut archive = Vec::new();
        (self.volumes.export(&name(volume), &mut archive), archive)
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
    assert!(matches!(scene.export("v").0, Err(ExportError::Volume(VolumeError::Used { .. }))));
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
fn an_archive_holds_files_folders_and_links_and_leaves_out_the_rest() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("d/deep")).unwrap();
    fs::write(folder.path().join("d/deep/file"), "content").unwrap();
    fs::write(folder.path().join("large"), vec![7; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("out")).unwrap();
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    scene.volumes.ensure(&name("v"), SMALL).unwrap();
    scene.fill("v", folder.path());

    let (exported, archive) = scene.export("v");
    let exported = exported.unwrap();
    assert_eq!((exported.bytes, exported.left_out), ((3 << 20) + 7, 1));
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let link = entry.link_name().unwrap().map(|link| link.into_owned());
        found.insert(path, (content, link));
    }
    assert_eq!(found[Path::new("d/deep/file")].0, b"content");
    assert!(found[Path::new("large")].0 == vec![7; 3 << 20]);
    assert_eq!(found[Path::new("out")].1.as_deref(), Some(Path::new("/etc/passwd")));
    assert!(!found.contains_key(Path::new("pipe")));
}

#[test]
fn a_volume_that_no_machine_had_is_an_empty_archive() {
    let scene = Scene::new();
    scene.volumes.ensure(&name("v"), SMALL).unwrap();
    let (exported, archive) = scene.export("v");
    assert_eq!(exported.unwrap(), Exported::default());
    assert_eq!(tar::Archive::new(&archive[..]).entries().unwrap().count(), 0);
}

#[test]
fn a_file_that_claims_more_than_the_volume_has_is_refused() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    File::create(folder.path().join("holes")).unwrap().set_len(1 << 40).unwrap();
    scene.volumes.ensure(&name("v"), SMALL).unwrap();
    scene.fill("v", folder.path());
    let error = scene.export("v").0.unwrap_err();
    assert!(matches!(&error, ExportError::Excessive { what, .. } if what.contains("holes")), "{error}");
}

#[test]
fn nonsense_in_a_volume_is_an_error() {
    let scene = Scene::new();
    let made = scene.volumes.ensure(&name("v"), SMALL).unwrap();
    drop(scene.volumes.take(&name("v"), &name("m")).unwrap());
    fs::write(&made.path, vec![0xa5; 16 << 20]).unwrap();
    assert!(matches!(scene.export("v").0, Err(ExportError::Read { .. })));
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
