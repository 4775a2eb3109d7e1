//! Commands of later versions: in the tree, so that they are refused with a sentence instead of a guess.

use crate::error::Error;
use clap::Subcommand;

/// A command that is not built yet, with whatever was written after it.
#[derive(Debug, Clone, PartialEq, Subcommand)]
#[allow(missing_docs)]
pub enum Later {
    /// Run the SSH automation server (not built yet)
    #[command(hide = true, disable_help_flag = true)]
    SshServer(Rest),
    /// Measure a server under load (not built yet)
    #[command(hide = true, disable_help_flag = true)]
    Load(Rest),
    /// Run a reliability scenario (not built yet)
    #[command(hide = true, disable_help_flag = true)]
    Reliability(Rest),
    /// Judge a server's statelessness and hardening (not built yet)
    #[command(hide = true, disable_help_flag = true)]
    Verify(Rest),
    /// Render results (not built yet)
    #[command(hide = true, disable_help_flag = true)]
    Report(Rest),
    /// Compare and approve pinned tool definitions (not built yet)
    #[command(hide = true, disable_help_flag = true)]
    Lock(Rest),
}

/// Anything.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Rest {
    /// Ignored, because the command is refused
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

impl Later {
    /// Says that the command is not built yet, and what to use meanwhile.
    pub fn refuse(&self) -> Error {
        let (name, instead) = match self {
            Self::SshServer(_) => ("ssh-server", "there is no substitute in this version"),
            Self::Load(_) => ("load", "`casemate test` times one machine"),
            Self::Reliability(_) => ("reliability", "there is no substitute in this version"),
            Self::Verify(_) => ("verify", "there is no substitute in this version"),
            Self::Report(_) => ("report", "commands with --json print what a report would be made of"),
            Self::Lock(_) => ("lock", "`casemate list --json` shows the image that each server is pinned to"),
        };
        Error::unavailable(format!("`casemate {name}` is not built yet")).hint(instead)
    }
}
