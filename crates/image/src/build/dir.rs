//! A folder of the host. `package.json` brings Node, `pyproject.toml` Python; another folder needs `--command`,
//! whose `node` or `python` brings that, and any other program nothing.
//!
//! The folder is copied to `/app`, without what is installed anew, without version control, and without links
//! that lead out of it.

mod node;
mod plain;
mod pyproject;
mod python;
mod script;

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::lock::Lock;
use super::{BuildError, Contents, Context};
use crate::files::{self, failed};
use crate::registry::digest::{Digest, Hasher};

/// The largest folder, in bytes.
const FOLDER_BYTES: u64 = 1 << 30;
/// The most files and folders in it.
const FOLDER_ENTRIES: usize = 100_000;

/// What is never part of an image: version control, credentials for registries, and what is made anew.
const LEFT_OUT: [&str; 7] = [".git", ".hg", ".npmrc", ".pypirc", ".venv", "venv", "__pycache__"];

/// What kind of project a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Node,
    Python,
    Plain,
}

impl Kind {
    fn of(folder: &Path) -> Kind {
        if folder.join("package.json").is_file() {
            Kind::Node
        } else if folder.join("pyproject.toml").is_file() {
            Kind::Python
        } else {
            Kind::Plain
        }
    }
}

/// The digest of everything in the folder that would become part of an image.
pub(super) fn digest(folder: &Path) -> Result<Digest, BuildError> {
    let refuse = |reason: String| BuildError::Folder {
        path: folder.to_owned(),
        reason,
        remedy: "give the folder that holds the server alone",
    };
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(refuse("it is no folder".to_owned())),
        Err(error) => return Err(refuse(format!("it cannot be read: {error}"))),
    }
    let mut entries: BTreeMap<PathBuf, Metadata> = BTreeMap::new();
    let mut bytes = 0;
    collect(folder, Path::new(""), &wanted(folder), &mut |path, metadata| {
        bytes += metadata.len();
        entries.insert(path, metadata);
        entries.len() <= FOLDER_ENTRIES && bytes <= FOLDER_BYTES
    })?;
    if entries.len() > FOLDER_ENTRIES || bytes > FOLDER_BYTES {
        return Err(refuse(format!("it holds more than {FOLDER_ENTRIES} files or {FOLDER_BYTES} bytes")));
    }
    let mut hasher = Hasher::sha256();
    for (name, metadata) in entries {
        let path = folder.join(&name);
        hasher.update(name.as_os_str().as_encoded_bytes());
        if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(failed("read", &path))?;
            hasher.update(b"\0link\0");
            hasher.update(target.as_os_str().as_encoded_bytes());
        } else if metadata.is_file() {
            let executable = std::os::unix::fs::MetadataExt::mode(&metadata) & 0o111 != 0;
            hasher.update(format!("\0file\0{executable}\0{}\0", metadata.len()).as_bytes());
            let mut file = File::open(&path).map_err(failed("read", &path))?;
            io::copy(&mut file, &mut hasher).map_err(failed("read", &path))?;
        }
        hasher.update(b"\0");
    }
    Ok(hasher.finish())
}

pub(super) fn resolve(context: &Context<'_>, folder: &Path) -> Result<Lock, BuildError> {
    let mut lock = match Kind::of(folder) {
        Kind::Node => node::resolve(context, folder)?,
        Kind::Python => python::resolve(context, folder)?,
        Kind::Plain => match script::runtime(context.request.command.as_deref()) {
            Some(runtime) => script::resolve(context, folder, runtime)?,
            None => plain::resolve(context, folder)?,
        },
    };
    lock.contents.push(format!("folder {}", digest(folder)?));
    Ok(lock)
}

