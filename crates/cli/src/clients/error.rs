//! What can be wrong with a client's configuration.

use crate::error::Error;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a client's configuration cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing says where the file is.
    #[error("cannot tell where the client keeps its configuration: {variable} is not set")]
    Unset {
        /// The variable of the environment that would say it.
        variable: &'static str,
    },
    /// There is no such file.
    #[error("there is no {path}")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is a folder, a device, a pipe or a socket.
    #[error("{path} is no regular file")]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// The file is a link to nothing.
    #[error("{path} is a link to a file that does not exist")]
    Dangling {
        /// The link.
        path: PathBuf,
    },
    /// The file is larger than any configuration.
    #[error("{path} is larger than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// The file is no text.
    #[error("{path} is not UTF-8")]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file, or its backup, cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the file says cannot be edited.
    #[error("{path}: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Mistake,
    },
    /// Somebody else wrote the file between reading and writing it.
    #[error("{path} was changed meanwhile by another program")]
    Raced {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing to go back to.
    #[error("casemate has left no backup beside {path}")]
    NoBackup {
        /// The file.
        path: PathBuf,
    },
    /// Going back would lose what was written since.
    #[error("{path} was changed after casemate wrote it")]
    ChangedSince {
        /// The file.
        path: PathBuf,
        /// What it was before casemate wrote it.
        backup: PathBuf,
    },
}

/// Why a text cannot be edited. Says nothing of the text's values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// It is no JSON or TOML.
    #[error("line {line}: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Which of two is meant cannot be told.
    #[error("line {line}: {key:?} is there twice")]
    Twice {
        /// Of the second one, counted from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// Something else stands where servers, or settings of one, should.
    #[error("{what} is {found}, where a table is expected")]
    NoTable {
        /// What it is called.
        what: String,
        /// What it is.
        found: &'static str,
    },
    /// Its layout could not be kept.
    #[error("its layout would not stay as it is: its lines may end differently")]
    Layout,
}

impl ClientError {
    /// What is wrong with the content of a file.
    pub(crate) fn content(path: &Path) -> impl FnOnce(Mistake) -> Self + use<> {
        let path = path.to_owned();
        |source| Self::Content { path, source }
    }

    /// The next thing to try.
    fn hint(&self) -> String {
        match self {
            Self::Unset { variable } => format!("set {variable}, or name the file with --file PATH"),
            Self::Missing { .. } => "start the client once, or name its file with --file PATH".to_owned(),
            Self::NotRegular { .. } => "name the client's configuration with --file PATH".to_owned(),
            Self::Dangling { path } => {
                format!("make the file that it leads to, or remove {}", path.display())
            }
            Self::TooLarge { .. } | Self::NotText { .. } => {
                "check that it is the client's configuration; --file PATH names another one".to_owned()
            }
            Self::Read { .. } => "check that you may read the file".to_owned(),
            Self::Write { .. } => "check that you may write to the file and its folder".to_owned(),
            Self::Content { source: Mistake::Layout, .. } => {
                "end all of its lines alike, or paste what `casemate client-config CLIENT` prints".to_owned()
            }
            Self::Content { .. } => "correct the file; nothing was written".to_owned(),
            Self::Raced { .. } => "end the client and try again; nothing was written".to_owned(),
            Self::NoBackup { .. } => {
                "there is one after --write only; --file PATH names another file".to_owned()
            }
            Self::ChangedSince { backup, .. } => format!(
                "--undo --force puts back casemate's entries alone and keeps the other changes; {} is the whole file as it was",
                backup.display()
            ),
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        let (hint, message) = (error.hint(), error.to_string());
        let told = Self::configuration(message).hint(hint);
        match error {
            ClientError::Read { source, .. } | ClientError::Write { source, .. } => told.because(source),
            _ => told,
        }
    }
}
