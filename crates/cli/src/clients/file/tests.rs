use super::{
    whole::{NEW, beside},
    *,
};
use proptest::prelude::*;
use std::{
    fs::Permissions,
    os::unix::fs::{PermissionsExt, symlink},
};

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
    fs::write(backup::name(&path, false, "never written", 1), "old").unwrap();
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
    symlink(&victim, backup::name(&path, false, "new", 1)).unwrap();
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
