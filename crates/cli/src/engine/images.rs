//! Images: built, found again, listed, pruned.

use super::{Registries, Source, Target, blocking};
use crate::{context::Context, embedded, error::Error, render::progress::Steps};
use casemate_image::{
    build::{self, BuildRequest},
    folder,
    store::{Image, ImageMeta, Pruned, Store},
};
use casemate_machine::Registry;
use std::collections::BTreeSet;

/// What to build.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// From what.
    pub source: Source,
    /// The server's arguments.
    pub args: Vec<String>,
    /// What starts the server, if not the source's own program.
    pub command: Option<Vec<String>>,
    /// Packages may run code of theirs while they are installed.
    pub allow_scripts: bool,
    /// The registries are asked again.
    pub refresh: bool,
}

/// Builds an image, or finds it built. Its command is complete.
pub async fn build(context: &Context, registries: &Registries, wanted: Wanted) -> Result<Image, Error> {
    if wanted.allow_scripts {
        let message = "--allow-scripts is not built yet: packages' scripts are to run inside a machine, never on this host";
        return Err(Error::unavailable(message).hint("leave it out if the server works without"));
    }
    let (steps, registries) = (Steps::new(context.screen), registries.clone());
    let store = Store::open(context.home.path())?;
    let built = blocking(move || {
        let request = BuildRequest {
            source: wanted.source,
            args: wanted.args,
            command: wanted.command,
            allow_scripts: false,
            refresh: wanted.refresh,
            builtin: embedded::PROBE,
        };
        build::build(&store, &registries, &request, &steps)
    });
    Ok(built.await??)
}

/// The image of a target: the one that it was pinned to, else what its source gives now.
pub async fn of_target(
    context: &Context,
    registries: &Registries,
    target: &Target<'_>,
) -> Result<Image, Error> {
    if let Some(pinned) = target.pinned {
        match Store::open(context.home.path())?.image(&pinned.digest) {
            Ok(mut image) => {
                image.meta.command = start_command(target, &image.meta);
                return Ok(image);
            }
            Err(error) => {
                let place = target.server.map(|server| server.place.to_string()).unwrap_or_default();
                return Err(Error::from(error).hint(format!(
                    "{place} names this image; casemate add --replace {} builds the server anew",
                    target.name
                )));
            }
        }
    }
    let wanted = Wanted {
        source: target.source.clone(),
        args: target.args.clone(),
        command: target.command.clone(),
        allow_scripts: false,
        refresh: false,
    };
    build(context, registries, wanted).await
}

/// What starts a pinned server: chosen among the programs of its image as the build chooses it.
fn start_command(target: &Target<'_>, meta: &ImageMeta) -> Vec<String> {
    let program = |name: &str| meta.programs.get(name).cloned();
    let mut command = match (target.command.as_deref().and_then(<[String]>::split_first), &target.source) {
        (Some((first, rest)), _) => {
            let is_relative = first.contains('/') && !first.starts_with('/');
            let mut command = program(first).unwrap_or_else(|| match is_relative {
                true => {
                    vec![format!("{}/{}", meta.cwd.trim_end_matches('/'), first.trim_start_matches("./"))]
                }
                false => vec![first.clone()],
            });
            command.extend_from_slice(rest);
            command
        }
        (None, Source::Npm { program: Some(name), .. } | Source::Pypi { program: Some(name), .. }) => {
            program(name).unwrap_or_else(|| meta.command.clone())
        }
        (None, _) => meta.command.clone(),
    };
    command.extend_from_slice(&target.args);
    command
}

/// The version of the package that a source names, if it names one.
pub fn version(source: &Source, meta: &ImageMeta) -> Option<String> {
    let (Source::Npm { name, .. } | Source::Pypi { name, .. }) = source else { return None };
    // Extras stand in brackets after the name.
    let name = name.split('[').next().unwrap_or(name);
    meta.packages.iter().find(|package| package.name == name).map(|package| package.version.clone())
}

/// All images, oldest first.
pub fn list(context: &Context) -> Result<Vec<Image>, Error> {
    Ok(Store::open(context.home.path())?.images()?)
}

/// The image of a digest, or of the beginning of one.
pub fn inspect(context: &Context, digest: &str) -> Result<Image, Error> {
    Ok(Store::open(context.home.path())?.image(digest)?)
}

/// Removes the images that no server and no live machine uses, and packed folders that no live machine uses.
pub async fn prune(context: &Context) -> Result<Pruned, Error> {
    let configuration = context.configuration()?;
    let servers = configuration.servers.values();
    let mut used: BTreeSet<String> =
        servers.filter_map(|server| Some(server.pinned.as_ref()?.digest.clone())).collect();
    let machines = Registry::new(&context.home).list()?;
    used.extend(
        machines.into_iter().filter(|record| !record.state.is_final()).filter_map(|record| record.image),
    );
    let store = Store::open(context.home.path())?;
    let used: Vec<String> = used.into_iter().collect();
    blocking(move || {
        let mut pruned = store.prune(&used)?;
        pruned.bytes += folder::prune(&store)?;
        Ok(pruned)
    })
    .await?
}
