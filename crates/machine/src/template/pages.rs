//! Guest memory as a file: copied without its zeros, and recognised by a digest.

use rustix::fs::SeekFrom;
use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

/// The size of a page of the guest, and of the host.
pub(crate) const PAGE: usize = 4096;

/// How much is read at once.
const CHUNK: usize = 32 * PAGE;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// Calls `visit` with the index and the bytes of every page of a sparse file that holds anything but zeros.
pub(crate) fn each_page(
    file: &File,
    bytes: u64,
    mut visit: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < bytes {
        let start = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(offset)) {
            Ok(start) => start / PAGE as u64 * PAGE as u64,
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(start.max(offset)))?.min(bytes);
        offset = start.max(offset);
        while offset < end {
            let length = CHUNK.min((end - offset).next_multiple_of(PAGE as u64) as usize);
            let length = length.min((bytes - offset) as usize);
            file.read_exact_at(&mut chunk[..length], offset)?;
            for (at, page) in chunk[..length].chunks(PAGE).enumerate() {
                if page != &ZEROS[..page.len()] {
                    visit(offset / PAGE as u64 + at as u64, page)?;
                }
            }
            offset += length as u64;
        }
    }
    Ok(())
}

/// Recognises pages, whatever holes the file has.
#[derive(Default)]
pub(crate) struct Digest(blake3::Hasher);

impl Digest {
    /// Adds a page; in the order of the indices.
    pub(crate) fn add(&mut self, index: u64, page: &[u8]) {
        self.0.update(&index.to_le_bytes());
        self.0.update(page);
    }

    /// The digest in hexadecimal.
    pub(crate) fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// Copies guest memory into an empty file and returns its digest and how many bytes are no zeros.
pub(crate) fn copy(memory: &File, bytes: u64, target: &File) -> io::Result<(String, u64)> {
    target.set_len(bytes)?;
    let (mut digest, mut run, mut first, mut copied) = (Digest::default(), Vec::with_capacity(CHUNK), 0, 0);
    let flush = |first: u64, run: &mut Vec<u8>| {
        let written = target.write_all_at(run, first * PAGE as u64);
        run.clear();
        written
    };
    each_page(memory, bytes, |index, page| {
        digest.add(index, page);
        copied += page.len() as u64;
        if !run.is_empty() && (index != first + (run.len() / PAGE) as u64 || run.len() >= CHUNK) {
            flush(first, &mut run)?;
        }
        if run.is_empty() {
            first = index;
        }
        run.extend_from_slice(page);
        Ok(())
    })?;
    flush(first, &mut run)?;
    Ok((digest.finish(), copied))
}

/// The digest of guest memory in a file.
pub(crate) fn digest(memory: &File, bytes: u64) -> io::Result<String> {
    let mut digest = Digest::default();
    each_page(memory, bytes, |index, page| {
        digest.add(index, page);
        Ok(())
    })?;
    Ok(digest.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sparse(bytes: u64, pages: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        for &(index, byte) in pages {
            file.write_all_at(&[byte; PAGE], index * PAGE as u64).unwrap();
        }
        file
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_copy_has_the_same_pages_and_the_same_digest(
            pages in proptest::collection::btree_map(0u64..2000, any::<u8>(), 0..40),
        ) {
            let pages: Vec<_> = pages.into_iter().collect();
            let bytes = 2000 * PAGE as u64;
            let (source, target) = (sparse(bytes, &pages), tempfile::tempfile().unwrap());
            let (copied, size) = copy(&source, bytes, &target).unwrap();
            let filled: Vec<_> = pages.into_iter().filter(|(_, byte)| *byte != 0).collect();
            prop_assert_eq!(size, filled.len() as u64 * PAGE as u64);
            prop_assert_eq!(&copied, &digest(&target, bytes).unwrap());
            let mut seen = Vec::new();
            each_page(&target, bytes, |index, page| {
                seen.push((index, page[0]));
                Ok(())
            }).unwrap();
            prop_assert_eq!(seen, filled);
        }
    }

    #[test]
    fn one_bit_changes_the_digest() {
        let bytes = 64 * PAGE as u64;
        let file = sparse(bytes, &[(1, 7), (40, 9)]);
        let before = digest(&file, bytes).unwrap();
        file.write_all_at(&[8], 40 * PAGE as u64 + 17).unwrap();
        assert_ne!(digest(&file, bytes).unwrap(), before);
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error() {
        let file = sparse(10 * PAGE as u64, &[(9, 1)]);
        file.set_len(9 * PAGE as u64 + 5).unwrap();
        assert!(each_page(&file, 10 * PAGE as u64, |_, _| Ok(())).is_err());
    }
}
