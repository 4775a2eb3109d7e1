//! Which files are read.

use super::{ConfigError, Configuration, written::Document};
use std::{fs::File, io::Read, path::Path};

/// Larger files are no configuration.
const LIMIT: u64 = 1 << 20;

/// The files of a home folder that are read if they are there; the first one that speaks about a default
/// decides it.
const NAMES: [&str; 3] = ["config.toml", "isolation_config.toml", "isolation_config.json"];

/// Reads the file that was asked for, else those of the home folder that exist.
pub fn load(home: &Path, asked: Option<&Path>) -> Result<Configuration, ConfigError> {
    let mut configuration = Configuration::default();
    if let Some(path) = asked {
        configuration.add(document(path)?)?;
        return Ok(configuration);
    }
    for path in NAMES.map(|name| home.join(name)) {
        match document(&path) {
            Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => configuration.add(other?)?,
        }
    }
    Ok(configuration)
}

fn document(path: &Path) -> Result<Document, ConfigError> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(LIMIT + 1).read_to_string(&mut text).map(|_| text)
    };
    let text = read().map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if text.len() as u64 > LIMIT {
        return Err(ConfigError::TooLarge { path: path.to_owned(), limit: LIMIT });
    }
    Document::parse(path, &text)
}
