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
                    None => return Err(UnpackError::Link { path: mapped, target: existing.display().to_string() }),
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
