//! From a source to an image.
//!
//! ```text
//! request ──resolve──> lock ──install──> tree ──pack──> images/<digest>
//!    │ recorded for a day  │ known already
//!    └───── cache ─────────┴──────────────────────────> the same image, without network
//! ```
//!
//! A *lock* is everything that decides an image's contents: the layout, the runtime's and the server's
//! packages with their digests. The same lock gives the same bytes. Locks of one request and builds of one
//! lock are made once, whoever asks at the same time.

mod builtin;
mod command;
mod context;
mod dir;
mod elf;
mod error;
mod installer;
mod lock;
mod npm;
mod pypi;
mod start;
mod versions;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use context::Context;
pub use error::{BuildError, BuildErrorKind};

use crate::erofs;
use crate::files;
use crate::progress::Progress;
use crate::registry::address::Registries;
use crate::registry::digest::Digest;
use crate::source::Source;
use crate::store::{Image, ImageMeta, Package, Store};
use lock::Lock;

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildRequest<'a> {
    /// From what.
    pub source: Source,
    /// The server's arguments; they follow the command and change nothing in the image.
    pub args: Vec<String>,
    /// `--command`, split into words: what starts the server instead of the package's own program.
    pub command: Option<Vec<String>>,
    /// Whether packages may run code of theirs while they are installed, confined but on the host's kernel.
    /// The program never asks for it: scripts are to run inside a machine.
    pub allow_scripts: bool,
    /// Whether to ask the registries again although a recent answer is recorded.
    pub refresh: bool,
    /// The probe server, a static executable, for [`Source::Builtin`].
    pub builtin: &'a [u8],
}

impl<'a> BuildRequest<'a> {
    /// A request for a source as it is, with nothing special.
    pub fn new(source: Source, builtin: &'a [u8]) -> Self {
        Self { source, args: Vec::new(), command: None, allow_scripts: false, refresh: false, builtin }
    }
}

/// What an installation left, beside the tree.
#[derive(Debug, Default)]
struct Contents {
    /// The programs of the package, by name.
    programs: BTreeMap<String, Vec<String>>,
    /// What starts the server if nobody says otherwise; may be empty.
    command: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: String,
    packages: Vec<Package>,
}

/// Builds the image of a request, or finds that it exists.
///
/// The image's `meta.command` is complete: program, the request's `--command` if there is one, and arguments.
/// The calling thread runs the installers and has to live as long as they.
pub fn build(
    store: &Store,
    registries: &Registries,
    request: &BuildRequest<'_>,
    progress: &dyn Progress,
) -> Result<Image, BuildError> {
    let context = Context::new(store, registries, request, progress);
    let mut image = match locked(&context) {
        Ok(image) => image,
        Err(error) => {
            context.note(&format!("the build failed: {}", chain(&error)))?;
            return Err(error);
        }
    };
    image.meta.command = start::command(request, &image.meta.programs, &image.meta.command, &image.meta.cwd)?;
    image.meta.command.extend_from_slice(&request.args);
    Ok(image)
}

/// Finds or makes the lock, then the image.
fn locked(context: &Context<'_>) -> Result<Image, BuildError> {
    let key = lock::request_key(context.request)?;
    let _resolving = context.wait_for(&format!("request-{}", key.digest), "builds the same image")?;
    let lock = match lock::recorded(context, &key)? {
        Some(lock) => lock,
        None => {
            let lock = resolve(context)?;
            lock::remember(context, &key, &lock)?;
            lock
        }
    };
    let digest = lock.digest();
    let _building = context.wait_for(&format!("build-{}", digest.to_hex()), "builds the same image")?;
    if let Some(image) = lock::built(context, &digest) {
        return Ok(image);
    }
    let image = make(context, &lock, &digest)?;
    lock::remember_built(context, &digest, &image)?;
    Ok(image)
}

fn resolve(context: &Context<'_>) -> Result<Lock, BuildError> {
    match &context.request.source {
        Source::Npm { .. } => npm::resolve(context),
        Source::Pypi { .. } => pypi::resolve(context),
        Source::Dir(folder) => dir::resolve(context, folder),
        Source::Command(command) => command::resolve(context, command),
        Source::Builtin => Ok(builtin::resolve(context)),
        Source::Oci(_) => Err(BuildError::NotBuilt { kind: "oci:" }),
    }
}

fn install(context: &Context<'_>, lock: &Lock, tree: &Path) -> Result<Contents, BuildError> {
    match &context.request.source {
        Source::Npm { .. } => npm::install(context, lock, tree),
        Source::Pypi { .. } => pypi::install(context, lock, tree),
        Source::Dir(folder) => dir::install(context, lock, folder, tree),
        Source::Command(command) => command::install(command, tree),
        Source::Builtin => builtin::install(context, tree),
        Source::Oci(_) => Err(BuildError::NotBuilt { kind: "oci:" }),
    }
}

/// Installs into a fresh tree, packs it, and gives the image its name.
fn make(context: &Context<'_>, lock: &Lock, digest: &Digest) -> Result<Image, BuildError> {
    let work = context.work()?;
    let tree = work.path().join("tree");
    std::fs::create_dir(&tree).map_err(files::failed("create", &tree))?;
    let mut contents = install(context, lock, &tree)?;
    // A package that nothing starts becomes no image.
    start::command(context.request, &contents.programs, &contents.command, &contents.cwd)?;
    files::seal(&tree)?;
    context.progress.step("packing the image");
    let (unfinished, rootfs) = context.store.unfinished()?;
    let image_digest = erofs::pack(&tree, &rootfs, digest)?;
    let size = std::fs::metadata(&rootfs).map_err(files::failed("look at", &rootfs))?.len();
    contents.packages.extend(lock.runtime.parts.packages());
    contents.packages.sort();
    contents.packages.dedup();
    let meta = ImageMeta {
        digest: image_digest.to_string(),
        source: context.request.source.to_string(),
        command: contents.command,
        programs: contents.programs,
        env: contents.env,
        cwd: contents.cwd,
        runtime: lock.runtime.runtime,
        packages: contents.packages,
        lock_digest: digest.to_string(),
        size_bytes: size,
        created_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    };
    let image = context.store.publish(unfinished, &meta)?;
    files::remove(work.path())?;
    Ok(image)
}

/// An error with its causes, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
