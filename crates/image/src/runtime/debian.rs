//! The parts of Debian that a runtime stands on: the libraries, without documentation, locales and headers.

use std::path::{Path, PathBuf};

use super::pin::{HexDigest, Pin, Pins};
use crate::archive::Tree;
use crate::build::{BuildError, Context};
use crate::registry::debian::{self, Archive, Package, Suite};

/// Folders that nothing reads at run time.
const UNWANTED: [&str; 14] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/info",
    "usr/share/gcc",
    "usr/share/gdb",
    "usr/share/applications",
    "usr/share/pixmaps",
    "usr/share/binfmts",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/audit",
    "etc/ld.so.conf.d",
];

/// Opens the release that userland comes from.
pub(crate) fn archive(context: &Context<'_>) -> Result<Archive, BuildError> {
    context.progress.step("reading Debian's package index");
    let home = context.store.home();
    Ok(Archive::open(&context.http, context.registries, Suite::Trixie, home, context.progress)?)
}

/// Pins packages of the archive.
pub(crate) fn pins(packages: impl IntoIterator<Item = Package>) -> Pins {
    let pin = |package: Package| Pin {
        name: package.name,
        version: package.version,
        url: package.url,
        digest: HexDigest(package.digest),
    };
    Pins(packages.into_iter().map(pin).collect())
}

/// Unpacks what `map` takes of a package, to where it says.
pub(crate) fn unpack_to(
    deb: &Path,
    tree: &mut Tree,
    map: &dyn Fn(&Path) -> Option<PathBuf>,
) -> Result<(), BuildError> {
    debian::unpack(deb, tree, &|path| map(&debian::merged_usr(path)?)).map_err(Into::into)
}

/// Unpacks a package into a root, but for what no image needs.
pub(crate) fn unpack(
    pin: &Pin,
    deb: &Path,
    tree: &mut Tree,
    wanted: &dyn Fn(&Path) -> bool,
) -> Result<(), BuildError> {
    let is_locale_data = pin.name == "libc-bin";
    let map = |path: &Path| -> Option<PathBuf> {
        let path = debian::merged_usr(path)?;
        let is_wanted = if is_locale_data {
            // Of this package's programs and tables only the locale that every image speaks.
            path.starts_with("usr/lib/locale/C.utf8")
        } else {
            !UNWANTED.iter().any(|folder| path.starts_with(folder)) && wanted(&path)
        };
        is_wanted.then_some(path)
    };
    debian::unpack(deb, tree, &map).map_err(Into::into)
}
