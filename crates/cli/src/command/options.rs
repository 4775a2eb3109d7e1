//! Options that several commands share.

use crate::{
    config::transport::TransportOptions,
    engine::{BackendKind, Isolation, Restart},
    error::Error,
    mounts::{FolderWish, VolumeWish},
    secrets::{SecretOption, SecretWish},
    units::Idle,
};
use casemate_machine::egress::{Allow, Egress, Forward};
use clap::builder::{PossibleValuesParser, TypedValueParser};

/// The least and the most memory of a machine, in MiB. With 78 the distribution's kernel has not enough to
/// unpack what it boots from, and panics.
pub const MEMORY_MB: std::ops::RangeInclusive<u32> = 80..=65536;

/// The least and the most memory of all machines together, in MiB.
pub const MEMORY_LIMIT_MB: std::ops::RangeInclusive<u32> = 80..=1 << 30;

/// The fewest and the most virtual processors of a machine.
pub const VCPUS: std::ops::RangeInclusive<u32> = 1..=32;

/// Options of the machine that a command may start.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineOptions {
    /// The weakest wall that will do; the strongest that works here at this level or above is used
    #[arg(long, value_name = "LEVEL", value_parser = isolation_parser())]
    pub isolation: Option<Isolation>,
    /// What makes the machine, instead of the strongest backend that works
    #[arg(long, value_name = "NAME", value_parser = backend_parser())]
    pub backend: Option<BackendKind>,
    /// Memory in MiB, 80 to 65536 [default: 256]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(80..=65536))]
    pub memory: Option<u32>,
    /// Virtual processors, 1 to 32 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub vcpus: Option<u32>,
}

impl ServerOptions {
    /// Secrets of the server.
    pub fn secrets(&self) -> Result<Vec<SecretWish>, Error> {
        let wishes = self.secret.iter().cloned().map(SecretOption::meant);
        wishes.collect::<Result<_, _>>().map_err(|error| {
            Error::usage("--secret cannot be used")
                .because(error)
                .hint("say where it is, as in --secret TOKEN=env:GITHUB_TOKEN")
        })
    }

    /// Arguments of the server after those that it has.
    pub fn further_args(&self) -> Result<Vec<String>, Error> {
        let split = |text: &String| {
            shlex::split(text)
                .ok_or_else(|| Error::usage(format!("the quotes of --args {text:?} do not match")))
        };
        Ok(self.further_args.iter().map(split).collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// What the server may reach.
    pub fn egress(&self) -> Egress {
        Egress { allow: self.allow.clone(), forward: self.forward.clone() }
    }
}

impl MachineOptions {
    /// Asks for a microVM, unless something else was asked for.
    pub fn ask_for_microvm(&mut self) {
        if self.isolation.is_none() && self.backend.is_none() {
            self.isolation = Some(Isolation::Microvm);
        }
    }
}

/// Options of the server that a machine runs.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServerOptions {
    /// The command to run, split into words as a shell does, but run without one
    #[arg(long, value_name = "TEXT")]
    pub command: Option<String>,
    /// Give the server further arguments, split into words as a shell does; may be repeated
    #[arg(long = "args", value_name = "TEXT", allow_hyphen_values = true)]
    pub further_args: Vec<String>,
    /// Set an environment variable of the server; may be repeated
    #[arg(long, value_name = "K=V", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Give the server a secret; with ,placeholder the host alone has it, and puts it into requests over TLS to a
    /// host that is allowed; may be repeated
    #[arg(
        long,
        value_name = "NAME=env:VAR|file:PATH|cmd:COMMAND|keyring:KEY[,placeholder[=HOST:PORT]]",
        value_parser = SecretOption::read
    )]
    pub secret: Vec<SecretOption>,
    /// Let the server reach a host, or the hosts below a name (*.SUFFIX:PORT); may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub allow: Vec<Allow>,
    /// Have a port on the machine's loopback lead to a host; may be repeated
    #[arg(long, value_name = "GUESTPORT=HOST:PORT")]
    pub forward: Vec<Forward>,
    /// How it is reached.
    #[command(flatten)]
    pub transport: TransportOptions,
    /// Give the server a folder of this host to read, as it is now; may be repeated
    #[arg(long, value_name = "HOST:GUEST[:ro]", value_parser = FolderWish::here)]
    pub mount: Vec<FolderWish>,
    /// Give the server a volume to write to, which outlives the machine; made if it is not there [size: 1GiB]
    #[arg(long, value_name = "NAME:GUEST[:SIZE]")]
    pub volume: Vec<VolumeWish>,
}

