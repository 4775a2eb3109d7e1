//! Unpacks tar streams: ustar, with the long-name extensions of GNU and PAX.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tar::EntryType;

use super::path::entry_path;
use super::{Limits, Tree, UnpackError};

/// The largest extension header: a long name, or the attributes of an entry.
const LONGEST_EXTENSION: u64 = 64 * 1024;
/// What headers and padding may add to a stream, for each entry.
const OVERHEAD: u64 = 4096;

/// Unpacks the uncompressed tar stream `reader` into `tree`.
///
/// `map` is asked for each path (relative to the root, clean) and moves it, or leaves it out with `None`.
/// Sources of hard links are mapped too.
pub fn unpack_tar(
    reader: impl Read,
    tree: &mut Tree,
    map: &dyn Fn(&Path) -> Option<PathBuf>,
) -> Result<(), UnpackError> {
    let Limits { bytes, entries } = tree.limits();
    let bounded = reader.take(bytes.saturating_add(entries.saturating_mul(OVERHEAD)));
    let mut archive = tar::Archive::new(bounded);
    let mut names = Names::default();
    let mut count = 0;
    // In raw mode the crate holds no name in memory: it would accept one of any length.
    for entry in archive.entries().map_err(UnpackError::Read)?.raw(true) {
        let mut entry = entry.map_err(UnpackError::Read)?;
        count += 1;
        if count > entries {
            return Err(UnpackError::TooLarge(tree.limits()));
        }
        let kind = entry.header().entry_type();
        if names.take_extension(kind, &mut entry)? {
            continue;
        }
        let Names { path, link, size } = std::mem::take(&mut names);
        if size.is_some_and(|size| Ok(size) != entry.header().entry_size().map_err(drop)) {
            return Err(UnpackError::Malformed("an entry has two sizes"));
        }
        let name = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let original = entry_path(&name)?;
        let Some(mapped) = map(&original) else { continue };
        let mode = entry.header().mode().map_err(UnpackError::Read)?;
        let to = path_bytes(&mapped);
        let link = || match link {
            Some(link) => Ok(link),
            None => match entry.link_name_bytes() {
                Some(link) => Ok(link.into_owned()),
                None => Err(UnpackError::Malformed("a link has no target")),
            },
        };
        match kind {
            EntryType::Directory => tree.folder(to, mode)?,
            // How the oldest format says folder.
            EntryType::Regular if name.ends_with(b"/") => tree.folder(to, mode)?,
            EntryType::Regular | EntryType::Continuous => {
                let (before, size) = (tree.bytes(), entry.size());
                tree.file(to, mode, &mut entry)?;
                if tree.bytes() - before != size {
                    return Err(UnpackError::Malformed("it ends within a file"));
                }
            }
            EntryType::Symlink => tree.symlink(to, &link()?)?,
            EntryType::Link => {
                let existing = entry_path(&link()?)?;
                match map(&existing) {
                    Some(existing) => tree.hard_link(to, path_bytes(&existing))?,
                    None => {
                        return Err(UnpackError::Link {
                            path: mapped,
                            target: existing.display().to_string(),
                        });
                    }
                }
            }
            _ => return Err(UnpackError::Kind { path: original }),
        }
    }
    Ok(())
}

/// Clean paths are never empty names to [`Tree`]: the root is `.`.
fn path_bytes(path: &Path) -> &[u8] {
    match path.as_os_str().as_bytes() {
        [] => b".",
        bytes => bytes,
    }
}

/// What extension headers say about the entry that follows them.
#[derive(Default)]
struct Names {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Names {
    /// Whether the entry is an extension header, which is then remembered.
    fn take_extension(&mut self, kind: EntryType, entry: &mut impl Read) -> Result<bool, UnpackError> {
        if kind.is_gnu_longname() {
            self.path = Some(without_nul(read_extension(entry)?));
        } else if kind.is_gnu_longlink() {
            self.link = Some(without_nul(read_extension(entry)?));
        } else if kind.is_pax_local_extensions() {
            self.take_pax(&read_extension(entry)?)?;
        } else if !kind.is_pax_global_extensions() {
            return Ok(false);
        }
        Ok(true)
    }

