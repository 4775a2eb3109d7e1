//! `package.json`: which programs a package brings, and how to start it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Component, Path};

use serde::Deserialize;
use serde_json::Value;

use crate::build::{BuildError, Context};
use crate::files;
use crate::runtime::node;

const MANIFEST_BYTES: u64 = 4 << 20;

/// What casemate reads of a package's manifest.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Manifest {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    bin: Value,
    #[serde(default)]
    main: Option<String>,
    #[serde(default)]
    scripts: BTreeMap<String, Value>,
    #[serde(default)]
    directories: BTreeMap<String, Value>,
    #[serde(default)]
    dependencies: BTreeMap<String, Value>,
    #[serde(default, rename = "optionalDependencies")]
    optional_dependencies: BTreeMap<String, Value>,
    #[serde(default, rename = "peerDependencies")]
    peer_dependencies: BTreeMap<String, Value>,
    #[serde(default)]
    workspaces: Value,
}

impl Manifest {
    /// Reads the manifest at a path below `folder`.
    pub(crate) fn read(context: &Context<'_>, folder: &Path, path: &Path) -> Result<Self, BuildError> {
        let text = files::read_below(folder, path, MANIFEST_BYTES)?;
        serde_json::from_slice(&text).map_err(|error| BuildError::Malformed {
            file: path.display().to_string(),
            reason: error.to_string(),
            log: context.log_path(),
        })
    }

    /// The package's name, if it says one.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The file that `require` of the package would load.
    pub(crate) fn main(&self) -> Option<&str> {
        self.main.as_deref()
    }

    /// Whether it depends on anything.
    pub(crate) fn needs_packages(&self) -> bool {
        [&self.dependencies, &self.optional_dependencies, &self.peer_dependencies]
            .iter()
            .any(|list| !list.is_empty())
            || !self.workspaces.is_null()
    }

    /// The text of a script.
    pub(crate) fn script(&self, name: &str) -> Option<&str> {
        self.scripts.get(name).and_then(Value::as_str)
    }

    /// The programs of the package as commands. `folder` is the package on the host, `inside` in the image.
    pub(crate) fn programs(&self, folder: &Path, inside: &str) -> BTreeMap<String, Vec<String>> {
        let command = |file: &str| start_of(folder, inside, file);
        self.bins(folder).into_iter().filter_map(|(name, file)| Some((name, command(&file)?))).collect()
    }

    /// The program that `npx PACKAGE` would run: the one with the package's name, or the only one.
    pub(crate) fn default_program(&self, package: &str) -> Option<String> {
        let name = unscoped(package);
        match &self.bin {
            Value::String(_) => Some(name.to_owned()),
            Value::Object(bins) if bins.contains_key(name) => Some(name.to_owned()),
            // Several names of one file are one program.
            Value::Object(bins) => {
                let (first, file) = bins.iter().next()?;
                bins.values().all(|other| other == file).then(|| first.clone())
            }
            _ => None,
        }
    }

    fn bins(&self, folder: &Path) -> BTreeMap<String, String> {
        match (&self.bin, self.directories.get("bin").and_then(Value::as_str)) {
            (Value::String(file), _) => {
                self.name.iter().map(|name| (unscoped(name).to_owned(), file.clone())).collect()
            }
            (Value::Object(bins), _) => bins
                .iter()
                .filter_map(|(name, file)| Some((name.clone(), file.as_str()?.to_owned())))
                .collect(),
            (_, Some(bin)) if is_inside(bin) => std::fs::read_dir(folder.join(bin))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .map(|name| (name.clone(), format!("{bin}/{name}")))
                .collect(),
            _ => BTreeMap::new(),
        }
    }
}

/// What starts `file` of the package at `inside`: Node, unless it is a program of its own.
pub(crate) fn start_of(folder: &Path, inside: &str, file: &str) -> Option<Vec<String>> {
    let file = file.trim_start_matches("./");
    if !is_inside(file) {
        return None;
    }
    let mut head = [0; 128];
    let count = files::open_below(folder, Path::new(file)).and_then(|mut file| file.read(&mut head)).ok()?;
    let head = &head[..count];
    let path = format!("{inside}/{file}");
    let interpreter =
        head.strip_prefix(b"#!").map(|rest| rest.split(|&byte| byte == b'\n').next().unwrap_or(rest));
    let is_node = interpreter.is_none_or(|line| line.windows(4).any(|window| window == b"node"));
    if is_node && !head.starts_with(b"\x7fELF") {
        return Some(vec![node::PROGRAM.to_owned(), path]);
    }
    Some(vec![path])
}

fn unscoped(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(json: &str) -> Manifest {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_default_program_is_the_one_that_npx_runs() {
        for (json, package, program) in [
            (r#"{"name":"@a/b","bin":"x.js"}"#, "@a/b", Some("b")),
            (r#"{"bin":{"b":"x.js","c":"y.js"}}"#, "@a/b", Some("b")),
            (r#"{"bin":{"other":"x.js"}}"#, "b", Some("other")),
            (r#"{"bin":{"one":"x.js","two":"x.js"}}"#, "b", Some("one")),
            (r#"{"bin":{"one":"x.js","two":"y.js"}}"#, "b", None),
            (r#"{}"#, "b", None),
        ] {
            assert_eq!(manifest(json).default_program(package).as_deref(), program, "{json}");
        }
    }

    #[test]
    fn programs_start_with_node_unless_they_are_programs_themselves() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.js"), "#!/usr/bin/env node\n").unwrap();
        std::fs::write(folder.path().join("b.js"), "console.log(1)").unwrap();
        std::fs::write(folder.path().join("c.sh"), "#!/bin/sh\n").unwrap();
        std::fs::write(folder.path().join("d"), b"\x7fELF\x02").unwrap();
        let json = r#"{"bin":{"a":"./a.js","b":"b.js","c":"c.sh","d":"d","gone":"e","out":"../../x","abs":"/bin/sh"}}"#;
        let programs = manifest(json).programs(folder.path(), "/app/p");
        let of = |name: &str| programs[name].join(" ");
        assert_eq!(of("a"), "/usr/bin/node /app/p/a.js");
        assert_eq!(of("b"), "/usr/bin/node /app/p/b.js");
        assert_eq!(of("c"), "/app/p/c.sh");
        assert_eq!(of("d"), "/app/p/d");
        assert_eq!(programs.len(), 4, "{programs:?}");
    }
}
