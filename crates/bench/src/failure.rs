//! Why something was not measured.

use casemate_testkit::ClientError;
use std::{error::Error, io, path::PathBuf, time::Duration};

/// Why something was not measured.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// This host or this version of casemate has not got it: asking again will not help.
    #[error("{0}")]
    Unavailable(String),
    /// A program could not be started.
    #[error("start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command said that it failed.
    #[error("{command} ended with {status}: {said}")]
    Command {
        /// Program and arguments.
        command: String,
        /// Its exit code, or the signal.
        status: String,
        /// The end of what it printed to stderr.
        said: String,
    },
    /// A command ran longer than it may.
    #[error("{command} took longer than {} s", .limit.as_secs())]
    Late {
        /// Program and arguments, or what was waited for.
        command: String,
        /// How long it might take.
        limit: Duration,
    },
    /// A conversation broke.
    #[error(transparent)]
    Conversation(#[from] ClientError),
    /// A file or folder could not be used.
    #[error("{action} {}", .path.display())]
    File {
        /// What was to be done to it.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("{action}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The output of a command is not what it promises.
    #[error("the output of {command} is not the JSON that it promises")]
    Output {
        /// Program and arguments.
        command: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A tool answered something else.
    #[error("expected {expected}, got {answer}")]
    Answer {
        /// What the answer had to contain.
        expected: String,
        /// The beginning of the answer.
        answer: String,
    },
    /// A machine did not start as it was meant to.
    #[error("the start was {start}: {reason}")]
    Restoration {
        /// How it started.
        start: String,
        /// What `status` says about it.
        reason: String,
    },
    /// A guest did not come to userspace.
    #[error("the guest did not say that it runs within {after:?}; its console says: {said:?}")]
    Guest {
        /// When it was given up, or ended.
        after: Duration,
        /// The end of what it said.
        said: String,
    },
    /// No machine of the server is listed.
    #[error("status lists no machine of {server}")]
    NoMachine {
        /// The server.
        server: String,
    },
    /// A process's memory is not shown.
    #[error("process {pid} shows no memory")]
    NoMemory {
        /// The process.
        pid: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Failure {
    /// Turns an error about a file into a failure.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// Turns an error of the system into a failure.
    pub fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { action, source: source.into() }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
