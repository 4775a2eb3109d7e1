//! `pyproject.toml`: what a Python project depends on, which programs it has, and where its modules are.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::files;

const PYPROJECT: &str = "pyproject.toml";
const PYPROJECT_BYTES: u64 = 1 << 20;

/// Build backends that compile something: the project's folder is not what would be imported.
const COMPILERS: [&str; 6] = ["maturin", "scikit_build_core", "mesonpy", "pdm.pep517", "cffi", "enscons"];

/// A project's description.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Pyproject {
    #[serde(default)]
    project: Project,
    #[serde(default, rename = "build-system")]
    build: Build,
}

#[derive(Debug, Default, Deserialize)]
struct Project {
    #[serde(default)]
    dependencies: Vec<String>,
    #[serde(default)]
    scripts: BTreeMap<String, String>,
    #[serde(default)]
    dynamic: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Build {
    #[serde(default, rename = "build-backend")]
    backend: String,
}

impl Pyproject {
    /// Reads the description of a project, and refuses one that has to be built first.
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let bytes = files::read_below(folder, Path::new(PYPROJECT), PYPROJECT_BYTES)
            .map_err(|error| error.to_string())?;
        let pyproject = Self::parse(&String::from_utf8_lossy(&bytes))?;
        if folder.join("setup.py").is_file() {
            return Err("its setup.py would have to be run".to_owned());
        }
        Ok(pyproject)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let pyproject: Self =
            toml::from_str(text).map_err(|error| format!("{PYPROJECT}: {}", error.message()))?;
        let Pyproject { project, build } = &pyproject;
        if COMPILERS.iter().any(|compiler| build.backend.starts_with(compiler)) {
            return Err(format!("its build backend {:?} compiles a part of it", build.backend));
        }
        if project.dynamic.iter().any(|field| field == "dependencies" || field == "scripts") {
            return Err(
                "its dependencies or scripts are dynamic: only its build backend knows them".to_owned()
            );
        }
        let is_plain = |requirement: &String| {
            !requirement.trim().starts_with('-') && !requirement.contains(['\n', '\r'])
        };
        if let Some(odd) = project.dependencies.iter().find(|requirement| !is_plain(requirement)) {
            return Err(format!("its dependency {odd:?} is no requirement"));
        }
        Ok(pyproject)
    }

    /// What it depends on, as lines of a requirements file.
    pub(super) fn requirements(&self) -> String {
        self.project.dependencies.iter().map(|requirement| format!("{}\n", requirement.trim())).collect()
    }

    /// Its programs, by name, as `module:function`.
    pub(super) fn scripts(&self) -> &BTreeMap<String, String> {
        &self.project.scripts
    }
}

/// The folder, relative to the project, from which a module is imported: `src` or the project itself.
pub(super) fn import_folder(folder: &Path, module: &str) -> Option<&'static str> {
    let top = module.split('.').next()?;
    ["src", ""].into_iter().find(|layout| {
        let base = folder.join(layout);
        base.join(top).is_dir() || base.join(format!("{top}.py")).is_file()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_project_is_read() {
        let text = "[project]\nname='x'\ndependencies=['mcp>=1', 'rich']\n[project.scripts]\nserver='x.cli:main'\n\
                    [build-system]\nbuild-backend='hatchling.build'\n[tool.other]\na=1\n";
        let pyproject = Pyproject::parse(text).unwrap();
        assert_eq!(pyproject.requirements(), "mcp>=1\nrich\n");
        assert_eq!(pyproject.scripts()["server"], "x.cli:main");
    }

    #[test]
    fn what_has_to_be_built_or_is_odd_is_refused() {
        for text in [
            "[build-system]\nbuild-backend='maturin'",
            "[project]\ndynamic=['dependencies']",
            "[project]\ndependencies=['--index-url x']",
            "[project]\ndependencies=[\"a\\nb\"]",
            "not toml",
        ] {
            assert!(Pyproject::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modules_are_found_in_both_layouts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("src/one")).unwrap();
        std::fs::write(folder.path().join("two.py"), "").unwrap();
        assert_eq!(import_folder(folder.path(), "one.cli"), Some("src"));
        assert_eq!(import_folder(folder.path(), "two"), Some(""));
        assert_eq!(import_folder(folder.path(), "three"), None);
    }
}
