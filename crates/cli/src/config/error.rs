//! What can be wrong with a configuration file.

use crate::error::Kind;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// The line, counted from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write configuration {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another command keeps the file from being written.
    #[error("cannot write configuration {path}")]
    Locked {
        /// The file.
        path: PathBuf,
        /// Who has it, and what to do.
        #[source]
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("configuration {path} is larger than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// The name says neither TOML nor JSON.
    #[error("configuration {path} ends neither in .toml nor in .json")]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// It is no TOML or JSON.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// The parser's words.
        message: String,
    },
    /// A key that nothing reads.
    #[error("{place}: unknown key {key:?} in {table}")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// The table that it stands in.
        table: String,
        /// The known key that was probably meant.
        nearest: Option<String>,
        /// All known keys of the table.
        known: Vec<&'static str>,
    },
    /// A value of the wrong type.
    #[error("{place}: {key} is {found}, where {expected} is expected")]
    Type {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// What stands there.
        found: &'static str,
        /// What should.
        expected: &'static str,
    },
    /// A key that has to be there.
    #[error("{place}: {table} has no {key:?}")]
    Missing {
        /// Where its table begins.
        place: Place,
        /// The key.
        key: &'static str,
        /// The table.
        table: String,
    },
    /// A value of the right type that means nothing.
    #[error("{place}: {key} cannot be used")]
    Value {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Two settings that say the same thing, or exclude each other.
    #[error("{place}: {key} is given beside {other}")]
    Conflict {
        /// Where.
        place: Place,
        /// The second key.
        key: &'static str,
        /// The first key.
        other: &'static str,
    },
    /// Two servers of one name.
    #[error("{place}: server {name} is defined already at {first}")]
    Duplicate {
        /// Where the second is.
        place: Place,
        /// The name.
        name: String,
        /// Where the first is.
        first: Place,
    },
    /// Two tables of one tool.
    #[error("{place}: tool {name:?} is described already at {first}")]
    DuplicateTool {
        /// Where the second is.
        place: Place,
        /// The tool.
        name: String,
        /// Where the first is.
        first: Place,
    },
}

impl ConfigError {
    /// The next thing to try.
    pub fn hint(&self) -> String {
        match self {
            Self::Read { .. } => "check that the file exists and can be read".to_owned(),
            Self::Write { .. } => "check that the folder exists and can be written to".to_owned(),
            Self::Locked { .. } => "then try again".to_owned(),
            Self::TooLarge { .. } | Self::Syntax { .. } => "correct the file".to_owned(),
            Self::Format { .. } => "give a file named *.toml or *.json".to_owned(),
            Self::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean {nearest:?}?"),
            Self::UnknownKey { known, .. } => format!("known keys there: {}", known.join(", ")),
            Self::Type { place, expected, .. } => format!("write {expected} in line {}", place.line),
            Self::Missing { key, place, .. } => format!("add {key:?} to the table in line {}", place.line),
            Self::Value { place, .. } => format!("correct line {}", place.line),
            Self::Conflict { key, other, .. } => format!("keep one of {key} and {other}"),
            Self::Duplicate { .. } => "rename or remove one of the two".to_owned(),
            Self::DuplicateTool { .. } => "write one table for it".to_owned(),
        }
    }
}

impl From<ConfigError> for crate::error::Error {
    fn from(error: ConfigError) -> Self {
        let hint = error.hint();
        let kind = match error {
            ConfigError::Locked { .. } => Kind::Unavailable,
            _ => Kind::Configuration,
        };
        let (message, source) = match error {
            ConfigError::Value { source, place, key } => {
                (format!("{place}: {key} cannot be used"), Some(source))
            }
            ConfigError::Read { path, source } => {
                (format!("cannot read configuration {}", path.display()), Some(source.into()))
            }
            ConfigError::Write { path, source } | ConfigError::Locked { path, source } => {
                (format!("cannot write configuration {}", path.display()), Some(source.into()))
            }
            other => (other.to_string(), None),
        };
        let error = Self::new(kind, message).hint(hint);
        match source {
            Some(source) => error.because(source),
            None => error,
        }
    }
}
