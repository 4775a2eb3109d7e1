//! A folder without a runtime: `--command` names a program in it, or a static one of the host.

use std::fs;
use std::path::{Path, PathBuf};

use crate::build::command::{self, Program};
use crate::build::lock::Lock;
use crate::build::{BuildError, Contents, Context};
use crate::runtime::{self, APP, RuntimeLock};
use crate::store::Runtime;

pub(super) fn resolve(context: &Context<'_>, folder: &Path) -> Result<Lock, BuildError> {
    let program = program(context, folder)?;
    Ok(Lock::bare(RuntimeLock::bare(program.runtime), program.identity()?))
}

pub(super) fn install(
    context: &Context<'_>,
    lock: &Lock,
    folder: &Path,
    tree: &Path,
) -> Result<Contents, BuildError> {
    let program = program(context, folder)?;
    runtime::skeleton(tree)?;
    super::copy(context, lock, folder, &tree.join(APP.trim_start_matches('/')))?;
    program.copy_into(tree)?;
    Ok(Contents { cwd: APP.to_owned(), ..command::contents() })
}

/// The program that `--command` names, and its libraries outside the folder.
fn program(context: &Context<'_>, folder: &Path) -> Result<Program, BuildError> {
    let refuse = |reason: String| BuildError::Folder {
        path: folder.to_owned(),
        reason,
        remedy: "say what starts it: --command 'node FILE', 'python FILE', or a program in the folder",
    };
    let name = context.request.command.as_ref().and_then(|command| command.first());
    let name = name.ok_or_else(|| refuse("it has no package.json or pyproject.toml".to_owned()))?;
    let folder = fs::canonicalize(folder).map_err(crate::files::failed("find", folder))?;
    let wanted = Path::new(name);
    let absolute = if wanted.is_absolute() { wanted.to_owned() } else { folder.join(wanted) };
    let path =
        fs::canonicalize(&absolute).map_err(|error| refuse(format!("it has no file {name:?} ({error})")))?;
    let Ok(below) = path.strip_prefix(&folder) else {
        let program = Program::at(&path, wanted)?;
        if program.runtime != Runtime::Static || !wanted.is_absolute() {
            return Err(refuse(format!("its program {name:?} is outside of it and not a static executable")));
        }
        return Ok(program);
    };
    let mut program = Program::at(&path, &Path::new(APP).join(below))?;
    // The copy of the folder brings its own files, and its libraries are found from where the program lies.
    let inside = |host: &PathBuf| host.strip_prefix(&folder).ok().map(|below| Path::new(APP).join(below));
    let files = program.files.into_iter().filter(|(_, host)| inside(host).is_none());
    program.files = files.collect();
    Ok(program)
}
