//! A folder with `package.json`: its own lock file if it has one, and the program that its manifest names.

use std::fs;
use std::path::Path;

use crate::build::lock::Lock;
use crate::build::npm::{self, LOCKFILE, Lockfile, MANIFEST, Manifest};
use crate::build::{BuildError, Contents, Context, start};
use crate::files::{self, failed};
use crate::runtime::{APP, RuntimeLock, node};
use crate::store::Runtime;

const MANIFEST_BYTES: u64 = 4 << 20;

/// What makes a text more than words to a shell.
const SHELL_CHARACTERS: [char; 12] = ['&', '|', ';', '<', '>', '$', '`', '(', ')', '*', '~', '\n'];

pub(super) fn resolve(context: &Context<'_>, folder: &Path) -> Result<Lock, BuildError> {
    // Says early what is wrong with it.
    let manifest = Manifest::read(context, folder, Path::new(MANIFEST))?;
    let runtime = RuntimeLock::current(context, Runtime::Node)?;
    let text = files::read_below(folder, Path::new(MANIFEST), MANIFEST_BYTES)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    if folder.join(LOCKFILE).is_file() {
        let lockfile = Lockfile::read(context, folder)?;
        return Ok(npm::lock(context, runtime, text, &lockfile, Vec::new()));
    }
    if !manifest.needs_packages() {
        let scripts = context.request.allow_scripts;
        return Ok(Lock { scripts, ..Lock::bare(runtime, Vec::new()) });
    }
    let work = context.work()?;
    fs::write(work.path().join(MANIFEST), &text).map_err(failed("write to", work.path()))?;
    let outcome = npm::lock_folder(context, &runtime, work.path(), &[])?;
    if !outcome.status.success() {
        return Err(npm::unresolved(context, &outcome));
    }
    let lockfile = Lockfile::read(context, work.path())?;
    files::remove(work.path())?;
    Ok(npm::lock(context, runtime, text, &lockfile, Vec::new()))
}

pub(super) fn install(
    context: &Context<'_>,
    lock: &Lock,
    folder: &Path,
    tree: &Path,
) -> Result<Contents, BuildError> {
    let app = tree.join(APP.trim_start_matches('/'));
    lock.runtime.install(context, tree)?;
    super::copy(context, lock, folder, &app)?;
    if !lock.files.is_empty() {
        npm::install_locked(context, lock, &app)?;
    }
    let manifest = Manifest::read(context, &app, Path::new(MANIFEST))?;
    let command = match context.request.command {
        Some(_) => Vec::new(),
        None => command(&manifest, &app).map_err(|reason| BuildError::Folder {
            path: folder.to_owned(),
            reason,
            remedy: "build the project first, or say with --command what starts it",
        })?,
    };
    let programs = manifest.programs(&app, APP);
    Ok(Contents { programs, command, ..npm::contents(context, lock)? })
}

/// What starts the project: its own program, its `start` script, its main file.
fn command(manifest: &Manifest, app: &Path) -> Result<Vec<String>, String> {
    let own = manifest.name().and_then(|name| manifest.default_program(name));
    if let Some(program) = own {
        let missing = || format!("the file of its program {program:?} does not exist");
        return manifest.programs(app, APP).remove(&program).ok_or_else(missing);
    }
    let script =
        manifest.script("start").filter(|text| !text.contains(SHELL_CHARACTERS)).and_then(shlex::split);
    if let Some((program, rest)) = script.as_deref().and_then(<[String]>::split_first) {
        let program =
            if program == "node" { node::PROGRAM.to_owned() } else { start::in_folder(program, APP) };
        return Ok(std::iter::once(program).chain(rest.iter().cloned()).collect());
    }
    let main = manifest.main().unwrap_or("index.js");
    // As Node resolves it: the file, the file with an ending, the folder's index.
    let candidates = [main.to_owned(), format!("{main}.js"), format!("{main}/index.js")];
    let found = candidates.iter().find_map(|file| npm::start_of(app, APP, file));
    found.ok_or_else(|| format!("its manifest names no program, and its main file {main:?} does not exist"))
}
