//! The source: what a build for x86-64 virtual machines reads of it.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::{BuildRequest, KernelBuildError, failed, make};
use crate::archive::{Compression, Limits, Tree, decoder, unpack_tar};
use crate::registry::debian::{self, Package};

/// Of what is below the first folder, a build reads the second ones; of the rest only the rules, which name
/// each other. An option that needs more shows itself by a missing file.
const PARTS: [(&str, &[&str]); 3] = [
    ("arch", &["x86"]),
    (
        "drivers",
        &[
            "acpi",
            "base",
            "block",
            "char",
            "clocksource",
            "pci",
            "pnp",
            "rtc",
            "tty",
            "virtio",
            "net/loopback.c",
        ],
    ),
    ("tools", &["arch", "build", "include", "lib", "objtool", "scripts"]),
];
/// Of these only the rules are read.
const UNREAD: [&str; 4] = ["Documentation", "include/dt-bindings", "samples", "sound"];

/// Unpacks the source of a `linux-source` package into the build's root.
pub(super) fn unpack(
    deb: &Path,
    package: &Package,
    scratch: &Path,
    root: &Path,
    request: &BuildRequest<'_>,
) -> Result<(), KernelBuildError> {
    let archive = format!("usr/src/{}.tar.xz", package.name);
    let packed = scratch.join("source.tar.xz");
    let mut tree = Tree::open(scratch, Limits::default()).map_err(KernelBuildError::Unpack)?;
    debian::unpack(deb, &mut tree, &|path| (path == Path::new(&archive)).then(|| "source.tar.xz".into()))?;
    let file = match File::open(&packed) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(KernelBuildError::NoSource { package: package.name.clone() });
        }
        opened => opened.map_err(failed(&packed))?,
    };
    let to = root.join(make::SOURCE.trim_start_matches('/'));
    fs::create_dir_all(&to).map_err(failed(&to))?;
    let mut tree = Tree::open(&to, Limits::default()).map_err(KernelBuildError::Unpack)?;
    let unpacked = decoder(Compression::Xz, BufReader::new(file))
        .map_err(crate::archive::UnpackError::Read)
        .and_then(|stream| unpack_tar(Stoppable { stream, request }, &mut tree, &wanted));
    request.check()?;
    unpacked.map_err(KernelBuildError::Unpack)?;
    fs::remove_file(&packed).map_err(failed(&packed))?;
    if to.join("Makefile").is_file() {
        return Ok(());
    }
    Err(KernelBuildError::NoSource { package: package.name.clone() })
}

/// Where a file of the archive goes: without the folder that holds everything, and if a build reads it.
fn wanted(path: &Path) -> Option<PathBuf> {
    let mut parts = path.iter();
    parts.next()?;
    let path = parts.as_path();
    if path.as_os_str().is_empty() {
        return None;
    }
    let is_part = PARTS.iter().all(|(whole, parts)| match path.strip_prefix(whole) {
        Ok(rest) => parts.iter().any(|part| rest.starts_with(part)),
        Err(_) => true,
    });
    let is_read = is_part && !UNREAD.iter().any(|folder| path.starts_with(folder));
    let is_rule = path
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("Kconfig") || name.starts_with("Makefile") || name == "Kbuild");
    (is_read || is_rule).then(|| path.to_owned())
}

/// Ends the stream when the build is to stop.
struct Stoppable<'a, R> {
    stream: R,
    request: &'a BuildRequest<'a>,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.request.is_stopped() {
            // Not `Interrupted`, after which readers try again.
            return Err(io::ErrorKind::Other.into());
        }
        self.stream.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_build_reads_is_taken_without_the_outer_folder() {
        let taken = |path: &str| wanted(&Path::new("linux-source-6.1").join(path));
        for path in [
            "Makefile",
            "arch/Kconfig",
            "arch/arm/crypto/Kconfig",
            "arch/x86/kernel/head_64.S",
            "drivers/gpu/drm/Kconfig",
            "drivers/net/Makefile",
            "drivers/net/loopback.c",
            "drivers/virtio/virtio_mmio.c",
            "Documentation/Kconfig",
            "mm/slub.c",
        ] {
            assert_eq!(taken(path), Some(PathBuf::from(path)), "{path}");
        }
        for path in ["", "arch/arm64/kernel/head.S", "drivers/gpu/drm/drm_file.c", "Documentation/index.rst"]
        {
            assert_eq!(taken(path), None, "{path}");
        }
    }
}
