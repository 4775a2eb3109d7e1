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
