//! The programs of an installed Python package (`entry_points.txt`, the packaging specification "Entry
//! points").

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{self, FilesError, failed};
use crate::registry::pypi::normalised;
use crate::runtime::python;

const ENTRY_POINTS_BYTES: u64 = 1 << 20;

/// What a program calls: a function of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::build) struct Script {
    module: String,
    function: String,
}

/// The programs of the package with this normalised name, by name.
pub(super) fn of_package(tree: &Path, package: &str) -> Result<BTreeMap<String, Script>, FilesError> {
    let packages = packages(tree);
    let Some(info) = info_folder(&packages, package)? else { return Ok(BTreeMap::new()) };
    let list = Path::new(&info).join("entry_points.txt");
    if !packages.join(&list).exists() {
        return Ok(BTreeMap::new());
    }
    let text = files::read_below(&packages, &list, ENTRY_POINTS_BYTES)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// The module of the package that can be run, if there is one.
pub(super) fn main_module(tree: &Path, package: &str) -> Option<String> {
    let module = package.replace('-', "_");
    let main = Path::new(&module).join("__main__.py");
    files::open_below(&packages(tree), &main).ok().map(|_| module)
}

impl Script {
    /// The module that it imports.
    pub(in crate::build) fn module(&self) -> &str {
        &self.module
    }
}

/// What starts a program.
pub(in crate::build) fn command_of(program: &str) -> Vec<String> {
    vec![python::PROGRAM.to_owned(), path_of(program)]
}

/// Where a program's script is, as a path inside.
fn path_of(program: &str) -> String {
    format!("/usr/local/bin/{program}")
}

/// Writes the script that starts a program.
pub(in crate::build) fn write_script(tree: &Path, program: &str, script: &Script) -> Result<(), FilesError> {
    let path = tree.join(path_of(program).trim_start_matches('/'));
    let Script { module, function } = script;
    let first = function.split('.').next().unwrap_or(function);
    let text =
        format!("#!{}\nimport sys\nfrom {module} import {first}\nsys.exit({function}())\n", python::PROGRAM);
    fs::write(&path, text).map_err(failed("write", &path))?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(failed("change the mode of", &path))
}

fn packages(tree: &Path) -> PathBuf {
    tree.join(python::PACKAGES_FOLDER.trim_start_matches('/'))
}

/// The name of the package's `.dist-info` folder.
fn info_folder(packages: &Path, package: &str) -> Result<Option<String>, FilesError> {
    for entry in fs::read_dir(packages).map_err(failed("read", packages))? {
        let name = entry.map_err(failed("read", packages))?.file_name().to_string_lossy().into_owned();
        let stem = name.strip_suffix(".dist-info").and_then(|stem| stem.split_once('-'));
        if stem.is_some_and(|(stem, _)| normalised(stem) == package) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Reads the section `console_scripts`.
fn parse(text: &str) -> BTreeMap<String, Script> {
    let mut scripts = BTreeMap::new();
    let mut is_wanted = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            is_wanted = section.trim_end_matches(']').trim() == "console_scripts";
        } else if is_wanted
            && let Some((name, target)) = line.split_once('=')
            && let Some(script) = script(target)
            && crate::source::is_program_name(name.trim())
        {
            scripts.insert(name.trim().to_owned(), script);
        }
    }
    scripts
}

/// Reads `module:function [extras]`.
pub(in crate::build) fn script(target: &str) -> Option<Script> {
    let (module, function) = target.split('[').next()?.trim().split_once(':')?;
    let (module, function) = (module.trim(), function.trim());
    (is_dotted_name(module) && is_dotted_name(function))
        .then(|| Script { module: module.to_owned(), function: function.to_owned() })
}

/// Whether this is a name of Python and nothing that its parser would take for more.
fn is_dotted_name(name: &str) -> bool {
    name.split('.').all(|part| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_scripts_are_read_and_nothing_else() {
        let text = "[gui_scripts]\nwindow = a:b\n\n[console_scripts]\n; note\nserver = pkg.cli:main [extra]\nother=pkg:App.run\n\
                    evil = os:system('x')\n../up = pkg:main\nbad = pkg\n[other]\nx = y:z\n";
        let scripts = parse(text);
        let expected =
            |module: &str, function: &str| Script { module: module.into(), function: function.into() };
        assert_eq!(
            scripts,
            BTreeMap::from([
                ("other".to_owned(), expected("pkg", "App.run")),
                ("server".to_owned(), expected("pkg.cli", "main")),
            ])
        );
    }

    #[test]
    fn a_script_imports_and_calls() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("usr/local/bin")).unwrap();
        write_script(tree.path(), "server", &script("pkg.cli:App.run").unwrap()).unwrap();
        let text = fs::read_to_string(tree.path().join("usr/local/bin/server")).unwrap();
        assert!(text.ends_with("import sys\nfrom pkg.cli import App\nsys.exit(App.run())\n"), "{text}");
    }
}
