//! A kernel of casemate's own: Debian's source, a small configuration, Debian's compiler, behind a wall.
//!
//! ```text
//! Debian: compiler and tools ──> root, read-only ─┐
//!         linux-source ─────────> /usr/src/linux ─┼─ confined: make allnoconfig ──> checked ──> make vmlinux
//! kernel.config ────────────────> /build ─────────┘
//! ```
//!
//! Nothing of it needs to be on the host, and the host's compiler does not matter. What is built has no
//! modules: everything that a machine needs is in it. It takes some minutes of all processors, 1.5 GB of disk
//! meanwhile, and is done once for each version of source and configuration.

mod config;
mod make;
mod source;
mod tools;

use std::fs::{self, File, TryLockError};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::store::{self, Store};
use super::{ImageError, Kernel, KernelError, Record, Source, bzimage, modules::Selection, obtain};
use crate::archive::UnpackError;
use crate::confine::ConfineError;
use crate::files::FilesError;
use crate::lock;
use crate::partial::PartialDir;
use crate::progress::Progress;
use crate::registry::address::Registries;
use crate::registry::debian::{Archive, DebianError, Package, Suite};
use crate::registry::http::Http;
use crate::store::{BuildLog, Store as ImageStore, StoreError};

/// The release that source and compiler come from. With the same configuration its 6.1 takes 0.63 s of a host
/// processor to boot in emulation, the next release's 6.12 takes 0.69 s; Debian's own 6.1 takes 1.40 s.
const SUITE: Suite = Suite::Bookworm;
/// The package that holds the source.
const SOURCE_PACKAGE: &str = "linux-source-6.1";
/// What the kernel has.
const CONFIG: &str = include_str!("build/kernel.config");

/// How a kernel is to be built.
#[derive(Debug)]
pub struct BuildRequest<'a> {
    /// How many compilers run at once.
    pub jobs: NonZeroUsize,
    /// Once it is set, the build ends soon, with [`KernelBuildError::Stopped`], and leaves nothing.
    pub stop: &'a AtomicBool,
}

