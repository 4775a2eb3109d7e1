//! The compiler and the tools of the kernel's makefiles, from Debian.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{BuildRequest, KernelBuildError, failed, make};
use crate::archive::{Limits, Tree};
use crate::registry::debian::{self, Archive, Package};
use crate::runtime;

/// What the makefiles run and what their programs are compiled against.
const PACKAGES: [&str; 16] = [
    "gcc",
    "binutils",
    "libc6-dev",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "grep",
    "mawk",
    "sed",
    "perl-base",
];

/// What some of them depend on for uses that the kernel has not: package scripts, sanitizers, RPC.
const EXCLUDED: [&str; 13] = [
    "debconf",
    "dpkg",
    "debianutils",
    "libasan8",
    "libitm1",
    "liblsan0",
    "libtsan2",
    "libubsan1",
    "libquadmath0",
    "libnsl-dev",
    "libtirpc-dev",
    "rpcsvc-proto",
    "libfl-dev",
];

/// Folders that no build reads.
const UNWANTED: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/lib/x86_64-linux-gnu/gconv",
    // Links to `usr/bin` in a root.
    "usr/sbin",
];

/// The packages, with what they depend on.
pub(super) fn packages(archive: &Archive) -> Result<Vec<Package>, KernelBuildError> {
    Ok(archive.resolve(&PACKAGES, &EXCLUDED)?)
}

/// Unpacks them into the build's root. Their scripts are not run: what those would link is linked here.
pub(super) fn unpack(
    debs: &[PathBuf],
    root: &Path,
    request: &BuildRequest<'_>,
) -> Result<(), KernelBuildError> {
    runtime::skeleton(root)?;
    let mut tree = Tree::open(root, Limits::default()).map_err(KernelBuildError::Unpack)?;
    let map = |path: &Path| -> Option<PathBuf> {
        let path = debian::merged_usr(path)?;
        let is_unwanted = UNWANTED.iter().any(|folder| path.starts_with(folder));
        // The skeleton has a file of its own for what packages have here.
        (!is_unwanted && path.starts_with("usr")).then_some(path)
    };
    for deb in debs {
        request.check()?;
        debian::unpack(deb, &mut tree, &map)?;
    }
    for (link, target) in [("usr/bin/sh", "dash"), ("usr/bin/awk", "mawk")] {
        let link = root.join(link);
        if !link.exists() {
            symlink(target, &link).map_err(failed(&link))?;
        }
    }
    let out = root.join(make::OUT.trim_start_matches('/'));
    fs::create_dir_all(&out).map_err(failed(&out))
}
