//! Unpacks Debian packages (`deb(5)`): an ar archive that holds, among others, `data.tar.*`.

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::{Compression, Tree, UnpackError, decoder, unpack_tar};

/// Unpacks the files of the package `deb` into `tree`; for `map` see [`unpack_tar`].
pub fn unpack_deb(
    deb: impl Read,
    tree: &mut Tree,
    map: &dyn Fn(&Path) -> Option<PathBuf>,
) -> Result<(), UnpackError> {
    let mut archive = ar::Archive::new(deb);
    let mut is_first = true;
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(UnpackError::Read)?;
        let name = member.header().identifier().to_vec();
        if is_first && name != b"debian-binary" {
            return Err(UnpackError::Malformed("it is no Debian package"));
        }
        is_first = false;
        let compression = match name.as_slice() {
            b"data.tar" => Compression::None,
            b"data.tar.gz" => Compression::Gzip,
            b"data.tar.xz" => Compression::Xz,
            b"data.tar.zst" => Compression::Zstd,
            _ => continue,
        };
        let data = decoder(compression, BufReader::new(member)).map_err(UnpackError::Read)?;
        return unpack_tar(data, tree, map);
    }
    Err(UnpackError::Malformed("the package holds no data.tar"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::archive::Limits;

    fn data() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o755);
        builder.append_data(&mut header, "./usr/bin/x", &b"hi"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    fn deb(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = ar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let header = ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64);
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack(deb: &[u8]) -> (tempfile::TempDir, Result<(), UnpackError>) {
        let folder = tempfile::tempdir().unwrap();
        let mut tree = Tree::open(folder.path(), Limits { bytes: 1 << 20, entries: 100 }).unwrap();
        let result = unpack_deb(deb, &mut tree, &|path| Some(path.to_owned()));
        (folder, result)
    }

    #[test]
    fn each_compression_of_data_is_unpacked() {
        let zst = zstd::encode_all(&data()[..], 1).unwrap();
        for (name, bytes) in [("data.tar", data()), ("data.tar.zst", zst)] {
            let deb = deb(&[("debian-binary", b"2.0\n"), ("control.tar", b"ignored"), (name, &bytes)]);
            let (folder, result) = unpack(&deb);
            result.unwrap();
            assert_eq!(fs::read(folder.path().join("usr/bin/x")).unwrap(), b"hi");
        }
    }

    #[test]
    fn what_is_no_package_is_refused() {
        let whole = deb(&[("debian-binary", b"2.0\n"), ("data.tar", &data())]);
        for length in [0, 4, 8, 40, 80, 300, 700] {
            assert!(unpack(&whole[..length]).1.is_err(), "{length}");
        }
        assert!(matches!(unpack(&deb(&[("other", b"")])).1, Err(UnpackError::Malformed(_))));
        assert!(matches!(unpack(&deb(&[("debian-binary", b"2.0\n")])).1, Err(UnpackError::Malformed(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_damaged_package_is_survived(position in 0usize..200, value: u8) {
            let mut bytes = deb(&[("debian-binary", b"2.0\n"), ("data.tar", &data())]);
            bytes[position] = value;
            let _ = unpack(&bytes);
        }
    }
}
