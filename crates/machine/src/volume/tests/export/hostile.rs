//! Images that somebody made to harm whoever exports them, or whoever unpacks the archive.

use super::*;
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Stdio};

/// Whoever unpacks a link and then a file below a folder of the same name writes where the link leads.
#[test]
fn a_folder_that_holds_a_name_twice_is_exported_with_the_first() {
    let filled = Filled::new();
    filled.write("bb/file", "harm").write("z", "last");
    symlink("/etc", filled.folder.path().join("aa")).unwrap();
    filled.fill(UNSUMMED);
    let root = filled.block("/") << 12;
    let image = fs::read(&filled.image).unwrap();
    let block = &image[root as usize..root as usize + 4096];
    // Its length comes before its kind, which comes before the name.
    let at = block.windows(4).position(|bytes| bytes == b"\x02\x02bb").unwrap() as u64;
    File::options().write(true).open(&filled.image).unwrap().write_all_at(b"aa", root + at + 2).unwrap();
    let (exported, archive) = filled.export().unwrap();
    let [unread] = &exported.errors[..] else { panic!("{exported:?}") };
    assert_eq!((unread.path.as_str(), exported.unread), ("/aa", 1));
    assert!(unread.reason.contains("twice"), "{unread:?}");
    assert_eq!(exported.entries, archive.len() as u64);
    let below = archive.contains_key(Path::new("aa/file"));
    let kind = if below { tar::EntryType::Directory } else { tar::EntryType::Symlink };
    assert_eq!(archive[Path::new("aa")].kind, kind);
    assert_eq!(content(&archive, "z"), b"last");
}

/// On a file system that does not tell `a` and `A` apart, they are one.
#[test]
fn nothing_comes_after_a_symbolic_link() {
    let filled = Filled::new();
    filled.write("A/file", "harm").write("z/file", "last");
    for link in ["a", "z/link"] {
        symlink("/etc", filled.folder.path().join(link)).unwrap();
    }
    filled.fill(PLAIN);
    let mut written = Vec::new();
    let exported = filled.scene.volumes.export(&name("v"), &mut written).unwrap();
    assert_eq!((exported.entries, exported.unread), (7, 0), "{exported:?}");
    let mut archive = tar::Archive::new(&written[..]);
    let kinds = archive.entries().unwrap().map(|entry| entry.unwrap().header().entry_type());
    let last: Vec<_> = kinds.skip_while(|kind| *kind != tar::EntryType::Symlink).collect();
    assert_eq!(last, [tar::EntryType::Symlink; 2]);
}

/// Each name costs little in the image, and a walk through all extents of the file that it leads to.
#[test]
fn extents_that_files_share_are_not_read_without_end() {
    const PIECES: u64 = 1400;
    const NAMES: usize = 3500;
    let filled = Filled::new();
    filled.write("file", "").write("z", "last");
    let file = filled.folder.path().join("file");
    let opened = File::options().write(true).open(&file).unwrap();
    (0..PIECES).for_each(|piece| opened.write_all_at(b"piece", piece << 13).unwrap());
    for number in 0..NAMES {
        fs::hard_link(&file, filled.folder.path().join(format!("name{number}"))).unwrap();
    }
    filled.fill(UNSUMMED);
    let (exported, archive) = filled.export().unwrap();
    assert_eq!(exported.unread, 0, "{exported:?}");
    assert!(exported.bytes > (PIECES - 1) << 13, "{exported:?}");
    // As if there were as many files of no contents, none of which has a second name.
    filled.debugfs(&["sif /file links_count 1", "sif /file size 0"]);
    let (exported, hostile) = filled.export().unwrap();
    assert!(exported.unread > 0, "all was read: {exported:?}");
    assert!(exported.errors[0].reason.contains("share their extents"), "{exported:?}");
    assert_eq!(exported.entries + exported.unread, archive.len() as u64);
    assert_eq!(content(&hostile, "z"), b"last");
}

