//! The probe server that casemate carries: one static executable.

use std::fs;
use std::path::Path;

use super::lock::Lock;
use super::{BuildError, Contents, Context};
use crate::files::failed;
use crate::registry::digest::Hasher;
use crate::runtime::{self, RuntimeLock};
use crate::store::Runtime;

/// Where the probe server is, as a path inside.
const PROGRAM: &str = "/usr/bin/casemate-probe";

pub(super) fn resolve(context: &Context<'_>) -> Lock {
    let mut hasher = Hasher::sha256();
    hasher.update(context.request.builtin);
    Lock::bare(RuntimeLock::bare(Runtime::Static), vec![format!("{PROGRAM} {}", hasher.finish())])
}

pub(super) fn install(context: &Context<'_>, tree: &Path) -> Result<Contents, BuildError> {
    runtime::skeleton(tree)?;
    let file = tree.join(PROGRAM.trim_start_matches('/'));
    fs::write(&file, context.request.builtin).map_err(failed("write", &file))?;
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(failed("change the mode of", &file))?;
    let env = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/home/casemate"), ("LANG", "C.UTF-8")];
    Ok(Contents {
        command: vec![PROGRAM.to_owned()],
        env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        cwd: "/home/casemate".to_owned(),
        ..Contents::default()
    })
}
