//! Package names and versions of the two registries.

use super::{Source, SourceError};

/// The longest name that npm accepts; PyPI's own names are far shorter.
const NAME_BYTES: usize = 214;
const VERSION_BYTES: usize = 128;

/// Reads `NAME[@VERSION]` of npm.
pub(super) fn npm(text: &str) -> Result<Source, SourceError> {
    // A scope begins with `@` as well: the version's `@` is the first one after the first character.
    let at = text.char_indices().skip(1).find(|&(_, c)| c == '@').map(|(at, _)| at);
    let (name, version) = match at {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let well_formed = match name.strip_prefix('@').map(|scoped| scoped.split_once('/')) {
        None => npm_part(name),
        Some(None) => false,
        Some(Some((scope, name))) => npm_part(scope) && npm_part(name),
    };
    if !well_formed || name.len() > NAME_BYTES {
        return Err(SourceError::Name { registry: "npm", name: name.to_owned() });
    }
    Ok(Source::Npm { name: name.to_owned(), version: known(name, version, npm_version)?, program: None })
}

/// Reads `NAME[EXTRAS][@VERSION or a version specifier]` of PyPI.
pub(super) fn pypi(text: &str) -> Result<Source, SourceError> {
    let end = text.find(['@', '=', '<', '>', '!', '~']).unwrap_or(text.len());
    let (name, version) = (&text[..end], &text[end..]);
    let version = match version.strip_prefix('@').or_else(|| version.strip_prefix("===")) {
        Some(version) => Some(version),
        None if version.is_empty() => None,
        None => Some(version),
    };
    // `==1` alone is the version 1; `==1.*` and `==1,!=1.2` stay specifiers.
    let version = match version.and_then(|version| version.strip_prefix("==")) {
        Some(exact) if !exact.contains(['*', ',']) => Some(exact),
        _ => version,
    };
    let (bare, extras) = match name.split_once('[') {
        None => (name, None),
        Some((bare, extras)) => (bare, Some(extras.strip_suffix(']').unwrap_or("]"))),
    };
    let extras_known = extras.is_none_or(|extras| extras.split(',').all(pypi_name));
    if !pypi_name(bare) || !extras_known || name.len() > NAME_BYTES {
        return Err(SourceError::Name { registry: "PyPI", name: name.to_owned() });
    }
    let version = known(name, version, pypi_version)?;
    Ok(Source::Pypi { name: name.to_owned(), version, program: None, with: Vec::new() })
}

/// Whether `text` is a PyPI requirement that this crate accepts: a name and versions, no address, no marker.
pub(super) fn requirement(text: &str) -> bool {
    pypi(text).is_ok()
}

/// Whether `text` can be the name of a program that a package brings.
pub(super) fn program(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_BYTES
        && !text.starts_with(['-', '.'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn known(
    name: &str,
    version: Option<&str>,
    well_formed: fn(&str) -> bool,
) -> Result<Option<String>, SourceError> {
    match version {
        None | Some("latest") => Ok(None),
        Some(version) if well_formed(version) => Ok(Some(version.to_owned())),
        Some(version) => Err(SourceError::Version { name: name.to_owned(), version: version.to_owned() }),
    }
}

fn npm_part(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with(['.', '-'])
        && !part.contains("..")
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.~".contains(c))
}

fn npm_version(version: &str) -> bool {
    !version.is_empty()
        && version.len() <= VERSION_BYTES
        && !version.starts_with(['-', '.', ' '])
        && !version.ends_with(' ')
        && version.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+^~<>=*| ".contains(c))
}

fn pypi_name(name: &str) -> bool {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    alphanumeric(name.chars().next())
        && alphanumeric(name.chars().last())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn pypi_version(version: &str) -> bool {
    !version.is_empty()
        && version.len() <= VERSION_BYTES
        && version.starts_with(|c: char| c.is_ascii_alphanumeric() || "=<>!~".contains(c))
        && version.chars().any(|c| c.is_ascii_digit())
        && version.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+*!<>=~,".contains(c))
}
