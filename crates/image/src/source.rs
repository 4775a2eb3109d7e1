//! What an image is made from, and how people write it.
//!
//! A source is written `npm:NAME[@VERSION]`, `pypi:NAME[@VERSION]`, `dir:PATH`, `oci:PATH-OR-REF`, or as a
//! command. `npx …` and `uvx …` are the npm and PyPI sources that they would run, because that is what people
//! paste out of a server's documentation. Names and versions are checked here, before they become arguments
//! of an installer or parts of an address; whether they exist is found out by the build.

mod launcher;
mod name;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What an image is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// A package of the npm registry.
    Npm {
        /// Its name, with the scope if it has one.
        name: String,
        /// A version, a range or a dist-tag; absent for the latest.
        version: Option<String>,
        /// Which of its programs; absent for the one that `npx` would choose.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<String>,
    },
    /// A package of the Python package index.
    Pypi {
        /// Its name, with extras in brackets if any are wanted.
        name: String,
        /// A version or a version specifier (`>=1,<2`); absent for the latest.
        version: Option<String>,
        /// Which of its programs; absent for the one that `uvx` would choose.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<String>,
        /// Further requirements to install beside it, as `uvx --with` takes them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        with: Vec<String>,
    },
    /// A folder of the host.
    Dir(PathBuf),
    /// An OCI image, as a path or a reference.
    Oci(String),
    /// A program of the host. Its arguments stand elsewhere, but for a script, whose interpreter comes first.
    Command(Vec<String>),
    /// The probe server that casemate carries.
    Builtin,
}

/// Why a text is no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Nothing was given.
    #[error("the source is empty; give npm:NAME, pypi:NAME, dir:PATH or a command")]
    Empty,
    /// The package name cannot exist in that registry.
    #[error("{name:?} is no package name of {registry}")]
    Name {
        /// `npm` or `PyPI`.
        registry: &'static str,
        /// What was given.
        name: String,
    },
    /// The version is none.
    #[error("{version:?} is no version of {name}; give a version number, a range or a tag")]
    Version {
        /// The package.
        name: String,
        /// What was given.
        version: String,
    },
    /// The text before the colon is no kind of source.
    #[error("{kind:?} is no kind of source; known are npm:, pypi: and dir:")]
    Kind {
        /// The text before the colon.
        kind: String,
    },
    /// Quotes that do not match.
    #[error("the quotes of {text:?} do not match")]
    Quotes {
        /// What was given.
        text: String,
    },
    /// An option of `npx` or `uvx` that has no meaning here.
    #[error("{launcher} option {option:?} is not supported; use {instead}")]
    LauncherOption {
        /// `npx` or `uvx`.
        launcher: &'static str,
        /// The option.
        option: String,
        /// The remedy.
        instead: &'static str,
    },
    /// `npx` or `uvx` without a package.
    #[error("{launcher} names no package")]
    LauncherPackage {
        /// `npx` or `uvx`.
        launcher: &'static str,
    },
}

impl Source {
    /// Reads a source as it is written in one argument or configuration value; what follows the package or
    /// the program of a command comes back as the server's arguments.
    pub fn parse(text: &str) -> Result<(Source, Vec<String>), SourceError> {
        let text = text.trim();
        match text.split_once(':') {
            Some(("npm", rest)) => Ok((name::npm(rest)?, Vec::new())),
            Some(("pypi", rest)) => Ok((name::pypi(rest)?, Vec::new())),
            Some(("dir", "")) | Some(("oci", "")) => Err(SourceError::Empty),
            Some(("dir", path)) => Ok((Source::Dir(PathBuf::from(path)), Vec::new())),
            Some(("oci", reference)) => Ok((Source::Oci(reference.to_owned()), Vec::new())),
            Some(("builtin", "probe")) => Ok((Source::Builtin, Vec::new())),
            // `docker:…` or `nmp:…` is a mistake; `./a:b` and `run x:y` are commands.
            Some((kind, _)) if !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphanumeric()) => {
                Err(SourceError::Kind { kind: kind.to_owned() })
            }
            _ => {
                let words =
                    shlex::split(text).ok_or_else(|| SourceError::Quotes { text: text.to_owned() })?;
                Source::from_command(&words)
            }
        }
    }

    /// Reads a command as it is typed in a shell or stands in a client's configuration, already split into
    /// words. The first word may be a source itself (`npm:NAME`), followed by arguments.
    pub fn from_command(argv: &[String]) -> Result<(Source, Vec<String>), SourceError> {
        let (program, rest) = argv.split_first().ok_or(SourceError::Empty)?;
        if program.is_empty() {
            return Err(SourceError::Empty);
        }
        match program.rsplit('/').next().unwrap_or(program) {
            "npx" => return launcher::npx(rest),
            "uvx" => return launcher::uvx(rest),
            _ => {}
        }
        if ["npm:", "pypi:", "dir:", "oci:", "builtin:"].iter().any(|kind| program.starts_with(kind)) {
            let (source, _) = Source::parse(program)?;
            return Ok((source, rest.to_vec()));
        }
        Ok((Source::Command(vec![program.clone()]), rest.to_vec()))
    }
}

