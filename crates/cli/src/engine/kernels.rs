//! Guest kernels: fetched, imported, listed, and the one that machines boot.

use super::{Registries, blocking};
use crate::{
    config::{Configuration, SeedFile},
    context::Context,
    embedded,
    error::Error,
    render::progress::Steps,
};
use casemate_image::kernel::{self, Kernel, KernelError, Record, Source};
use casemate_machine::doctor::GuestKernel;
use std::path::{Path, PathBuf};

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

/// The kernels that are there, the one that machines boot first.
pub fn list(context: &Context) -> Result<Vec<Record>, Error> {
    Ok(kernel::list(context.home.path())?)
}

/// Where a kernel comes from, for people.
pub fn origin(source: &Source) -> String {
    match source {
        Source::Debian { package, version } => format!("{package} {version}"),
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