/// Options of the start of a machine.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct StartOptions {
    /// Neither start from a template nor make one
    #[arg(long)]
    pub cold: bool,
    /// What becomes of it.
    #[command(flatten)]
    pub life: LifeOptions,
}

/// Options of what becomes of a machine that is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct LifeOptions {
    /// Suspend the machine after so long without a request, such as 90s or 10m; the next request resumes it
    #[arg(long, value_name = "TIME|never")]
    pub idle: Option<Idle>,
    /// What is done when the machine fails: never (nothing), or on-failure (start it anew, 5 times in a row)
    #[arg(long, value_name = "POLICY", value_parser = restart_parser())]
    pub restart: Option<Restart>,
}

/// Options of later versions: understood, and refused.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct LaterOptions {
    /// Start from this template (not built yet)
    #[arg(long, value_name = "KEY", hide = true)]
    pub template: Option<String>,
}

impl LaterOptions {
    /// Refuses the first option that was given, rather than dropping it.
    pub fn refuse(&self) -> Result<(), Error> {
        let given = [("--template", "the machine starts from its server's own", self.template.is_some())];
        match given.iter().find(|(_, _, given)| *given) {
            None => Ok(()),
            Some((option, without, _)) => {
                Err(Error::unavailable(format!("{option} is not built yet, and without it {without}"))
                    .hint(format!("leave {option} out if the server can do without")))
            }
        }
    }
}

fn isolation_parser() -> impl TypedValueParser<Value = Isolation> {
    PossibleValuesParser::new(Isolation::ALL.iter().map(|level| level.as_str()))
        .try_map(|word| word.parse::<Isolation>())
}

fn restart_parser() -> impl TypedValueParser<Value = Restart> {
    PossibleValuesParser::new(Restart::ALL.iter().map(|policy| policy.as_str()))
        .try_map(|word| word.parse::<Restart>())
}

fn backend_parser() -> impl TypedValueParser<Value = BackendKind> {
    PossibleValuesParser::new(BackendKind::ALL.iter().map(|kind| kind.as_str()))
        .try_map(|word| word.parse::<BackendKind>())
}

/// Why a text is no variable of an environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVariable {
    /// There is no `=`.
    #[error("no '=' in it; write NAME=VALUE")]
    NoValue,
    /// The name is none.
    #[error("{0:?} is no name of a variable: use letters, digits and '_', beginning with no digit")]
    Name(String),
    /// No environment can hold it.
    #[error("the value of {0} contains a zero byte")]
    Zero(String),
}

/// Reads `K=V`.
pub fn variable(text: &str) -> Result<(String, String), InvalidVariable> {
    let (name, value) = text.split_once('=').ok_or(InvalidVariable::NoValue)?;
    check_variable(name, value)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Checks that an environment can hold this variable.
pub fn check_variable(name: &str, value: &str) -> Result<(), InvalidVariable> {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(InvalidVariable::Name(name.to_owned()));
    }
    if value.contains('\0') {
        return Err(InvalidVariable::Zero(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_split_at_the_first_equals_sign() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        assert_eq!(variable("A"), Err(InvalidVariable::NoValue));
        assert!(matches!(variable("1A=x"), Err(InvalidVariable::Name(_))));
        assert!(matches!(variable("=x"), Err(InvalidVariable::Name(_))));
        assert!(matches!(variable("A=\0"), Err(InvalidVariable::Zero(_))));
    }

    #[test]
    fn every_later_option_is_refused() {
        assert!(LaterOptions::default().refuse().is_ok());
        let given = LaterOptions { template: Some("k".into()) };
        assert_eq!(given.refuse().unwrap_err().kind().exit_code(), 4);
    }
}