/// Whether `text` can be the name of a program that a package brings: no path, no option.
pub(crate) fn is_program_name(text: &str) -> bool {
    name::program(text)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let package = |f: &mut fmt::Formatter<'_>, kind, name: &str, version: &Option<String>| match version {
            None => write!(f, "{kind}:{name}"),
            Some(version) => write!(f, "{kind}:{name}@{version}"),
        };
        match self {
            Source::Npm { name, version, .. } => package(f, "npm", name, version),
            Source::Pypi { name, version, .. } => package(f, "pypi", name, version),
            Source::Dir(path) => write!(f, "dir:{}", path.display()),
            Source::Oci(reference) => write!(f, "oci:{reference}"),
            Source::Command(argv) => f.write_str(&argv.join(" ")),
            Source::Builtin => f.write_str("builtin:probe"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn npm(name: &str, version: Option<&str>) -> Source {
        Source::Npm { name: name.into(), version: version.map(Into::into), program: None }
    }

    fn pypi(name: &str, version: Option<&str>) -> Source {
        Source::Pypi { name: name.into(), version: version.map(Into::into), program: None, with: Vec::new() }
    }

    #[test]
    fn sources_are_read_as_documented() {
        for (text, source) in [
            ("npm:left-pad", npm("left-pad", None)),
            ("npm:left-pad@1.3.0", npm("left-pad", Some("1.3.0"))),
            ("npm:left-pad@latest", npm("left-pad", None)),
            ("npm:@scope/name", npm("@scope/name", None)),
            ("npm:@scope/name@^1.2", npm("@scope/name", Some("^1.2"))),
            ("pypi:mcp-server-time", pypi("mcp-server-time", None)),
            ("pypi:mcp-server-time@2026.1.26", pypi("mcp-server-time", Some("2026.1.26"))),
            ("pypi:mcp-server-time==2026.1.26", pypi("mcp-server-time", Some("2026.1.26"))),
            ("pypi:mcp[cli]>=1,<2", pypi("mcp[cli]", Some(">=1,<2"))),
            ("dir:./server", Source::Dir("./server".into())),
            ("oci:ghcr.example/x:1", Source::Oci("ghcr.example/x:1".into())),
            ("builtin:probe", Source::Builtin),
            ("/usr/bin/server", Source::Command(vec!["/usr/bin/server".into()])),
            ("npx -y @scope/name", npm("@scope/name", None)),
        ] {
            assert_eq!(Source::parse(text), Ok((source, Vec::new())), "{text}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for text in [
            "",
            " ",
            "npm:",
            "npm:../x",
            "npm:@scope",
            "npm:a/b",
            "npm:.a",
            "npm:a@",
            "npm:a@--registry=x",
            "npm:a@git+ssh://x",
            "npm:a@file:../x",
            "npm:a@npm:b",
            "pypi:",
            "pypi:-x",
            "pypi:a b",
            "pypi:a@",
            "pypi:a @ file:///x",
            "pypi:a;python_version>'3'",
            "dir:",
            "oci:",
            "nmp:left-pad",
            "'a b",
        ] {
            assert!(Source::parse(text).is_err(), "{text:?} was read as {:?}", Source::parse(text));
        }
    }

    #[test]
    fn launchers_are_the_packages_that_they_would_run() {
        for (command, source, args) in [
            ("npx -y @a/b /data --flag", npm("@a/b", None), "/data --flag"),
            ("npx --yes left-pad@1 -y", npm("left-pad", Some("1")), "-y"),
            ("/usr/local/bin/npx -- left-pad -- x", npm("left-pad", None), "-- x"),
            (
                "uvx mcp-server-time --local-timezone UTC",
                pypi("mcp-server-time", None),
                "--local-timezone UTC",
            ),
            ("uvx mcp-server-time@1.0", pypi("mcp-server-time", Some("1.0")), ""),
            ("npm:left-pad a b", npm("left-pad", None), "a b"),
            ("server -p 1", Source::Command(vec!["server".into()]), "-p 1"),
        ] {
            assert_eq!(Source::from_command(&words(command)), Ok((source, words(args))), "{command}");
        }
    }

    #[test]
    fn launchers_may_name_package_and_program_apart() {
        let program = Some("prog".to_owned());
        let npm = Source::Npm { name: "@a/b".into(), version: Some("2".into()), program: program.clone() };
        for command in
            ["npx -y -p @a/b@2 prog x", "npx --package=@a/b@2 -- prog x", "npx --package @a/b@2 prog x"]
        {
            assert_eq!(Source::from_command(&words(command)), Ok((npm.clone(), words("x"))), "{command}");
        }
        let pypi = Source::Pypi {
            name: "pkg".into(),
            version: Some(">=1".into()),
            program,
            with: vec!["mcp<2".into(), "rich".into()],
        };
        let command = "uvx --from pkg>=1 --with mcp<2 --with=rich prog x";
        assert_eq!(Source::from_command(&words(command)), Ok((pypi, words("x"))));
    }

    #[test]
    fn launcher_options_without_meaning_are_refused() {
        for command in [
            "npx",
            "npx -y",
            "npx -c x",
            "npx -p a",
            "npx -p a -p b c",
            "npx --registry=x a",
            "uvx",
            "uvx --python 3.9 a",
            "uvx --index-url x a",
            "uvx --from a",
            "uvx git+x",
        ] {
            assert!(Source::from_command(&words(command)).is_err(), "{command}");
        }
    }

    proptest! {
        #[test]
        fn a_written_package_reads_back(text in "(npm|pypi):[ -~]{0,40}") {
            if let Ok((source, args)) = Source::parse(&text) {
                prop_assert_eq!(&args, &Vec::<String>::new());
                prop_assert_eq!(Source::parse(&source.to_string()), Ok((source, args)));
            }
        }

        #[test]
        fn a_package_never_reads_as_an_option_or_a_path(text in "[ -~]{0,40}") {
            if let Ok((Source::Npm { name, version, .. }, _)) = Source::parse(&format!("npm:{text}")) {
                prop_assert!(!name.starts_with(['-', '.', '/']) && !name.contains(".."));
                prop_assert!(!version.unwrap_or_default().contains(['/', ':', '\\']));
            }
        }
    }
}
