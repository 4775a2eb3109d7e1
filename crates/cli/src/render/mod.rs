//! What people see: tables, colours where they belong, progress.

pub mod progress;
pub mod table;

use crate::error::{Error, Kind};
use console::{Style, Term};
use serde::Serialize;
use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// Where output goes, and how it may look there. Colours are decided by `console`, which honours
/// `NO_COLOR` and `CLICOLOR`.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Nothing but errors on standard error.
    pub quiet: bool,
    /// The width of a line on standard output, if it is a terminal.
    pub width: Option<usize>,
    /// Standard error is a terminal: progress may be drawn over itself.
    pub live: bool,
}

impl Screen {
    /// Looks at this process's standard output and error.
    pub fn new(quiet: bool) -> Self {
        let stdout = Term::stdout();
        let width = io::stdout().is_terminal().then(|| usize::from(stdout.size().1));
        Self { quiet, width, live: io::stderr().is_terminal() && !quiet }
    }

    /// Prints text on standard output, as it is.
    pub fn print(&self, text: &str) -> Result<(), Error> {
        self.write(text.as_bytes())
    }

    /// Writes bytes to standard output, as they are.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(output_error)
    }

    /// Prints a line on standard output.
    pub fn line(&self, text: &str) -> Result<(), Error> {
        self.print(&format!("{text}\n"))
    }

    /// Prints a value as JSON, indented.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Error> {
        // Our own types have string keys and no failing serialisation.
        self.line(&serde_json::to_string_pretty(value).unwrap_or_default())
    }

    /// Says something on standard error, unless it is to be quiet.
    pub fn note(&self, message: &str) {
        if !self.quiet {
            eprint_line(message);
        }
    }

    /// Says what is done or found although nothing failed and the user should know.
    pub fn warn(&self, message: &str) {
        if !self.quiet {
            let word = Style::new().for_stderr().yellow().bold().apply_to("note:");
            eprint_line(&format!("{word} {message}"));
        }
    }
}

/// Prints an error with its causes, its hint and its log.
pub fn error(error: &Error) {
    let word = Style::new().for_stderr().red().bold().apply_to("error:");
    // A guest's console, or a server's last words, may be part of it.
    let report = harmless(&error.report().to_string().replace("\r\n", "\n"));
    eprint_line(format!("{word} {report}").trim_end());
}

/// Text from a server or a registry, made harmless for a terminal: control characters could move the
/// cursor or change what was printed before.
pub fn harmless(text: &str) -> String {
    let clean = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(clean).collect()
}

/// The first line of a text, harmless and without space around it.
pub fn first_line(text: &str) -> String {
    harmless(text.trim().lines().next().unwrap_or_default().trim_end())
}

/// A list of names for people, who do not read hundreds of them.
pub fn names(names: &[impl std::fmt::Display]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(more) = names.len().checked_sub(SHOWN).filter(|&more| more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// `1 machine`, `2 machines`.
pub fn machines(count: usize) -> String {
    format!("{count} {}", if count == 1 { "machine" } else { "machines" })
}

/// A number of bytes for people.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// A duration in milliseconds for people.
pub fn milliseconds(ms: u64) -> String {
    match ms {
        0..=9_999 => format!("{ms} ms"),
        10_000..=119_999 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        120_000..=7_199_999 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// A length of time for people, to whom its beginning is long ago.
pub fn coarse(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Prints a line on standard error.
pub fn eprint_line(text: &str) {
    // There is nobody left to tell if standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn output_error(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Error::new(Kind::BROKEN_PIPE, "standard output was closed");
    }
    Error::new(Kind::Failed, "cannot write to standard output").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_drive_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\r\u{7}\u{9b}c\n\td"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c\n\td");
        assert_eq!(first_line("\n  one\u{1b} \ntwo"), "one\u{fffd}");
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(names(&[1, 2]), "1, 2");
        assert_eq!(names(&[1, 2, 3, 4, 5, 6, 7, 8]), "1, 2, 3, 4, 5, 6, 7, 8");
        assert_eq!(names(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), "1, 2, 3, 4, 5, 6, 7, 8 and 2 more");
    }

    #[test]
    fn durations_are_short() {
        let shown = [5, 9_999, 12_345, 600_000, 9_000_000].map(milliseconds);
        assert_eq!(shown, ["5 ms", "9999 ms", "12.3 s", "10 min", "2 h"]);
        let shown = [0, 119, 120, 7_200, 172_800].map(|seconds| coarse(Duration::from_secs(seconds)));
        assert_eq!(shown, ["0 s", "119 s", "2 min", "2 h", "2 days"]);
    }
}
