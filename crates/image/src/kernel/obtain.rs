//! How kernels get into the store.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::elf::Vmlinux;
use super::modules::{self, Selection};
use super::store::{self, Store};
use super::{ImageError, Kernel, KernelError, Source, bzimage};
use crate::archive::{Limits, Tree};
use crate::progress::Progress;
use crate::registry::address::Registries;
use crate::registry::debian::{Archive, DebianError, Package, Suite, unpack};
use crate::registry::http::Http;

/// The package that always depends on the newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A usable kernel with an initramfs for this agent: the one obtained last; if there is none, Debian's.
///
/// Cheap when everything is there. May be called by several processes at once.
pub fn ensure(
    home: &Path,
    registries: &Registries,
    agent: &[u8],
    progress: &dyn Progress,
) -> Result<Kernel, KernelError> {
    if let Some(kernel) = store::ready(home, agent)? {
        return Ok(kernel);
    }
    let store = Store::lock(home, progress)?;
    match store::list(home)?.first() {
        Some(record) => {
            progress.step("building the initramfs");
            store.complete(record, agent)
        }
        None => fetch_into(&store, home, registries, agent, progress),
    }
}

/// Fetches the newest kernel of Debian for virtual machines, unless it is stored already.
///
/// Afterwards it is the one that [`ensure`] gives.
pub fn fetch(
    home: &Path,
    registries: &Registries,
    agent: &[u8],
    progress: &dyn Progress,
) -> Result<Kernel, KernelError> {
    let store = Store::lock(home, progress)?;
    fetch_into(&store, home, registries, agent, progress)
}

/// Takes a user's own kernel: a `vmlinux` or a bzImage, and the folder of its modules.
///
/// The folder is searched for modules by name, at any depth, compressed or not. Without one, whatever a
/// machine needs has to be built in. Afterwards this kernel is the one that [`ensure`] gives.
pub fn import(
    home: &Path,
    image: &Path,
    modules: Option<&Path>,
    agent: &[u8],
    progress: &dyn Progress,
) -> Result<Kernel, KernelError> {
    let store = Store::lock(home, progress)?;
    let image = std::path::absolute(image)
        .map_err(|source| KernelError::Image { path: image.to_owned(), source: ImageError::Read(source) })?;
    store_kernel(&store, &image, modules, Source::Imported { image: image.clone() }, agent, progress)
}

fn fetch_into(
    store: &Store,
    home: &Path,
    registries: &Registries,
    agent: &[u8],
    progress: &dyn Progress,
) -> Result<Kernel, KernelError> {
    let archive = Archive::open(&Http::new(), registries, Suite::Bookworm, home, progress)?;
    let package = kernel_package(&archive)?;
    let source = Source::Debian { package: package.name.clone(), version: package.version.clone() };
    if let Some(record) = store::list(home)?.into_iter().find(|record| record.source == source) {
        return store.complete(&store.renew(record)?, agent);
    }
    progress.step(&format!("fetching {} {}", package.name, package.version));
    let deb = archive.fetch(&package, progress)?;
    progress.step("unpacking the kernel");
    let scratch = store.scratch()?;
    unpack_kernel(&deb, scratch.path())?;
    let found = find_image(&scratch.path().join("boot"));
    let image = found.ok_or(KernelError::Package { package: package.name.clone(), what: "boot/vmlinuz" })?;
    let modules = scratch.path().join("modules");
    store_kernel(store, &image, Some(&modules), source, agent, progress)
}

/// The package that the meta package depends on, such as `linux-image-6.1.0-1-cloud-amd64`.
fn kernel_package(archive: &Archive) -> Result<Package, KernelError> {
    let meta = archive.package(META_PACKAGE)?;
    let is_kernel = |name: &&String| name.starts_with("linux-image-") && name.ends_with("-cloud-amd64");
    let name = meta.depends.iter().flatten().find(is_kernel);
    let none = || KernelError::Package { package: meta.name.clone(), what: "dependency on a kernel" };
    Ok(archive.package(name.ok_or_else(none)?)?)
}

/// Unpacks `boot/vmlinuz-*` and the modules, which go to `modules/`.
fn unpack_kernel(deb: &Path, into: &Path) -> Result<(), DebianError> {
    let place = |path: &Path| -> Option<PathBuf> {
        let path = path.strip_prefix("usr").unwrap_or(path);
        if let Ok(module) = path.strip_prefix("lib/modules") {
            return Some(Path::new("modules").join(module));
        }
        let is_image = path.to_str().is_some_and(|path| path.starts_with("boot/vmlinuz-"));
        is_image.then(|| path.to_owned())
    };
    let mut tree = Tree::open(into, Limits::default())
        .map_err(|source| DebianError::Unpack { deb: deb.to_owned(), source: Box::new(source) })?;
    unpack(deb, &mut tree, &place)
}

fn find_image(boot: &Path) -> Option<PathBuf> {
    fs::read_dir(boot).ok()?.flatten().map(|entry| entry.path()).find(|path| path.is_file())
}

fn store_kernel(
    store: &Store,
    image: &Path,
    modules: Option<&Path>,
    source: Source,
    agent: &[u8],
    progress: &dyn Progress,
) -> Result<Kernel, KernelError> {
    progress.step("preparing the kernel");
    let (version, vmlinux) =
        read_kernel(image).map_err(|source| KernelError::Image { path: image.to_owned(), source })?;
    let selection = match modules {
        Some(folder) => modules::select(folder)
            .map_err(|source| KernelError::Modules { version: version.clone(), source })?,
        None => Selection::default(),
    };
    for (set, module) in &selection.unavailable {
        progress.note(&format!("kernel {version} has no module {module}: {set} will not be available"));
    }
    let record = store.add(&version, &vmlinux, &selection, source)?;
    progress.step("building the initramfs");
    store.complete(&record, agent)
}

/// The version of a kernel and the part of its `vmlinux` that boots.
fn read_kernel(image: &Path) -> Result<(String, Vec<u8>), ImageError> {
    let mut bytes = Vec::new();
    File::open(image)
        .and_then(|file| file.take(bzimage::LARGEST as u64 + 1).read_to_end(&mut bytes))
        .map_err(ImageError::Read)?;
    if bytes.len() > bzimage::LARGEST {
        return Err(ImageError::TooLarge { limit: bzimage::LARGEST });
    }
    if bzimage::is_bzimage(&bytes) {
        bytes = bzimage::vmlinux(&bytes)?;
    }
    parse_kernel(bytes)
}

/// The version of the ELF file `bytes` and the part of it that boots.
pub(super) fn parse_kernel(bytes: Vec<u8>) -> Result<(String, Vec<u8>), ImageError> {
    let kernel = Vmlinux::parse(&bytes)?;
    Ok((kernel.version().ok_or(ImageError::NoVersion)?, kernel.boot_part()))
}