/// Why no kernel was built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelBuildError {
    /// Source or tools could not be had.
    #[error("cannot get the kernel's source and compiler from Debian's archive")]
    Debian(#[from] DebianError),
    /// The source package holds something else.
    #[error("Debian's package {package} holds no kernel source")]
    NoSource {
        /// The package's name.
        package: String,
    },
    /// The source could not be unpacked.
    #[error("cannot unpack the kernel's source")]
    Unpack(#[source] UnpackError),
    /// The source's rules gave another configuration than was asked for.
    #[error("the kernel's source does not give the configuration: {}", .0.join(", "))]
    Configuration(Vec<String>),
    /// The build could not be walled in.
    #[error("cannot run the kernel's build")]
    Confine {
        /// The reason.
        #[source]
        source: ConfineError,
        /// What it said.
        log: PathBuf,
    },
    /// The build failed.
    #[error("{step} failed with {ending}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// How it ended.
        ending: String,
        /// What it said.
        log: PathBuf,
    },
    /// What was built is no kernel.
    #[error("what was built cannot be booted")]
    Image(#[source] ImageError),
    /// It was told to stop.
    #[error("the build was stopped")]
    Stopped,
    /// Files could not be written.
    #[error("cannot use {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Files could not be handed over to the build.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The home folder cannot hold a log.
    #[error(transparent)]
    Home(#[from] StoreError),
    /// The store of kernels cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl KernelBuildError {
    /// Where more is written.
    pub fn log(&self) -> Option<&Path> {
        match self {
            Self::Confine { log, .. } | Self::Failed { log, .. } => Some(log),
            _ => None,
        }
    }
}

/// Builds the kernel, unless it is stored already. Afterwards it is the one that [`super::ensure`] gives.
///
/// The calling thread must live until this returns: the build ends with it. One build runs at a time in a
/// home; other callers wait, and then find it built.
pub fn build(
    home: &Path,
    registries: &Registries,
    request: &BuildRequest<'_>,
    agent: &[u8],
    progress: &dyn Progress,
) -> Result<Kernel, KernelBuildError> {
    let archive = Archive::open(&Http::new(), registries, SUITE, home, progress)?;
    let package = archive.package(SOURCE_PACKAGE)?;
    let source = Source::Built {
        package: package.name.clone(),
        version: package.version.clone(),
        configuration: config::digest(CONFIG),
    };
    let _one_at_a_time = wait_for_others(home, request, progress)?;
    if let Some(record) = stored(home, &source)? {
        let store = Store::lock(home, progress)?;
        return Ok(store.complete(&store.renew(record)?, agent)?);
    }
    let vmlinux = compile(home, &archive, &package, request, progress)?;
    request.check()?;
    let (version, vmlinux) = obtain::parse_kernel(vmlinux).map_err(KernelBuildError::Image)?;
    let store = Store::lock(home, progress)?;
    let record = store.add(&version, &vmlinux, &Selection::default(), source)?;
    progress.step("building the initramfs");
    Ok(store.complete(&record, agent)?)
}

fn stored(home: &Path, source: &Source) -> Result<Option<Record>, KernelBuildError> {
    Ok(store::list(home)?.into_iter().find(|record| record.source == *source))
}

/// Runs the whole build in a folder that is removed at the end, and returns the ELF file.
fn compile(
    home: &Path,
    archive: &Archive,
    package: &Package,
    request: &BuildRequest<'_>,
    progress: &dyn Progress,
) -> Result<Vec<u8>, KernelBuildError> {
    let tools = tools::packages(archive)?;
    let mut debs = Vec::new();
    for package in tools.iter().chain([package]) {
        request.check()?;
        progress.step(&format!("fetching {} {}", package.name, package.version));
        debs.push(archive.fetch(package, progress)?);
    }
    let image_store = ImageStore::open(home)?;
    let log =
        BuildLog::new(&image_store, format!("building a kernel from {} {}", package.name, package.version));
    // Where what a killed build leaves is removed by the next command that uses an image.
    let work = image_store.cache("work")?;
    let scratch = PartialDir::inside(&work).map_err(failed(&work))?;
    let (root, out) = (scratch.path().join("root"), scratch.path().join("out"));
    for folder in [&root, &out] {
        fs::create_dir(folder).map_err(failed(folder))?;
    }
    let (source, tools) = debs.split_last().ok_or(KernelBuildError::Stopped)?;
    progress.step("unpacking the compiler");
    tools::unpack(tools, &root, request)?;
    progress.step("unpacking the kernel's source");
    source::unpack(source, package, scratch.path(), &root, request)?;
    fs::write(out.join(make::FRAGMENT), CONFIG).map_err(failed(&out))?;
    let make = make::Make { root: &root, out: &out, request, log: &log, progress };
    progress.step("configuring the kernel");
    make.run("configuring the kernel", &make::configure())?;
    config::check(CONFIG, &make.read(make::CONFIGURATION, make::LARGEST_CONFIGURATION)?)
        .map_err(KernelBuildError::Configuration)?;
    progress.step("compiling the kernel");
    make.run("compiling the kernel", &make::compile(request.jobs))?;
    let mut vmlinux = make.read(make::KERNEL, bzimage::LARGEST as u64)?;
    vmlinux.shrink_to_fit();
    Ok(vmlinux)
}

impl BuildRequest<'_> {
    /// An error if the build is to stop.
    fn check(&self) -> Result<(), KernelBuildError> {
        if self.is_stopped() { Err(KernelBuildError::Stopped) } else { Ok(()) }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn wait_for_others(
    home: &Path,
    request: &BuildRequest<'_>,
    progress: &dyn Progress,
) -> Result<File, KernelBuildError> {
    const LOOK_AGAIN: Duration = Duration::from_millis(200);
    // Longer than a compiler may take.
    const PATIENCE: Duration = Duration::from_secs(5 * 3600);
    let folder = home.join("cache/locks");
    fs::create_dir_all(&folder).map_err(failed(&folder))?;
    let path = folder.join("kernel-build.lock");
    let lock = File::options().create(true).append(true).open(&path).map_err(failed(&path))?;
    let (mut has_said, until) = (false, Instant::now() + PATIENCE);
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(failed(&path)(source)),
        }
        if !has_said {
            progress.step("waiting for another casemate that is building a kernel");
            has_said = true;
        }
        request.check()?;
        if Instant::now() >= until {
            return Err(failed(&path)(lock::held(&lock, PATIENCE)));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> KernelBuildError {
    let path = path.to_owned();
    move |source| KernelBuildError::Io { path, source }
}
