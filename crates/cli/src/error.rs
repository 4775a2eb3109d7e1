//! Errors of commands: what failed, why, what to try next, where the log is; and the one place where exit
//! codes are decided.

use std::{
    error::Error as StdError,
    fmt,
    path::{Path, PathBuf},
};

/// Whose fault an error is, as scripts see it in the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The thing that was asked about failed: a check, a tool.
    Failed,
    /// The command line is wrong.
    Usage,
    /// The configuration is wrong, or names something that does not exist.
    Configuration,
    /// This host, or this version of casemate, cannot do it.
    Unavailable,
    /// The server or its machine failed.
    Server,
    /// A signal of that number ended the command.
    Interrupted(u8),
}

impl Kind {
    /// The reader of standard output has seen enough, as in `casemate status | head -1`: no error to print.
    pub const BROKEN_PIPE: Self = Self::Interrupted(13);

    /// The exit code that the command ends with.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Configuration => 3,
            Self::Unavailable => 4,
            Self::Server => 5,
            Self::Interrupted(signal) => 128 + signal,
        }
    }
}

/// How a command that met no error ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for is done.
    Done,
    /// What was asked about failed, and standard output says how.
    Failed,
    /// The server gave no answer, and standard output says so.
    Unanswered,
}

impl Outcome {
    /// The exit code that the command ends with.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => Kind::Failed.exit_code(),
            Self::Unanswered => Kind::Server.exit_code(),
        }
    }
}

/// An error as the user meets it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    hint: Option<String>,
    log: Option<PathBuf>,
}

impl Error {
    /// An error of a kind; the message is a lowercase phrase that names operation and object.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None, hint: None, log: None }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A wrong configuration.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::new(Kind::Configuration, message)
    }

    /// Something that this host or this version cannot do.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// A server or machine that failed.
    pub fn server(message: impl Into<String>) -> Self {
        Self::new(Kind::Server, message)
    }

    /// Adds the cause, which the message does not repeat.
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds the next thing to try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the next thing to try, if there is one.
    pub fn maybe_hint(mut self, hint: Option<impl Into<String>>) -> Self {
        self.hint = hint.map(Into::into).or(self.hint);
        self
    }

    /// Adds where more is written.
    pub fn log(mut self, path: &Path) -> Self {
        self.log = Some(path.to_owned());
        self
    }

    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message and its causes, one a line, each once, then hint and log.
    pub fn report(&self) -> Report<'_> {
        Report(self)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// An [`Error`] as it is printed at the end of a command.
#[derive(Debug)]
pub struct Report<'a>(&'a Error);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.0;
        let mut said = error.message.clone();
        writeln!(f, "{}", error.message)?;
        let mut next = error.source();
        while let Some(cause) = next {
            // A transparent wrapper says what its source says; one of them is enough.
            let text = cause.to_string();
            if text != said {
                writeln!(f, "  because: {text}")?;
            }
            said = text;
            next = cause.source();
        }
        if has_full_disk(error) {
            writeln!(
                f,
                "hint: make room on the disk of CASEMATE_HOME, or set it to a folder on another one"
            )?;
        } else if let Some(hint) = &error.hint {
            writeln!(f, "hint: {hint}")?;
        }
        if let Some(log) = &error.log {
            writeln!(f, "log: {}", log.display())?;
        }
        Ok(())
    }
}

/// Whether a full disk is behind an error, whatever failed because of it.
fn has_full_disk(error: &Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let mut next = error.source();
    while let Some(cause) = next {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(StorageFull | QuotaExceeded)) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// An error and its causes on one line.
pub fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// The candidate that a mistyped word was probably meant to be.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // 0.7 accepts a swapped pair or a missing letter in a short word and refuses an unrelated word.
    const SIMILAR: f64 = 0.7;
    let rated = candidates.into_iter().map(|candidate| (strsim::jaro_winkler(word, candidate), candidate));
    rated.filter(|(score, _)| *score >= SIMILAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let kinds = [Kind::Failed, Kind::Usage, Kind::Configuration, Kind::Unavailable, Kind::Server];
        assert_eq!(kinds.map(Kind::exit_code), [1, 2, 3, 4, 5]);
        assert_eq!(Kind::Interrupted(2).exit_code(), 130);
        let outcomes = [Outcome::Done, Outcome::Failed, Outcome::Unanswered];
        assert_eq!(outcomes.map(Outcome::exit_code), [0, 1, 5]);
    }

    #[test]
    fn a_report_says_each_cause_once() {
        let inner = std::io::Error::other("disk is full");
        let error = Error::server("cannot start x")
            .because(Error::server("disk is full").because(inner))
            .hint("make room")
            .log(Path::new("/l"));
        let expected = "cannot start x\n  because: disk is full\nhint: make room\nlog: /l\n";
        assert_eq!(error.report().to_string(), expected);
    }

    #[test]
    fn a_full_disk_has_a_hint_of_its_own() {
        let full = Error::server("b").because(std::io::Error::from(std::io::ErrorKind::StorageFull));
        let report = Error::server("a").because(full).hint("check the network").report().to_string();
        assert!(report.contains("hint: make room on the disk") && !report.contains("network"), "{report}");
    }

    #[test]
    fn the_nearest_word_is_near() {
        assert_eq!(nearest("memroy_mb", ["vcpus", "memory_mb", "env"]), Some("memory_mb"));
        assert_eq!(nearest("zebra", ["vcpus", "memory_mb"]), None);
    }
}
