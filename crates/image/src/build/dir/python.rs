//! A folder with `pyproject.toml`: its dependencies as wheels, its own modules where they lie.

use std::path::Path;

use super::pyproject::{Pyproject, import_folder};
use crate::build::lock::Lock;
use crate::build::pypi::{self, entry_points};
use crate::build::{BuildError, Contents, Context};
use crate::runtime::{APP, RuntimeLock, python};
use crate::store::Runtime;

const REMEDY: &str = "build a wheel and use pypi:, or lay the modules out in src/ or in the folder itself";

pub(super) fn resolve(context: &Context<'_>, folder: &Path) -> Result<Lock, BuildError> {
    let project = read(folder)?;
    let requirements = project.requirements();
    if requirements.is_empty() {
        let runtime = RuntimeLock::current(context, Runtime::Python)?;
        let scripts = context.request.allow_scripts;
        return Ok(Lock { scripts, ..Lock::bare(runtime, Vec::new()) });
    }
    pypi::resolve_requirements(context, &requirements, pypi::file_hosts(context, &requirements)?)
}

pub(super) fn install(
    context: &Context<'_>,
    lock: &Lock,
    folder: &Path,
    tree: &Path,
) -> Result<Contents, BuildError> {
    let project = read(folder)?;
    let mut contents = pypi::install_locked(context, lock, tree)?;
    let app = tree.join(APP.trim_start_matches('/'));
    super::copy(context, lock, folder, &app)?;
    for (program, target) in project.scripts() {
        let script = entry_points::script(target)
            .filter(|_| crate::source::is_program_name(program))
            .ok_or_else(|| refused(folder, format!("its script {program:?} is no MODULE:FUNCTION")))?;
        if import_folder(&app, script.module()).is_none() {
            return Err(refused(
                folder,
                format!("the module {:?} of its script is not in it", script.module()),
            ));
        }
        entry_points::write_script(tree, program, &script)?;
        contents.programs.insert(program.clone(), entry_points::command_of(program));
    }
    if contents.programs.len() == 1 {
        contents.command = contents.programs.values().next().cloned().unwrap_or_default();
    }
    if contents.command.is_empty() && context.request.command.is_none() {
        let reason = format!("its pyproject.toml names {} scripts", contents.programs.len());
        let remedy = "say with --command what starts it";
        return Err(BuildError::Folder { path: folder.to_owned(), reason, remedy });
    }
    contents.env.insert("PYTHONPATH".to_owned(), format!("{APP}/src:{APP}"));
    let root = lock.runtime.root(context)?;
    python::compile(context, &root, &app, APP)?;
    Ok(contents)
}

fn read(folder: &Path) -> Result<Pyproject, BuildError> {
    Pyproject::read(folder).map_err(|reason| refused(folder, reason))
}

fn refused(folder: &Path, reason: String) -> BuildError {
    BuildError::Folder { path: folder.to_owned(), reason, remedy: REMEDY }
}
