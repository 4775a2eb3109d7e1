//! The command line: one tree, in which the seeds' spellings lead to the same values as our own.

use crate::command;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Runs any MCP server inside a microVM, a container or a sandbox
///
/// Put `casemate run NAME` where a client's configuration names a server's command, and the server runs
/// behind a wall; or keep a machine running with `casemate launch NAME` and ask it with `casemate call`.
///
/// Examples:
///   casemate doctor
///   casemate add everything npm:@modelcontextprotocol/server-everything
///   casemate call everything echo '{"message": "hi"}'
///   casemate run --isolation microvm -- npx -y @modelcontextprotocol/server-everything
///
/// Exit codes: 0 done, 1 the thing asked about failed, 2 usage, 3 configuration,
/// 4 not available on this host, 5 the server or machine failed.
#[derive(Debug, Parser)]
#[command(name = "casemate", version, verbatim_doc_comment, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Read this configuration (TOML or JSON) instead of the files in the home folder
    #[arg(long, global = true, value_name = "FILE", env = "CASEMATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Say nothing on standard error but errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// Every command. The aliases under `mcp` are resolved by [`Command::canonical`].
#[derive(Debug, Clone, PartialEq, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Command {
    #[allow(missing_docs)] // Each variant is documented by its arguments, which clap shows as its help.
    Doctor(command::doctor::Doctor),
    #[allow(missing_docs)]
    Add(Box<command::add::Add>),
    #[allow(missing_docs)]
    Remove(command::remove::Remove),
    #[allow(missing_docs)]
    List(command::list::List),
    #[allow(missing_docs)]
    Image(command::image::Image),
    #[allow(missing_docs)]
    Kernel(command::kernel::Kernel),
    #[allow(missing_docs)]
    Launch(Box<command::launch::Launch>),
    #[allow(missing_docs)]
    LaunchMany(Box<command::launch_many::LaunchMany>),
    #[allow(missing_docs)]
    Status(command::status::Status),
    #[allow(missing_docs)]
    Stop(command::stop::Stop),
    #[allow(missing_docs)]
    Logs(command::logs::Logs),
    #[allow(missing_docs)]
    Tools(Box<command::tools::Tools>),
    #[allow(missing_docs)]
    Call(Box<command::call::Call>),
    #[allow(missing_docs)]
    Run(Box<command::run::Run>),
    #[allow(missing_docs)]
    Test(command::test::Test),
    #[allow(missing_docs)]
    Mcp(command::mcp::Mcp),
    /// Commands of later versions.
    #[command(flatten)]
    Later(command::later::Later),
}

impl Command {
    /// Replaces the seeds' spelling of a command by our own.
    pub fn canonical(self) -> Self {
        match self {
            Self::Mcp(mcp) => mcp.canonical(),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
