use super::*;
use crate::progress::Silent;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;

const OWNER: u32 = 1000;

struct Scene {
    home: tempfile::TempDir,
    store: Store,
}

impl Scene {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("home")).unwrap();
        fs::create_dir(home.path().join("f")).unwrap();
        Self { home, store }
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("f")
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.folder().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Says that everything in the folder was last changed in 2020.
    fn age(&self) {
        let touch = ["-exec", "touch", "-hd", "@1577836800", "{}", "+"];
        assert!(Command::new("find").arg(self.folder()).args(touch).status().unwrap().success());
    }

    fn pack(&self) -> Result<Packed, FolderError> {
        pack(&self.store, &self.folder(), OWNER, &Silent)
    }

    fn pack_while(&self, between: impl Fn()) -> Result<Packed, FolderError> {
        pack_between(&self.store, &self.folder(), OWNER, &Silent, &between)
    }

    fn unpack(&self, packed: &Packed) -> PathBuf {
        let to = self.home.path().join("out");
        let _ = fs::remove_dir_all(&to);
        erofs::unpack(&packed.image, &to).unwrap();
        to
    }

    fn images(&self) -> usize {
        let cache = fs::read_dir(self.store.cache(CACHE).unwrap()).unwrap().flatten();
        cache.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "erofs")).count()
    }
}