    fn take_pax(&mut self, records: &[u8]) -> Result<(), UnpackError> {
        for record in tar::PaxExtensions::new(records) {
            let record = record.map_err(UnpackError::Read)?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let size = record.value().ok().and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or(UnpackError::Malformed("a size is no number"))?);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(UnpackError::Malformed("sparse files are not supported"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn read_extension(entry: &mut impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    entry.take(LONGEST_EXTENSION + 1).read_to_end(&mut bytes).map_err(UnpackError::Read)?;
    if bytes.len() as u64 > LONGEST_EXTENSION {
        return Err(UnpackError::Malformed("a name is longer than 64 KiB"));
    }
    Ok(bytes)
}

fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use tar::{Builder, Header};

    use super::*;

    fn header(name: &[u8], kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        // Written directly: the crate's own setters refuse hostile names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn file(name: &str, contents: &[u8]) -> (Header, Vec<u8>) {
        (header(name.as_bytes(), EntryType::Regular, contents.len() as u64), contents.to_vec())
    }

    fn link(name: &str, kind: EntryType, target: &str) -> (Header, Vec<u8>) {
        let mut header = header(name.as_bytes(), kind, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        (header, Vec::new())
    }

    fn archive(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (header, contents) in entries {
            builder.append(header, &contents[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack(bytes: &[u8], limits: Limits) -> (tempfile::TempDir, Result<(), UnpackError>) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut tree = Tree::open(&root, limits).unwrap();
        let result = unpack_tar(bytes, &mut tree, &|path| Some(path.to_owned()));
        let outside = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(outside, 1, "something was written outside");
        (folder, result)
    }

    fn unpacked(entries: &[(Header, Vec<u8>)]) -> (tempfile::TempDir, Result<(), UnpackError>) {
        unpack(&archive(entries), Limits::default())
    }

    #[test]
    fn an_ordinary_archive() {
        let mut builder = Builder::new(Vec::new());
        let long = "d/".repeat(60) + &"n".repeat(120);
        builder.append_data(&mut header(b"", EntryType::Regular, 4), &long, &b"long"[..]).unwrap();
        builder.append(&header(b"./", EntryType::Directory, 0), &b""[..]).unwrap();
        builder.append_link(&mut header(b"", EntryType::Symlink, 0), "s", &long).unwrap();
        builder.append_pax_extensions([("path", &b"paxed"[..])]).unwrap();
        builder.append(&header(b"other", EntryType::Regular, 3), &b"pax"[..]).unwrap();
        let (header, contents) = link("h", EntryType::Link, "./paxed");
        builder.append(&header, &contents[..]).unwrap();
        let (folder, result) = unpack(&builder.into_inner().unwrap(), Limits::default());
        result.unwrap();
        let root = folder.path().join("root");
        assert_eq!(fs::read(root.join(&long)).unwrap(), b"long");
        assert_eq!(fs::read(root.join("s")).unwrap(), b"long");
        assert_eq!(fs::read(root.join("h")).unwrap(), b"pax");
        assert!(!root.join("other").exists());
    }

    #[test]
    fn names_and_links_that_lead_out_are_refused() {
        let absolute = format!("/tmp/casemate-escape-{}", std::process::id());
        for name in ["../escape", "a/../../escape", &absolute] {
            let (_folder, result) = unpacked(&[file(name, b"x")]);
            assert!(matches!(result, Err(UnpackError::Path(_))), "{name}");
        }
        assert!(!Path::new(&absolute).exists());
        let (_folder, result) = unpacked(&[link("l", EntryType::Symlink, "../.."), file("l/escape", b"x")]);
        assert!(matches!(result, Err(UnpackError::Link { .. })));
        let (_folder, result) = unpacked(&[link("l", EntryType::Link, "../../etc/passwd")]);
        assert!(matches!(result, Err(UnpackError::Path(_))));
        // A link within the root is fine, writing through it is not.
        let (folder, result) =
            unpacked(&[file("d/f", b"old"), link("l", EntryType::Symlink, "d"), file("l/f", b"new")]);
        assert!(matches!(result, Err(UnpackError::Write { .. })));
        assert_eq!(fs::read(folder.path().join("root/d/f")).unwrap(), b"old");
    }

    #[test]
    fn what_is_neither_file_nor_folder_nor_link_is_refused() {
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse] {
            let (_folder, result) = unpacked(&[(header(b"x", kind, 0), Vec::new())]);
            assert!(result.is_err(), "{kind:?}");
        }
    }

    #[test]
    fn limits_hold_against_bombs() {
        let small = Limits { bytes: 10, entries: 4 };
        let (_folder, result) = unpack(&archive(&[file("a", &[0; 11])]), small);
        assert!(matches!(result, Err(UnpackError::TooLarge(_))));
        let many: Vec<_> = (0..5).map(|n| file(&format!("f{n}"), b"")).collect();
        let (_folder, result) = unpack(&archive(&many), small);
        assert!(matches!(result, Err(UnpackError::TooLarge(_))));
        let long_name = (header(b"././@LongLink", EntryType::GNULongName, 70_000), vec![b'a'; 70_000]);
        let (_folder, result) = unpacked(&[long_name]);
        assert!(matches!(result, Err(UnpackError::Malformed(_))));
    }

    #[test]
    fn a_truncated_archive_is_refused() {
        let whole = archive(&[file("a", &[1; 3000])]);
        for length in [100, 511, 513, 1000, 512 + 2999] {
            let (_folder, result) = unpack(&whole[..length], Limits::default());
            assert!(result.is_err(), "{length}");
        }
        let (_folder, result) = unpacked(&[(header(b"a", EntryType::Symlink, 0), Vec::new())]);
        assert!(result.is_err());
    }

    #[test]
    fn two_sizes_for_one_entry_are_refused() {
        let mut builder = Builder::new(Vec::new());
        builder.append_pax_extensions([("size", &b"1"[..])]).unwrap();
        builder.append(&header(b"a", EntryType::Regular, 3), &b"abc"[..]).unwrap();
        let (_folder, result) = unpack(&builder.into_inner().unwrap(), Limits::default());
        assert!(matches!(result, Err(UnpackError::Malformed(_))));
    }

    #[test]
    fn what_the_map_omits_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut tree = Tree::open(folder.path(), Limits::default()).unwrap();
        let bytes =
            archive(&[file("keep/a", b"1"), file("drop/b", b"2"), link("keep/c", EntryType::Link, "keep/a")]);
        let map = |path: &Path| path.strip_prefix("keep").ok().map(|rest| Path::new("to").join(rest));
        unpack_tar(&bytes[..], &mut tree, &map).unwrap();
        assert_eq!(fs::read(folder.path().join("to/c")).unwrap(), b"1");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_damaged_archive_never_writes_outside(
            position in 0usize..2048, value: u8, second in 0usize..2048, other: u8,
        ) {
            let mut bytes = archive(&[file("a/b", b"x"), link("l", EntryType::Symlink, "a"), file("c", b"y")]);
            let length = bytes.len();
            bytes[position % length] = value;
            bytes[second % length] = other;
            let _ = unpack(&bytes, Limits { bytes: 1 << 16, entries: 16 });
        }
    }
}
