//! Guest kernels: fetched, imported, listed, and the one that machines boot.

use super::{Registries, blocking};
use crate::{
    config::{Configuration, SeedFile},
    context::Context,
    embedded,
    error::Error,
    render::progress::Steps,
};
use casemate_image::kernel::{self, BuildRequest, Kernel, KernelBuildError, KernelError, Record, Source};
use casemate_machine::doctor::GuestKernel;
use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

/// How long a build that was interrupted may take to remove its files; what is left is removed by a later
/// command.
const BUILD_CLEANUP: Duration = Duration::from_secs(30);

/// The kernel that machines boot; fetched if there is none.
pub async fn guest(context: &Context, configuration: &Configuration) -> Result<GuestKernel, Error> {
    for file in &configuration.defaults.seed_files {
        seed_file(context, file).await?;
    }
    let registries = configuration.registries.clone();
    let kernel =
        with_store(context, move |home, steps| kernel::ensure(home, &registries, embedded::AGENT, steps));
    let kernel = kernel.await?;
    Ok(GuestKernel { id: kernel.id, kernel: kernel.vmlinux, initramfs: kernel.initramfs })
}

/// Fetches the newest kernel of the distribution.
pub async fn fetch(context: &Context, registries: &Registries) -> Result<Kernel, Error> {
    let registries = registries.clone();
    with_store(context, move |home, steps| kernel::fetch(home, &registries, embedded::AGENT, steps)).await
}

/// Takes a kernel of the user's own.
pub async fn import(context: &Context, image: PathBuf, modules: Option<PathBuf>) -> Result<Kernel, Error> {
    with_store(context, move |home, steps| {
        kernel::import(home, &image, modules.as_deref(), embedded::AGENT, steps)
    })
    .await
}

/// Builds a kernel of casemate's own, or finds it built. Dropped, it ends the build.
pub async fn build(
    context: &Context,
    registries: &Registries,
    jobs: Option<NonZeroUsize>,
) -> Result<Kernel, Error> {
    let (home, steps) = (context.home.path().to_owned(), Steps::new(context.screen));
    let registries = registries.clone();
    let jobs = jobs.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let (building, stop, at_end) = Building::new();
    let built = blocking(move || {
        let result =
            kernel::build(&home, &registries, &BuildRequest { jobs, stop: &stop }, embedded::AGENT, &steps);
        drop(steps);
        drop(at_end);
        result
    });
    let result = built.await;
    drop(building);
    result?.map_err(build_error)
}

/// A build on its way. Dropped, it tells it to stop and waits until its files are gone.
struct Building {
    stop: Arc<AtomicBool>,
    ended: mpsc::Receiver<()>,
}

impl Building {
    /// With the flag that it sets, and what the work drops at its end.
    fn new() -> (Self, Arc<AtomicBool>, mpsc::Sender<()>) {
        let stop = Arc::new(AtomicBool::new(false));
        let (at_end, ended) = mpsc::channel();
        (Self { stop: stop.clone(), ended }, stop, at_end)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Nothing is ever sent: the other end goes, or time is up.
        let _ = self.ended.recv_timeout(BUILD_CLEANUP);
    }
}

fn build_error(error: KernelBuildError) -> Error {
    let error = match error {
        KernelBuildError::Kernel(error) => return error.into(),
        KernelBuildError::Home(error) => return error.into(),
        other => other,
    };
    let log = error.log().map(Path::to_owned);
    let failed = match &error {
        KernelBuildError::Debian(_) => {
            "check the network; machines boot the kernel of `casemate kernel fetch`"
        }
        KernelBuildError::Confine { .. } => "run as root, or allow unprivileged user namespaces",
        KernelBuildError::Io { .. } | KernelBuildError::Files(_) | KernelBuildError::Unpack(_) => {
            "make room: a build needs 2 GB in CASEMATE_HOME"
        }
        _ => "`casemate kernel fetch` takes one that is built already",
    };
    let error = Error::unavailable("no kernel was built").because(error).hint(failed);
    match log {
        Some(log) => error.log(&log),
        None => error,
    }
}

/// The kernels that are there, the one that machines boot first.
pub fn list(context: &Context) -> Result<Vec<Record>, Error> {
    Ok(kernel::list(context.home.path())?)
}

/// Where a kernel comes from, for people.
pub fn origin(source: &Source) -> String {
    match source {
        Source::Debian { package, version } => format!("{package} {version}"),
        Source::Built { package, version, .. } => format!("built from {package} {version}"),
        Source::Imported { image } => image.display().to_string(),
    }
}

async fn with_store(
    context: &Context,
    work: impl FnOnce(&Path, &Steps) -> Result<Kernel, KernelError> + Send + 'static,
) -> Result<Kernel, Error> {
    let (home, steps) = (context.home.path().to_owned(), Steps::new(context.screen));
    Ok(blocking(move || work(&home, &steps)).await??)
}

/// Does what can be done with a file that the seeds' configuration names, and says what cannot.
async fn seed_file(context: &Context, file: &SeedFile) -> Result<(), Error> {
    let (key, place, path) = (file.key, &file.place, &file.path);
    if key == "unikernel_dir" {
        let instead =
            "tools that ask for a unikernel are called in microVMs, which have kernels of their own";
        context.screen.warn(&format!("{place}: nothing is taken from {key} {}: {instead}", path.display()));
        return Ok(());
    }
    if !path.exists() {
        let instead = match key {
            "kernel_path" => "a kernel of casemate's own boots instead",
            _ => "each server runs from an image of its own instead",
        };
        context
            .screen
            .warn(&format!("{place}: {key} names {}, which does not exist; {instead}", path.display()));
        return Ok(());
    }
    if key != "kernel_path" {
        return Err(Error::unavailable(format!("{place}: {key} {} cannot be used yet", path.display()))
            .hint("remove the line: an image is built for each server"));
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let first = list(context)?.into_iter().next();
    if first.is_none_or(|record| record.source != Source::Imported { image: path.clone() }) {
        import(context, path, None).await?;
    }
    Ok(())
}
