//! Exports of volumes as servers, killed machines and attackers leave them.

mod hostile;

use super::*;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    os::unix::fs::FileExt,
};

/// What mke2fs makes of a folder by itself, and without what hides that an image was changed by hand.
const PLAIN: &str = "^has_journal,^orphan_file";
const UNSUMMED: &str = "^has_journal,^orphan_file,^metadata_csum";
const JOURNAL: &str = "has_journal,^orphan_file";

/// A volume that holds a folder.
struct Filled {
    scene: Scene,
    folder: tempfile::TempDir,
    image: PathBuf,
}

/// An entry of an archive.
#[derive(PartialEq)]
struct Entry {
    kind: tar::EntryType,
    content: Vec<u8>,
    link: Option<PathBuf>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The beginning tells them apart, and fits on a page.
        let begin = &self.content[..self.content.len().min(5)];
        write!(f, "{:?} {begin:?} of {} {:?}", self.kind, self.content.len(), self.link)
    }
}

type Archive = BTreeMap<PathBuf, Entry>;

impl Filled {
    fn new() -> Self {
        let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
        let image = scene.volumes.ensure(&name("v"), SMALL).unwrap().path;
        drop(scene.volumes.take(&name("v"), &name("m")).unwrap());
        Self { scene, folder, image }
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Puts the folder into the volume, as if a machine had written it. Blocks that nobody wrote hold nonsense.
    fn fill(&self, features: &str) -> &Self {
        self.fill_blocks("4096", features)
    }

    fn fill_blocks(&self, block_bytes: &str, features: &str) -> &Self {
        fs::write(&self.image, vec![0xa5; 16 << 20]).unwrap();
        let made = Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-b", block_bytes, "-E", "nodiscard", "-O", features, "-d"])
            .args([self.folder.path(), &self.image])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        self
    }

    /// Has the file system's own debugger do or tell something.
    fn debugfs(&self, requests: &[&str]) -> String {
        let script = self.folder.path().with_extension("script");
        fs::write(&script, requests.join("\n")).unwrap();
        let done =
            Command::new("/usr/sbin/debugfs").arg("-wf").args([&script, &self.image]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success() && said.lines().count() == 1, "{said}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// The only block of a file, or its first.
    fn block(&self, path: &str) -> u64 {
        let blocks = self.debugfs(&[&format!("blocks {path}")]);
        let numbers = blocks.lines().last().unwrap().split_whitespace();
        numbers.map(|number| number.parse().unwrap()).next().unwrap()
    }

    /// Writes four bytes of the image.
    fn poke(&self, at: u64, number: u32) {
        let image = File::options().write(true).open(&self.image).unwrap();
        image.write_all_at(&number.to_le_bytes(), at).unwrap();
    }

    /// Moves the log of the journal so that it goes round the journal's end after three blocks.
    fn turn_log(&self) {
        const LOG: usize = 20;
        // Where each of its blocks is, which is not always behind the one before.
        let end = fs::metadata(&self.image).unwrap().len() / 4096 / 4;
        let requests: Vec<String> = (0..end).map(|block| format!("bmap <8> {block}")).collect();
        let found = self.debugfs(&requests.iter().map(String::as_str).collect::<Vec<_>>());
        let blocks: Vec<u64> = found.lines().filter_map(|line| line.trim().parse().ok()).collect();
        assert!(blocks.len() as u64 == end && !blocks.contains(&0), "{found}");
        let image = File::options().read(true).write(true).open(&self.image).unwrap();
        let mut log = vec![vec![0; 4096]; LOG];
        for (number, block) in log.iter_mut().enumerate() {
            image.read_exact_at(block, blocks[1 + number] << 12).unwrap();
            image.write_all_at(&[0; 4096], blocks[1 + number] << 12).unwrap();
        }
        let (superblock, start) = (blocks[0] << 12, blocks.len() - 3);
        for (number, block) in log.iter().enumerate() {
            let to = 1 + (start - 1 + number) % (blocks.len() - 1);
            image.write_all_at(block, blocks[to] << 12).unwrap();
        }
        image.write_all_at(&(start as u32).to_be_bytes(), superblock + 0x1c).unwrap();
    }

    fn export(&self) -> Result<(Exported, Archive), ExportError> {
        let mut written = Vec::new();
        let exported = self.scene.volumes.export(&name("v"), &mut written)?;
        let mut archive = Archive::new();
        for entry in tar::Archive::new(&written[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, kind) = (entry.path().unwrap().into_owned(), entry.header().entry_type());
            let link =
                entry.link_name_bytes().map(|link| PathBuf::from(String::from_utf8(link.into()).unwrap()));
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            archive.insert(path, Entry { kind, content, link });
        }
        Ok((exported, archive))
    }

    /// The reason why the only entry that cannot be read cannot.
    fn unread(&self) -> (Unread, Archive) {
        let (exported, archive) = self.export().unwrap();
        let [unread] = &exported.errors[..] else { panic!("{exported:?}") };
        assert_eq!(exported.unread, 1);
        (unread.clone(), archive)
    }
}

fn content<'a>(archive: &'a Archive, path: &str) -> &'a [u8] {
    &archive[Path::new(path)].content
}

#[test]
fn an_archive_holds_files_folders_and_links_and_leaves_out_the_rest() {
    let filled = Filled::new();
    let large: Vec<u8> = (0..3_u32 << 18).flat_map(u32::to_le_bytes).collect();
    filled.write("d/deep/file", "content").write("large", &large).write("empty", "");
    let within = |path: &str| filled.folder.path().join(path);
    let long = "very/".repeat(60) + "long";
    for (link, target) in [("out", "/etc/passwd"), ("odd", "a//./b/"), ("long", &long)] {
        symlink(target, within(link)).unwrap();
    }
    fs::hard_link(within("large"), within("second")).unwrap();
    assert!(Command::new("mkfifo").arg(within("pipe")).status().unwrap().success());
    for features in [PLAIN, UNSUMMED, JOURNAL, "^has_journal,^64bit,^orphan_file"] {
        let (exported, archive) = filled.fill(features).export().unwrap();
        // Two folders, lost+found, four files, three links.
        let counts = (exported.entries, exported.bytes, exported.left_out, exported.unread);
        assert_eq!(counts, (10, (3 << 20) + 7, 1, 0), "{features}: {exported:?}");
        assert_eq!(content(&archive, "d/deep/file"), b"content");
        assert_eq!(content(&archive, "empty"), b"");
        assert_eq!(archive[Path::new("d")].kind, tar::EntryType::Directory);
        for (link, target) in [("out", "/etc/passwd"), ("odd", "a//./b/"), ("long", &long)] {
            let entry = &archive[Path::new(link)];
            assert_eq!((entry.kind, &entry.link), (tar::EntryType::Symlink, &Some(target.into())));
        }
        assert!(!archive.contains_key(Path::new("pipe")));
        // One file with two names, whichever comes first.
        let (one, other) = (&archive[Path::new("large")], &archive[Path::new("second")]);
        let (file, link) = if one.link.is_none() { (one, other) } else { (other, one) };
        assert!(file.content == large, "{features}");
        assert_eq!(link.kind, tar::EntryType::Link);
        assert!(archive[link.link.as_ref().unwrap()].content == large);
    }
}

#[test]
fn blocks_that_were_set_aside_and_never_written_are_zeros() {
    let filled = Filled::new();
    filled.write("file", vec![7; 3 << 12]);
    // Longer than one extent of the largest size that is written.
    File::options().write(true).open(filled.folder.path().join("file")).unwrap().set_len(100 << 12).unwrap();
    filled.fill(PLAIN).debugfs(&["fallocate /file 3 89"]);
    let extents = filled.debugfs(&["ex /file"]);
    assert!(extents.contains("Uninit"), "{extents}");
    let (exported, archive) = filled.export().unwrap();
    assert_eq!(exported.bytes, 100 << 12);
    let mut expected = vec![7; 3 << 12];
    expected.resize(100 << 12, 0);
    assert!(content(&archive, "file") == expected, "what was on the disk before was exported");
}

#[test]
fn a_volume_that_no_machine_had_holds_what_mke2fs_makes() {
    let filled = Filled::new();
    // Not even the name of a user, which a host that went down may have lost.
    fs::remove_file(filled.scene.volumes.dir(&name("v")).join(USER)).unwrap();
    let (exported, archive) = filled.export().unwrap();
    assert_eq!((exported.entries, exported.unread), (1, 0), "{exported:?}");
    assert_eq!(archive[Path::new("lost+found")].kind, tar::EntryType::Directory);
    let (exported, archive) = filled.write("a", "a").fill(PLAIN).export().unwrap();
    assert_eq!((exported.entries, content(&archive, "a")), (2, &b"a"[..]));
}

/// Journals as the kernel writes them, and as they were before there were checksums.
#[test]
fn what_a_killed_machine_left_in_the_journal_counts() {
    for open in ["jo -c", "jo"] {
        let filled = Filled::new();
        for file in ["taken", "revoked", "kept", "torn", "escaped"] {
            filled.write(file, vec![b'o'; 4096]);
        }
        filled.fill(JOURNAL);
        let [taken, revoked, torn, escaped] =
            ["/taken", "/revoked", "/torn", "/escaped"].map(|path| filled.block(path));
        let new = |name: &str, bytes: &[u8]| {
            let path = filled.folder.path().with_extension(name);
            fs::write(&path, bytes).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (later, sooner) = (new("later", &[b'n'; 4096]), new("sooner", &[b's'; 4096]));
        // The journal's magic number, which is not written as it is.
        let magic = [&0xc03b_3998_u32.to_be_bytes()[..], &[b'm'; 4092]].concat();
        let magic_file = new("magic", &magic);
        filled.debugfs(&[
            open,
            &format!("jw -b {taken} {sooner}"),
            &format!("jw -b {revoked} {sooner}"),
            &format!("jw -b {escaped} {magic_file}"),
            // The block is used for something else from here on.
            &format!("jw -r {revoked}"),
            &format!("jw -b {taken} {later}"),
            // Without the commit that would end it.
            &format!("jw -b {torn} -c {sooner}"),
            "jc",
        ]);
        let header = filled.debugfs(&["stats"]);
        assert!(header.contains("needs_recovery"), "there is nothing to be recovered: {header}");
        let (exported, archive) = filled.export().unwrap();
        assert_eq!(exported.unread, 0, "{exported:?}");
        assert!(content(&archive, "taken") == [b'n'; 4096], "{open}");
        assert!(content(&archive, "escaped") == magic, "{open}");
        for file in ["revoked", "kept", "torn"] {
            assert!(content(&archive, file) == [b'o'; 4096], "{open}: {file}");
        }
        // Superblocks of journals with checksums have one too.
        if open == "jo" {
            filled.turn_log();
            assert_eq!(filled.export().unwrap().1, archive, "the log was not followed round its end");
        }
        // And so sees it the program whose business it is.
        let journal_only = ["-fy", "-E", "journal_only"];
        let mended = Command::new("/usr/sbin/e2fsck").args(journal_only).arg(&filled.image).output().unwrap();
        assert!(mended.status.code().unwrap() < 4, "{mended:?}");
        assert_eq!(filled.export().unwrap().1, archive, "{open}");
    }
}

#[test]
fn files_with_holes_may_be_larger_than_the_volume_and_not_without_end() {
    let filled = Filled::new();
    for (file, bytes) in [("large", 40_u64 << 20), ("endless", 1 << 40)] {
        filled.write(file, "");
        File::options().write(true).open(filled.folder.path().join(file)).unwrap().set_len(bytes).unwrap();
    }
    filled.write("z", "last").fill(PLAIN);
    let (unread, archive) = filled.unread();
    assert_eq!(unread.path, "/endless");
    assert!(unread.reason.contains("16 times the volume's size"), "{unread:?}");
    assert_eq!(content(&archive, "large").len(), 40 << 20);
    assert_eq!(content(&archive, "z"), b"last");
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_exported() {
    let deep = format!("deep{}/file", "/d".repeat(200));
    for (what, path, reason) in [
        ("clri /a/bad", "/a/bad", "its inode"),
        // Longer than any link; what it would take in memory is said by the image alone.
        ("sif /a/link size 0x40000000", "/a/link", "longer than any path"),
        ("sif /a/link size 0", "/a/link", "leads nowhere"),
        ("sif /a/bad block[0] 0x1234", "/a/bad", "no tree"),
        // An extent beyond the end.
        ("sif /a/bad block[5] 0xffffff", "/a/bad", "a block that does not exist"),
        // A folder in itself.
        ("ln /a /a/again", "/a/again", "two names"),
        ("sif /a size 4097", "/a", "impossible size"),
        ("sif /a size 0x40000000", "/a", "more bytes than it has"),
        ("mi", "/deep", "nested deeper"),
    ] {
        let filled = Filled::new();
        filled.write("a/bad", "bad").write("b/good", "good").write("z", "last");
        symlink("x".repeat(80), filled.folder.path().join("a/link")).unwrap();
        match what {
            "mi" => filled.write(&deep, "deep").fill(PLAIN),
            _ => filled.fill(PLAIN),
        };
        if what != "mi" {
            filled.debugfs(&[what]);
        }
        let (unread, archive) = filled.unread();
        assert!(unread.path.starts_with(path) && unread.reason.contains(reason), "{what}: {unread:?}");
        assert_eq!(content(&archive, "b/good"), b"good", "{what}");
        assert_eq!(content(&archive, "z"), b"last", "{what}");
    }
}

/// Each is whole but for one number, which says that there is more than there is.
#[test]
fn an_image_that_claims_to_be_larger_than_it_is_is_refused_before_it_is_read() {
    const SUPERBLOCK: u64 = 1024;
    for (what, at, number, reason) in [
        ("more blocks than fit", 0x4, 0x2000_0000, "larger than its image"),
        ("groups without number", 0x20, 1, "block groups"),
        ("inodes without number", 0x28, u32::MAX, "block groups"),
        ("blocks of any size", 0x18, 31, "its blocks have a size"),
        ("no magic number", 0x38, 0, "no ext4 file system"),
        ("what is not understood", 0x60, 0x8042, "features"),
        ("no inodes", 0, 0, "an inode that does not exist"),
    ] {
        let filled = Filled::new();
        filled.write("a", "a").fill("^has_journal,^orphan_file,^metadata_csum,^64bit");
        assert!(filled.export().is_ok(), "it is not whole");
        filled.poke(SUPERBLOCK + at, number);
        let said = match filled.export() {
            Err(ExportError::Read { source, .. }) => source.to_string(),
            Ok((exported, _)) => exported.errors[0].reason.clone(),
            Err(error) => error.to_string(),
        };
        assert!(said.contains(reason), "{what}: {said}");
    }
}

#[test]
fn a_superblock_that_was_changed_by_hand_is_noticed() {
    let filled = Filled::new();
    filled.write("a", "a").fill(PLAIN).poke(1024 + 0x100, 0x1234);
    let error = filled.export().unwrap_err();
    assert!(
        matches!(&error, ExportError::Read { source, .. } if source.to_string().contains("checksum")),
        "{error:?}"
    );
}

#[test]
fn who_fails_is_told_apart_reader_and_writer() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let filled = Filled::new();
    filled.write("file", vec![7; 8 << 20]).fill(PLAIN);
    let failed = filled.scene.volumes.export(&name("v"), Full).unwrap_err();
    assert!(matches!(failed, ExportError::Write(_)), "{failed:?}");

    /// Takes what is before the contents, and cuts the image off then.
    struct Cutting<'a>(&'a Path);
    impl Write for Cutting<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.contains(&7) {
                File::options().write(true).open(self.0)?.set_len(1 << 20)?;
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let failed = filled.scene.volumes.export(&name("v"), Cutting(&filled.image)).unwrap_err();
    assert!(matches!(&failed, ExportError::Read { path, .. } if path == "/file"), "{failed:?}");
}

#[test]
fn nonsense_in_a_volume_is_an_error() {
    let filled = Filled::new();
    fs::write(&filled.image, vec![0xa5; 16 << 20]).unwrap();
    assert!(matches!(filled.export(), Err(ExportError::Read { .. })));
}

/// Counts what it is given.
struct Counting(u64);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever it says, reading it ends, without a panic and within what a volume may claim.
    #[test]
    fn an_image_in_which_anything_was_changed_is_read_to_an_end(
        changes in prop::collection::vec(
            prop::collection::vec((any::<prop::sample::Index>(), 0_usize..64, any::<u32>()), 1..6), 40,
        )
    ) {
        let filled = Filled::new();
        for number in 0..40 {
            filled.write(&format!("d{}/f{number}", number % 3), vec![number + 1; 5000]);
        }
        symlink("x".repeat(80), filled.folder.path().join("link")).unwrap();
        filled.fill("has_journal,^orphan_file,^metadata_csum");
        let new = filled.folder.path().with_extension("new");
        fs::write(&new, [0; 4096]).unwrap();
        let (block, new) = (filled.block("/d0/f0"), new.to_str().unwrap().to_owned());
        filled.debugfs(&["jo", &format!("jw -b {block} {new}"), &format!("jw -r {block}"), "jc"]);
        let image = File::options().read(true).write(true).open(&filled.image).unwrap();
        // Where something is that is not contents: numbers that are not zero, in blocks that are not full of nonsense.
        let whole = fs::read(&filled.image).unwrap();
        let told = |word: &[u8]| word != [0; 4] && word != [0xa5; 4] && word[0] != word[3];
        let places: Vec<u64> =
            whole.chunks_exact(4).enumerate().filter(|(_, word)| told(word)).map(|(at, _)| at as u64 * 4).collect();
        prop_assert!(places.len() > 500, "{}", places.len());
        for changes in changes {
            for (place, kind, number) in &changes {
                let at = *place.get(&places);
                let now = u32::from_le_bytes(whole[at as usize..at as usize + 4].try_into().unwrap());
                let changed = match kind {
                    0..32 => now ^ 1 << kind,
                    32..40 => number % 64,
                    40..48 => u32::MAX,
                    _ => *number,
                };
                image.write_all_at(&changed.to_le_bytes(), at).unwrap();
            }
            let mut archive = Counting(0);
            let began = Instant::now();
            let exported = scene_export(&filled, &mut archive);
            prop_assert!(began.elapsed() < Duration::from_secs(20), "{changes:?}");
            prop_assert!(archive.0 < 17 * (16 << 20), "{} {exported:?}", archive.0);
            for (place, ..) in &changes {
                let at = *place.get(&places);
                image.write_all_at(&whole[at as usize..at as usize + 4], at).unwrap();
            }
        }
        prop_assert_eq!(scene_export(&filled, &mut Counting(0)).unwrap().unread, 0);
    }
}

fn scene_export(filled: &Filled, to: &mut Counting) -> Result<Exported, ExportError> {
    filled.scene.volumes.export(&name("v"), to)
}