#[test]
fn a_folder_is_packed_as_it_is_and_its_links_as_links() {
    let scene = Scene::new();
    scene.write("d/deep/file", "content");
    scene.write("run", "#!/bin/sh\n");
    fs::set_permissions(scene.folder().join("run"), fs::Permissions::from_mode(0o4700)).unwrap();
    symlink("/etc/passwd", scene.folder().join("out")).unwrap();
    symlink("../../..", scene.folder().join("d/up")).unwrap();
    scene.age();
    let packed = scene.pack().unwrap();
    assert_eq!(fs::metadata(&packed.image).unwrap().permissions().mode() & 0o777, 0o444);

    let out = scene.unpack(&packed);
    assert_eq!(fs::read(out.join("d/deep/file")).unwrap(), b"content");
    assert_eq!(fs::read_link(out.join("out")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read_link(out.join("d/up")).unwrap(), Path::new("../../.."));
    let run = fs::metadata(out.join("run")).unwrap();
    assert_eq!((run.mode() & 0o7777, run.mtime()), (0o755, 1_577_836_800));
    assert_eq!(fs::metadata(out.join("d")).unwrap().mtime(), 1_577_836_800);
}

#[test]
fn the_same_content_is_one_image_and_another_content_another() {
    let scene = Scene::new();
    scene.write("a", "1");
    scene.age();
    let first = scene.pack().unwrap();
    let again = scene.pack().unwrap();
    assert_eq!((&again.image, &again.digest), (&first.image, &first.digest));
    // The same length and the same times.
    scene.write("a", "2");
    scene.age();
    let second = scene.pack().unwrap();
    assert_ne!(second.digest, first.digest);
    assert_eq!(scene.images(), 2);
    // For another owner it is another image, of the same state.
    assert_ne!(pack(&scene.store, &scene.folder(), 7, &Silent).unwrap().digest, second.digest);
}

#[test]
fn what_is_neither_file_nor_folder_nor_link_is_refused() {
    let scene = Scene::new();
    scene.write("a", "1");
    let _socket = UnixListener::bind(scene.folder().join("s")).unwrap();
    let error = scene.pack().unwrap_err();
    assert!(
        matches!(&error, FolderError::Special { kind: "socket", path } if path.ends_with("s")),
        "{error}"
    );
    assert_eq!(scene.images(), 0);
}

#[test]
fn what_is_no_folder_is_refused() {
    let scene = Scene::new();
    scene.write("a", "1");
    for name in ["none", "a"] {
        let packed = pack(&scene.store, &scene.folder().join(name), OWNER, &Silent);
        assert!(matches!(packed, Err(FolderError::NoFolder { .. })), "{name}");
    }
}

#[test]
fn a_folder_that_is_too_large_is_refused_before_it_is_read() {
    let scene = Scene::new();
    File::create(scene.folder().join("hole")).unwrap().set_len(FOLDER_BYTES + 1).unwrap();
    let error = scene.pack().unwrap_err();
    assert!(error.to_string().ends_with("holds more than 1024 MiB"), "{error}");
}

#[test]
fn what_changes_while_it_is_packed_is_refused() {
    type Change = (&'static str, fn(&Path));
    let changes: [Change; 6] = [
        ("written", |folder| fs::write(folder.join("d/a"), "another").unwrap()),
        ("of the same size", |folder| fs::write(folder.join("d/a"), "2").unwrap()),
        ("removed", |folder| fs::remove_file(folder.join("d/a")).unwrap()),
        ("added", |folder| fs::write(folder.join("d/new"), "1").unwrap()),
        ("a folder that becomes a link", |folder| {
            fs::rename(folder.join("d"), folder.join("e")).unwrap();
            symlink("/etc", folder.join("d")).unwrap();
        }),
        ("a file that becomes a pipe", |folder| {
            fs::remove_file(folder.join("d/a")).unwrap();
            assert!(Command::new("mkfifo").arg(folder.join("d/a")).status().unwrap().success());
        }),
    ];
    for (what, change) in changes {
        let scene = Scene::new();
        scene.write("d/a", "1");
        scene.age();
        let packed = scene.pack_while(|| change(&scene.folder()));
        let refused = matches!(packed, Err(FolderError::Changed { .. }));
        assert!(refused, "{what}: {packed:?}");
        assert_eq!(scene.images(), 0, "{what}");
    }
}

#[test]
fn a_link_that_takes_a_folders_place_leads_nowhere() {
    let scene = Scene::new();
    let secret = scene.home.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("a"), "secret").unwrap();
    scene.write("d/a", "public");
    let root = survey::open(&scene.folder()).unwrap();
    let before = Survey::take(&root, &scene.folder()).unwrap();
    fs::rename(scene.folder().join("d"), scene.home.path().join("gone")).unwrap();
    symlink(&secret, scene.folder().join("d")).unwrap();
    let tree = scene.home.path().join("tree");
    let copied = copy::copy(&root, &scene.folder(), &before, &tree, OWNER);
    assert!(matches!(copied, Err(FolderError::Changed { .. })));
    assert!(!tree.join("d/a").exists(), "it was followed");
}

/// A link's text has no inode to be compared: nothing but the way to it tells that it is another's.
#[test]
fn the_text_of_a_link_is_read_below_the_folder_alone() {
    let scene = Scene::new();
    let secret = scene.home.path().join("secret");
    fs::create_dir(&secret).unwrap();
    symlink("what only its owner knows", secret.join("l")).unwrap();
    fs::create_dir(scene.folder().join("d")).unwrap();
    symlink("public", scene.folder().join("d/l")).unwrap();
    let root = survey::open(&scene.folder()).unwrap();
    let before = Survey::take(&root, &scene.folder()).unwrap();
    fs::rename(scene.folder().join("d"), scene.home.path().join("gone")).unwrap();
    for leads_out in [Path::new("../secret"), secret.as_path()] {
        symlink(leads_out, scene.folder().join("d")).unwrap();
        let tree = scene.home.path().join("tree");
        let copied = copy::copy(&root, &scene.folder(), &before, &tree, OWNER);
        let read = fs::read_link(tree.join("d/l"));
        assert!(matches!(copied, Err(FolderError::Changed { .. })), "it was followed: {read:?}");
        assert!(read.is_err(), "it was followed: {read:?}");
        fs::remove_dir_all(tree).unwrap();
        fs::remove_file(scene.folder().join("d")).unwrap();
    }
}

#[test]
fn what_is_not_needed_any_more_does_not_stay_in_the_cache() {
    let scene = Scene::new();
    let seen = scene.store.cache(SEEN).unwrap();
    let records = || fs::read_dir(&seen).unwrap().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let old = SystemTime::now() - CACHE_AGE - Duration::from_secs(1);
    let settle = || std::thread::sleep(SETTLED + Duration::from_millis(100));
    scene.write("a", "1");
    settle();
    let held = scene.pack().unwrap();
    assert_eq!(records().len(), 1);
    // One of a state long ago, one of an image that is gone, one that says nothing.
    fs::copy(&records()[0], seen.join("long ago.json")).unwrap();
    File::options().append(true).open(seen.join("long ago.json")).unwrap().set_modified(old).unwrap();
    record::write(&seen.join("gone.json"), &"0".repeat(64)).unwrap();
    fs::write(seen.join("nothing.json"), "").unwrap();
    assert_eq!(records().len(), 4);
    prune(&scene.store).unwrap();
    assert_eq!(records().len(), 1);
    // Each packing looks after them, also one that finds its image made already.
    record::write(&seen.join("gone.json"), &"0".repeat(64)).unwrap();
    fs::set_permissions(scene.folder().join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    settle();
    assert_eq!(scene.pack().unwrap().image, held.image);
    assert_eq!(records().len(), 2);
    drop(held);
    prune(&scene.store).unwrap();
    assert_eq!(records().len(), 0);

    for folder in CACHES {
        let left = scene.store.cache(folder).unwrap().join(format!("{}killed", partial::PREFIX));
        fs::write(&left, "half").unwrap();
        File::options().append(true).open(&left).unwrap().set_modified(old).unwrap();
        Store::open(scene.store.home()).unwrap();
        assert!(!left.exists(), "{folder}");
    }
}

#[test]
fn pruning_spares_what_is_held_and_removes_what_was_used_least() {
    let scene = Scene::new();
    scene.write("a", "1");
    let first = scene.pack().unwrap();
    scene.write("a", "2");
    drop(scene.pack().unwrap());
    assert_eq!(prune(&scene.store).unwrap(), first.bytes, "all images of one file are as large");
    assert_eq!(scene.images(), 1);
    let image = first.image.clone();
    drop(first);
    prune(&scene.store).unwrap();
    assert!(!image.exists() && scene.images() == 0);
    // What was pruned is made again, though the folder's state is known.
    assert!(scene.pack().unwrap().image.exists());
}

#[test]
fn a_folder_in_a_state_that_was_packed_is_not_read_again() {
    let scene = Scene::new();
    scene.write("a", "1");
    std::thread::sleep(SETTLED + Duration::from_millis(100));
    let first = scene.pack().unwrap();
    let again = scene.pack_while(|| panic!("it was read again")).unwrap();
    assert_eq!(again.digest, first.digest);
}