/// However many files there are, each of their names is exported, and no more than that.
#[test]
fn names_of_files_that_do_not_exist_end_an_export_with_what_there_is() {
    const NAMES: u64 = 6000;
    let filled = Filled::new();
    filled.write("file", "content");
    for number in 1..NAMES {
        let path = filled.folder.path();
        fs::hard_link(path.join("file"), path.join(format!("name{number}"))).unwrap();
    }
    filled.fill(UNSUMMED);
    let inodes = filled.debugfs(&["stats"]);
    let inodes = inodes.lines().find_map(|line| line.strip_prefix("Inode count:")).unwrap();
    let inodes: u64 = inodes.trim().parse().unwrap();
    assert!(inodes < NAMES, "{inodes}");
    let (exported, archive) = filled.export().unwrap();
    // And lost+found.
    assert_eq!((exported.entries, exported.unread), (NAMES + 1, 0));
    assert_eq!(archive.len() as u64, NAMES + 1);
    filled.debugfs(&["sif /file links_count 2"]);
    let (unread, archive) = filled.unread();
    assert!(unread.path == "/" && unread.reason.contains("more files than it has"), "{unread:?}");
    assert_eq!(archive.len() as u64, inodes + 1);
}

#[test]
fn a_link_whose_text_is_damaged_is_named_and_the_rest_exported() {
    let filled = Filled::new();
    filled.write("z", "last");
    symlink("x".repeat(80), filled.folder.path().join("link")).unwrap();
    filled.fill_blocks("1024", UNSUMMED);
    // A text of several blocks, the second run of which is none.
    filled.debugfs(&["sif /link size 3000", "sif /link block[0] 0x2f30a", "sif /link block[6] 0"]);
    let (unread, archive) = filled.unread();
    assert_eq!(unread.path, "/link");
    assert!(unread.reason.contains("contradict"), "{unread:?}");
    assert_eq!(content(&archive, "z"), b"last");
}

/// No letters, and too long for the header of a member.
#[test]
fn names_of_any_bytes_and_any_length_come_out_of_the_archive_again() {
    let filled = Filled::new();
    let (odd, long) = (vec![0xff; 120], vec![0xfe; 255]);
    let path = |below: &Path, name: &[u8]| below.join(OsStr::from_bytes(name));
    let within = filled.folder.path();
    for length in [99, 100, 101, 255] {
        fs::write(path(within, &vec![0xfd; length]), length.to_string()).unwrap();
    }
    fs::create_dir(path(within, &odd)).unwrap();
    fs::write(path(&path(within, &odd), &long), "deep").unwrap();
    fs::hard_link(path(&path(within, &odd), &long), path(within, b"second")).unwrap();
    symlink(OsStr::from_bytes(&[0xfc; 300]), path(within, b"link")).unwrap();
    symlink(OsStr::from_bytes(&[0xfb; 100]), path(within, &[0xfa; 200])).unwrap();
    filled.fill(PLAIN);
    let mut written = Vec::new();
    let exported = filled.scene.volumes.export(&name("v"), &mut written).unwrap();
    assert_eq!((exported.unread, exported.entries), (0, 10), "{exported:?}");
    let unpacked = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar").arg("-xC").arg(unpacked.path()).stdin(Stdio::piped()).spawn().unwrap();
    tar.stdin.take().unwrap().write_all(&written).unwrap();
    assert!(tar.wait().unwrap().success());
    for length in [99, 100, 101, 255] {
        let content = fs::read_to_string(path(unpacked.path(), &vec![0xfd; length]));
        assert_eq!(content.unwrap(), length.to_string());
    }
    let inner = path(&path(unpacked.path(), &odd), &long);
    assert_eq!(fs::read(&inner).unwrap(), b"deep");
    assert_eq!(fs::metadata(inner).unwrap().nlink(), 2);
    let leads_to = |name: &[u8]| fs::read_link(path(unpacked.path(), name)).unwrap();
    assert_eq!(leads_to(b"link").as_os_str().as_bytes(), [0xfc; 300]);
    assert_eq!(leads_to(&[0xfa; 200]).as_os_str().as_bytes(), [0xfb; 100]);
}