pub(super) fn install(
    context: &Context<'_>,
    lock: &Lock,
    folder: &Path,
    tree: &Path,
) -> Result<Contents, BuildError> {
    match Kind::of(folder) {
        Kind::Node => node::install(context, lock, folder, tree),
        Kind::Python => python::install(context, lock, folder, tree),
        Kind::Plain => match script::runtime(context.request.command.as_deref()) {
            Some(runtime) => script::install(context, lock, folder, tree, runtime),
            None => plain::install(context, lock, folder, tree),
        },
    }
}

/// Copies the folder into `app`, and makes sure that this is what the lock was made of.
fn copy(context: &Context<'_>, lock: &Lock, folder: &Path, app: &Path) -> Result<(), BuildError> {
    context.progress.step("copying the folder");
    let wanted = wanted(folder);
    files::copy(folder, app, &|path, metadata| {
        let take = wanted(path, metadata);
        if !take && metadata.is_symlink() {
            context.progress.note(&format!("{} leads out of the folder and was left out", path.display()));
        }
        take
    })?;
    if lock.contents.last() != Some(&format!("folder {}", digest(app)?)) {
        return Err(BuildError::Folder {
            path: folder.to_owned(),
            reason: "it changed while it was being copied".to_owned(),
            remedy: "build again",
        });
    }
    Ok(())
}

/// Says which paths of the folder are wanted.
fn wanted(folder: &Path) -> impl Fn(&Path, &Metadata) -> bool + use<> {
    let is_node = Kind::of(folder) == Kind::Node;
    let folder = folder.to_owned();
    move |path, metadata| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if LEFT_OUT.contains(&name) || (is_node && name == "node_modules") {
            return false;
        }
        !metadata.is_symlink()
            || fs::read_link(folder.join(path)).is_ok_and(|target| stays_inside(path, &target))
    }
}

/// Whether a link at `path`, relative to its folder, leads to something in that folder.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count() - 1;
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

/// Calls `add` for every wanted path, relative to `folder`, until it says no.
fn collect(
    folder: &Path,
    below: &Path,
    wanted: &dyn Fn(&Path, &Metadata) -> bool,
    add: &mut dyn FnMut(PathBuf, Metadata) -> bool,
) -> Result<bool, BuildError> {
    if below.components().count() > files::DEPTH {
        return Err(files::FilesError::Deep { path: folder.join(below) }.into());
    }
    let from = folder.join(below);
    for entry in fs::read_dir(&from).map_err(failed("read", &from))? {
        let entry = entry.map_err(failed("read", &from))?;
        let path = below.join(entry.file_name());
        let metadata = fs::symlink_metadata(entry.path()).map_err(failed("look at", &from))?;
        if !wanted(&path, &metadata) {
            continue;
        }
        let is_folder = metadata.is_dir();
        if !add(path.clone(), metadata) || (is_folder && !collect(folder, &path, wanted, add)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_kept_inside() {
        for (path, target, inside) in [
            ("a", "b", true),
            ("x/a", "../b", true),
            ("a", "../b", false),
            ("x/a", "../../b", false),
            ("a", "/etc", false),
            ("x/a", "y/../../..", false),
        ] {
            assert_eq!(stays_inside(Path::new(path), Path::new(target)), inside, "{path} -> {target}");
        }
    }

    #[test]
    fn the_digest_covers_what_is_copied_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("a"), "1").unwrap();
        let first = digest(root).unwrap();
        fs::create_dir_all(root.join(".git")).unwrap();
        fs::write(root.join(".git/x"), "1").unwrap();
        symlink("/etc/passwd", root.join("out")).unwrap();
        assert_eq!(digest(root).unwrap(), first);
        fs::write(root.join("a"), "2").unwrap();
        let second = digest(root).unwrap();
        assert_ne!(second, first);
        symlink("a", root.join("in")).unwrap();
        assert_ne!(digest(root).unwrap(), second);
    }

    #[test]
    fn what_is_no_folder_is_refused() {
        for path in ["/no/such/folder", "/etc/passwd"] {
            assert!(matches!(digest(Path::new(path)), Err(BuildError::Folder { .. })), "{path}");
        }
    }
}
