//! Reads `Packages` indices, and keeps of each package the few fields that finding and fetching it take.

use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::path::Component;

use super::super::control::{Stanza, stanzas};
use super::version;

/// The fields that are kept.
const KEPT: &[&str] =
    &["Package", "Version", "Depends", "Pre-Depends", "Provides", "Filename", "Size", "SHA256"];
/// The longest line of an index.
const LONGEST_LINE: u64 = 1024 * 1024;
/// The largest decompressed index. Debian's is 50 MB.
const LARGEST_INDEX: u64 = 512 * 1024 * 1024;

/// The packages of some indices.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The kept fields of all packages, a few hundred bytes each.
    text: String,
    by_name: HashMap<String, Vec<Slot>>,
    providers: HashMap<String, Vec<String>>,
}

/// Where a package stands in the text, and the number of the index that it came from.
#[derive(Debug, Clone, Copy)]
struct Slot {
    start: usize,
    end: usize,
    origin: usize,
}

/// A package as an index lists it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed<'a> {
    stanza: Stanza<'a>,
    /// The number of the index that lists it.
    pub origin: usize,
}

impl Index {
    /// Adds the packages of a decompressed index. `origin` is given back with each of them.
    pub fn add(&mut self, reader: impl Read, origin: usize) -> io::Result<()> {
        let mut lines = io::BufReader::with_capacity(128 * 1024, reader.take(LARGEST_INDEX));
        let mut line = Vec::new();
        let mut start = self.text.len();
        let mut keeps_line = false;
        loop {
            line.clear();
            let count = lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
            if count as u64 == LONGEST_LINE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of the index is too long"));
            }
            if line.trim_ascii().is_empty() {
                self.end_stanza(start, origin);
                start = self.text.len();
                if count == 0 {
                    return Ok(());
                }
                continue;
            }
            if !line.starts_with(b" ") {
                keeps_line = is_kept(&line);
            }
            if keeps_line {
                self.text.push_str(&String::from_utf8_lossy(&line));
            }
        }
    }

    fn end_stanza(&mut self, start: usize, origin: usize) {
        let end = self.text.len();
        let stanza = Stanza::new(&self.text[start..end]);
        let Some(name) = stanza.field("Package").filter(|name| is_package_name(name)) else {
            self.text.truncate(start);
            return;
        };
        let name = name.to_owned();
        let provided: Vec<String> = alternatives(stanza.field("Provides")).flatten().collect();
        for virtual_name in provided {
            self.providers.entry(virtual_name).or_default().push(name.clone());
        }
        self.by_name.entry(name).or_default().push(Slot { start, end, origin });
    }

    /// The newest version of a package.
    pub fn newest(&self, name: &str) -> Option<Listed<'_>> {
        let listed = self.by_name.get(name)?.iter().map(|slot| self.listed(slot));
        listed.max_by(|a, b| version::compare(a.version(), b.version()))
    }

    /// The names of the packages that provide the virtual package `name`, in alphabetical order.
    pub fn providers(&self, name: &str) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.providers.get(name).into_iter().flatten().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn listed(&self, slot: &Slot) -> Listed<'_> {
        Listed { stanza: Stanza::new(&self.text[slot.start..slot.end]), origin: slot.origin }
    }
}

impl<'a> Listed<'a> {
    /// The version; empty if the index states none.
    pub fn version(&self) -> &'a str {
        self.stanza.field("Version").unwrap_or_default()
    }

    /// The path of the `.deb` in the archive, if it is one that stays within the archive.
    pub fn filename(&self) -> Option<&'a str> {
        let name = self.stanza.field("Filename")?;
        let harmless = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\\".contains(&byte));
        let inside = std::path::Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        (harmless && inside && !name.is_empty()).then_some(name)
    }

    /// The size of the `.deb` in bytes.
    pub fn size(&self) -> Option<u64> {
        self.stanza.field("Size")?.parse().ok()
    }

    /// The SHA-256 of the `.deb`, in hexadecimal.
    pub fn sha256(&self) -> Option<&'a str> {
        self.stanza.field("SHA256").filter(|hex| hex.len() == 64)
    }

    /// What it needs, each as its alternatives; version constraints and architectures left out.
    pub fn depends(&self) -> Vec<Vec<String>> {
        let fields = [self.stanza.field("Pre-Depends"), self.stanza.field("Depends")];
        fields.into_iter().flat_map(alternatives).collect()
    }
}

