//! A folder without a manifest whose `--command` is `node FILE` or `python FILE`: that runtime, and for Python
//! what a `requirements.txt` names.

use std::path::Path;

use crate::build::lock::Lock;
use crate::build::{BuildError, Contents, Context, npm, pypi};
use crate::files;
use crate::runtime::{APP, RuntimeLock, python};
use crate::store::Runtime;

const REQUIREMENTS: &str = "requirements.txt";
const REQUIREMENTS_BYTES: u64 = 1 << 20;

/// The runtime that a command's first word asks for.
pub(super) fn runtime(command: Option<&[String]>) -> Option<Runtime> {
    match command?.first()?.as_str() {
        "node" => Some(Runtime::Node),
        "python" | "python3" => Some(Runtime::Python),
        _ => None,
    }
}

pub(super) fn resolve(context: &Context<'_>, folder: &Path, runtime: Runtime) -> Result<Lock, BuildError> {
    let requirements = match runtime {
        Runtime::Python => requirements(folder)?,
        _ => String::new(),
    };
    if !requirements.is_empty() {
        let hosts = pypi::file_hosts(context, &requirements)?;
        return pypi::resolve_requirements(context, &requirements, hosts);
    }
    Ok(Lock::bare(RuntimeLock::current(context, runtime)?, Vec::new()))
}

pub(super) fn install(
    context: &Context<'_>,
    lock: &Lock,
    folder: &Path,
    tree: &Path,
    runtime: Runtime,
) -> Result<Contents, BuildError> {
    let app = tree.join(APP.trim_start_matches('/'));
    if runtime != Runtime::Python {
        lock.runtime.install(context, tree)?;
        super::copy(context, lock, folder, &app)?;
        return npm::contents(context, lock);
    }
    let mut contents = pypi::install_locked(context, lock, tree)?;
    super::copy(context, lock, folder, &app)?;
    contents.env.insert("PYTHONPATH".to_owned(), APP.to_owned());
    python::compile(context, &lock.runtime.root(context)?, &app, APP)?;
    Ok(contents)
}

/// The lines of `requirements.txt` that name packages, if there is one.
fn requirements(folder: &Path) -> Result<String, BuildError> {
    if !folder.join(REQUIREMENTS).is_file() {
        return Ok(String::new());
    }
    let text = files::read_below(folder, Path::new(REQUIREMENTS), REQUIREMENTS_BYTES)?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    // Options lead to other files and other registries.
    if let Some(option) = lines.clone().find(|line| line.starts_with('-') || line.ends_with('\\')) {
        return Err(BuildError::Folder {
            path: folder.to_owned(),
            reason: format!("{REQUIREMENTS} says {option:?}, and is read for names of packages only"),
            remedy: "name the packages one on a line, or in a pyproject.toml",
        });
    }
    Ok(lines.map(|line| format!("{line}\n")).collect())
}
