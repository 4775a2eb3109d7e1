//! The command line. Parsed by hand: the probe starts inside emulated machines, where every page of an
//! argument parser would be paid for at each start.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};

/// What `--help` prints.
pub const HELP: &str = "\
casemate-probe: a small MCP server for tests

Usage: casemate-probe [OPTIONS]

  --era legacy|modern|both   revisions to speak: up to 2025-11-25, 2026-07-28, or both [default: both]
  --http PORT                serve Streamable HTTP at /mcp instead of stdio; 0 picks a free port
  --host ADDRESS             the address to listen on with --http [default: 127.0.0.1]
  --misbehave MODE           on stdio: exit-at-once, never-answer, garbage, long-line, close-stdout,
                             ignore-stdin, mirror (each byte comes back), stderr-flood or
                             call-home (looks outside before reading anything)
  --help, --version
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Serve(Options),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// How to serve.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// The revisions to speak.
    pub eras: Eras,
    /// On which transport.
    pub transport: Transport,
}

/// Which eras are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eras {
    /// Revisions with `initialize`.
    Legacy,
    /// The stateless revision.
    Modern,
    /// Either, as the client opens.
    Both,
}

/// Where clients come from.
#[derive(Debug, PartialEq, Eq)]
pub enum Transport {
    /// stdin and stdout.
    Stdio(Option<Misbehaviour>),
    /// Streamable HTTP.
    Http {
        /// The address to listen on.
        host: IpAddr,
        /// The port; 0 picks one.
        port: u16,
    },
}

/// What to do wrong on stdio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Ends with status 1 before reading anything.
    ExitAtOnce,
    /// Reads everything, answers nothing.
    NeverAnswer,
    /// Writes lines that are no JSON before each message.
    Garbage,
    /// Writes a line of 100 MB before the first message.
    LongLine,
    /// Closes stdout and stays alive until stdin ends.
    CloseStdout,
    /// Never reads and never ends.
    IgnoreStdin,
    /// Gives back what it reads, byte for byte, until stdin ends.
    Mirror,
    /// Writes 32 MiB to stderr before reading anything.
    StderrFlood,
    /// Fetches something from outside before reading anything.
    CallHome,
}

/// Why a command line was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// No such option.
    #[error("unknown option {0:?}")]
    Unknown(String),
    /// The option needs a value.
    #[error("{0} needs a value")]
    Missing(&'static str),
    /// The option does not take this value.
    #[error("{option} does not take {value:?}")]
    Value {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// These two cannot be combined.
    #[error("{0} and {1} exclude each other")]
    Conflict(&'static str, &'static str),
}

/// Reads the arguments after the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, ArgsError> {
    let mut arguments = arguments.into_iter().map(|argument| argument.to_string_lossy().into_owned());
    let (mut eras, mut host, mut port, mut misbehaviour) = (Eras::Both, None, None, None);
    while let Some(argument) = arguments.next() {
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let mut value =
            |option| inline.clone().or_else(|| arguments.next()).ok_or(ArgsError::Missing(option));
        match name.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--version" | "-V" => return Ok(Command::Version),
            "--era" => eras = choose("--era", value("--era")?, era)?,
            "--http" => port = Some(choose("--http", value("--http")?, |text| text.parse().ok())?),
            "--host" => host = Some(choose("--host", value("--host")?, |text| text.parse().ok())?),
            "--misbehave" => {
                misbehaviour = Some(choose("--misbehave", value("--misbehave")?, misbehave)?);
            }
            _ => return Err(ArgsError::Unknown(name)),
        }
    }
    let transport = match (port, host, misbehaviour) {
        (Some(_), _, Some(_)) => return Err(ArgsError::Conflict("--http", "--misbehave")),
        (Some(port), host, None) => {
            Transport::Http { host: host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port }
        }
        (None, Some(_), _) => return Err(ArgsError::Missing("--http")),
        (None, None, misbehaviour) => Transport::Stdio(misbehaviour),
    };
    Ok(Command::Serve(Options { eras, transport }))
}

fn choose<T>(
    option: &'static str,
    value: String,
    meaning: impl Fn(&str) -> Option<T>,
) -> Result<T, ArgsError> {
    meaning(&value).ok_or(ArgsError::Value { option, value })
}

fn era(text: &str) -> Option<Eras> {
    Some(match text {
        "legacy" => Eras::Legacy,
        "modern" => Eras::Modern,
        "both" => Eras::Both,
        _ => return None,
    })
}

fn misbehave(text: &str) -> Option<Misbehaviour> {
    Some(match text {
        "exit-at-once" => Misbehaviour::ExitAtOnce,
        "never-answer" => Misbehaviour::NeverAnswer,
        "garbage" => Misbehaviour::Garbage,
        "long-line" => Misbehaviour::LongLine,
        "close-stdout" => Misbehaviour::CloseStdout,
        "ignore-stdin" => Misbehaviour::IgnoreStdin,
        "mirror" => Misbehaviour::Mirror,
        "stderr-flood" => Misbehaviour::StderrFlood,
        "call-home" => Misbehaviour::CallHome,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, ArgsError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn no_arguments_mean_stdio_in_both_eras() {
        let expected = Options { eras: Eras::Both, transport: Transport::Stdio(None) };
        assert_eq!(read(""), Ok(Command::Serve(expected)));
    }

    #[test]
    fn values_follow_or_are_attached() {
        let expected = Options {
            eras: Eras::Modern,
            transport: Transport::Http { host: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), port: 80 },
        };
        assert_eq!(read("--era=modern --http 80 --host ::1"), Ok(Command::Serve(expected)));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert_eq!(read("--tick"), Err(ArgsError::Unknown("--tick".into())));
        assert_eq!(read("--era"), Err(ArgsError::Missing("--era")));
        assert_eq!(read("--http 65536"), Err(ArgsError::Value { option: "--http", value: "65536".into() }));
        assert_eq!(read("--http 0 --misbehave garbage"), Err(ArgsError::Conflict("--http", "--misbehave")));
        assert_eq!(read("--host ::1"), Err(ArgsError::Missing("--http")));
    }
}
