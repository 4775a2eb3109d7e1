//! File systems as a guest may leave them in a volume: words of a whole one are changed, then everything in it is
//! read.

#![no_main]

use arbitrary::Arbitrary;
use ext4::{FileSystem, Folder, Kind, ROOT};
use libfuzzer_sys::fuzz_target;
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{FileExt, symlink},
    process::{Command, id},
    sync::LazyLock,
};

/// The reader alone, without all that a machine needs.
#[expect(dead_code, reason = "what only the exporter uses is compiled too")]
#[path = "../../crates/machine/src/volume/ext4/mod.rs"]
mod ext4;

/// The size of the image, and the most that is read of it: a file with holes may claim any size.
const BYTES: u64 = 2 << 20;
const MOST: u64 = 16 * BYTES;

#[derive(Debug, Arbitrary)]
struct Change {
    /// Among the places that say something.
    place: u16,
    number: u32,
}

struct Image {
    file: File,
    whole: Vec<u8>,
    /// Addresses of words that are not zero.
    places: Vec<u64>,
}

static IMAGE: LazyLock<Image> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("casemate-fuzz-{}", id()));
    let (tree, path) = (folder.join("tree"), folder.join("image"));
    for number in 0..20 {
        let below = tree.join(format!("d{}", number % 3));
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join(format!("f{number}")), vec![number + 1; 3000]).unwrap();
    }
    symlink("x".repeat(80), tree.join("link")).unwrap();
    File::create(&path).unwrap().set_len(BYTES).unwrap();
    let features = "has_journal,^orphan_file,^metadata_csum,^resize_inode";
    let mke2fs = ["-q", "-F", "-t", "ext4", "-b", "1024", "-O", features, "-d"];
    let made = Command::new("/usr/sbin/mke2fs").args(mke2fs).args([&tree, &path]).status();
    assert!(made.unwrap().success());
    // So that there is a journal to be recovered.
    let journal = "jo\njw -b 1500 /dev/zero\njw -r 1500\njc\n";
    fs::write(folder.join("script"), journal).unwrap();
    let debugfs = Command::new("/usr/sbin/debugfs").arg("-wf").args([&folder.join("script"), &path]).output();
    assert!(debugfs.unwrap().status.success());
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    fs::remove_dir_all(folder).unwrap();
    let words = whole.chunks_exact(4).enumerate().filter(|(_, word)| *word != [0; 4]);
    let places = words.map(|(at, _)| at as u64 * 4).collect();
    Image { file, whole, places }
});

fuzz_target!(|changes: Vec<Change>| {
    let Image { file, whole, places } = &*IMAGE;
    let at = |change: &Change| places[usize::from(change.place) % places.len()];
    for change in &changes {
        file.write_all_at(&change.number.to_le_bytes(), at(change)).unwrap();
    }
    if let Ok(system) = FileSystem::open(file.try_clone().unwrap(), BYTES) {
        walk(&system);
    }
    for change in &changes {
        let at = at(change);
        file.write_all_at(&whole[at as usize..at as usize + 4], at).unwrap();
    }
});

fn walk(system: &FileSystem) {
    let (mut open, mut met, mut read) = (vec![ROOT], 0, 0);
    while let Some(number) = open.pop() {
        let Ok(folder) = system.inode(number) else { continue };
        let Ok(mut names) = Folder::of(system, &folder) else { continue };
        while let Ok(Some((_, number))) = names.advance() {
            met += 1;
            if met > 1000 {
                return;
            }
            let Ok(inode) = system.inode(number) else { continue };
            match inode.kind {
                Kind::Folder => open.push(number),
                Kind::Link => drop(system.link(&inode)),
                Kind::File if inode.bytes < MOST - read => {
                    let Ok(contents) = system.contents(&inode) else { continue };
                    // What was looked at can be read: the image does not fail.
                    let copied = std::io::copy(&mut contents.take(MOST), &mut std::io::sink()).unwrap();
                    assert_eq!(copied, inode.bytes);
                    read += copied;
                }
                _ => {}
            }
        }
    }
}