fn is_kept(line: &[u8]) -> bool {
    KEPT.iter().any(|name| {
        line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
    })
}

/// Debian Policy 5.6.1, and short enough for a file's name.
fn is_package_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    (2..=128).contains(&name.len())
        && name.bytes().all(allowed)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// The relations of a field (Debian Policy 7.1): `a (>= 1) | b:any, c [amd64]`.
fn alternatives(field: Option<&str>) -> impl Iterator<Item = Vec<String>> {
    let relations = field.unwrap_or_default().split(',');
    relations
        .map(|relation| {
            let names = relation.split('|').map(|one| {
                let name = one.split(['(', '[', '<']).next().unwrap_or_default().trim();
                name.split(':').next().unwrap_or_default()
            });
            names.filter(|name| is_package_name(name)).map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|names| !names.is_empty())
}

/// The text of the only stanza of `text`, or an empty one.
pub(super) fn first_stanza(text: &str) -> Stanza<'_> {
    stanzas(text).next().unwrap_or(Stanza::new(""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "Package: aa\nVersion: 1.9\nDescription: x\n long\nDepends: bb (>= 2) | cc:any,\n dd [amd64]\n\
        Filename: pool/a.deb\nSize: 7\nSHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\n\
        Package: aa\nVersion: 1.10\nFilename: ../a.deb\nSize: x\n\n\
        Package: zz\nVersion: 1\nProvides: vv (= 1), ww\n\nPackage: yy\nProvides: vv";

    #[test]
    fn newest_wins_and_fields_are_checked() {
        let mut index = Index::default();
        index.add(TEXT.as_bytes(), 0).unwrap();
        index.add(&b"Package: aa\nVersion: 1.9.1\n\n"[..], 1).unwrap();
        let newest = index.newest("aa").unwrap();
        assert_eq!((newest.version(), newest.origin), ("1.10", 0));
        assert_eq!((newest.filename(), newest.size(), newest.sha256()), (None, None, None));
        assert_eq!(index.providers("vv"), ["yy", "zz"]);
        assert!(index.newest("bb").is_none());
        let oldest = index.listed(&index.by_name["aa"][0]);
        assert_eq!(oldest.filename(), Some("pool/a.deb"));
        assert_eq!(oldest.size(), Some(7));
        assert_eq!(oldest.depends(), [vec!["bb".to_owned(), "cc".to_owned()], vec!["dd".to_owned()]]);
        assert!(!index.text.contains("Description") && !index.text.contains("long"));
    }

    #[test]
    fn file_names_that_lead_elsewhere_are_refused() {
        for name in ["/pool/a", "pool/../../a", "a b", "a?x", "a#x", "%2e%2e/a", "./a", "", "a\\b"] {
            let text = format!("Filename: {name}\n");
            let listed = Listed { stanza: Stanza::new(&text), origin: 0 };
            assert_eq!(listed.filename(), None, "{name}");
        }
    }

    #[test]
    fn an_endless_line_is_an_error() {
        let endless = io::repeat(b'x').take(3 * LONGEST_LINE);
        assert!(Index::default().add(endless, 0).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Index::default().add(&bytes[..], 0);
        }

        #[test]
        fn any_index_is_survived(text in "(Package|Depends|Version|Size)?[: ]?[a(|,)\n .-]{0,40}") {
            let mut index = Index::default();
            index.add(text.as_bytes(), 0).unwrap();
            for name in index.by_name.keys() {
                let listed = index.newest(name).unwrap();
                let _ = (listed.depends(), listed.filename(), listed.size());
            }
        }
    }
}
