//! `npx` and `uvx` command lines, read as the packages that they would run.

use super::{Source, SourceError, name};

/// Reads the words after `npx`: `[-y] [-p PACKAGE] PACKAGE-OR-PROGRAM [ARGUMENTS]`.
pub(super) fn npx(words: &[String]) -> Result<(Source, Vec<String>), SourceError> {
    const NPX: &str = "npx";
    let refused = |option: &str| SourceError::LauncherOption {
        launcher: NPX,
        option: option.to_owned(),
        instead: "npm:NAME[@VERSION] and --command",
    };
    let mut package: Option<&str> = None;
    let mut rest = words;
    loop {
        let (word, after) = rest.split_first().ok_or(SourceError::LauncherPackage { launcher: NPX })?;
        rest = after;
        match word.as_str() {
            "-y" | "--yes" | "-q" | "--quiet" => {}
            option @ ("-p" | "--package") => {
                let (value, after) = rest.split_first().ok_or_else(|| refused(option))?;
                rest = after;
                if package.replace(value).is_some() {
                    return Err(refused(option));
                }
            }
            "--" => {
                let (word, after) =
                    rest.split_first().ok_or(SourceError::LauncherPackage { launcher: NPX })?;
                return npm_source(package, word, after);
            }
            option if option.starts_with('-') => match option.strip_prefix("--package=") {
                Some(value) if package.is_none() => package = Some(value),
                _ => return Err(refused(option)),
            },
            word => return npm_source(package, word, rest),
        }
    }
}

/// Reads the words after `uvx`: `[--from PACKAGE] [--with PACKAGE]… PACKAGE-OR-PROGRAM [ARGUMENTS]`.
pub(super) fn uvx(words: &[String]) -> Result<(Source, Vec<String>), SourceError> {
    const UVX: &str = "uvx";
    let refused = |option: &str| SourceError::LauncherOption {
        launcher: UVX,
        option: option.to_owned(),
        instead: "pypi:NAME[@VERSION] and --command",
    };
    let mut from: Option<&str> = None;
    let mut extra: Vec<String> = Vec::new();
    let mut rest = words;
    loop {
        let (word, after) = rest.split_first().ok_or(SourceError::LauncherPackage { launcher: UVX })?;
        rest = after;
        let (option, mut value) = match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value)),
            _ => (word.as_str(), None),
        };
        match option {
            "-q" | "--quiet" => {}
            "--from" | "--with" => {
                if value.is_none() {
                    let (next, after) = rest.split_first().ok_or_else(|| refused(option))?;
                    rest = after;
                    value = Some(next);
                }
                let value = value.unwrap_or_default();
                if option == "--with" && name::requirement(value) {
                    extra.push(value.to_owned());
                } else if option == "--with" || from.replace(value).is_some() {
                    return Err(refused(word));
                }
            }
            option if option.starts_with('-') => return Err(refused(word)),
            _ => {
                let mut source = name::pypi(from.unwrap_or(word))?;
                if let Source::Pypi { program, with, .. } = &mut source {
                    *with = extra;
                    *program = from.is_some().then(|| program_name(word)).transpose()?;
                }
                return Ok((source, rest.to_vec()));
            }
        }
    }
}

fn npm_source(
    package: Option<&str>,
    word: &str,
    rest: &[String],
) -> Result<(Source, Vec<String>), SourceError> {
    let mut source = name::npm(package.unwrap_or(word))?;
    if let Source::Npm { program, .. } = &mut source {
        *program = package.is_some().then(|| program_name(word)).transpose()?;
    }
    Ok((source, rest.to_vec()))
}

fn program_name(word: &str) -> Result<String, SourceError> {
    if name::program(word) {
        return Ok(word.to_owned());
    }
    Err(SourceError::Kind { kind: word.to_owned() })
}
