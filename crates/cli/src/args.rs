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
    #[arg(long, global = true, value_name = "FILE", env = "CASEMATE_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Say nothing on standard error but errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// Every command.
#[derive(Debug, Clone, PartialEq, Subcommand)]
#[allow(missing_docs)] // Each is documented by its arguments, whose documentation clap shows as its help.
pub enum Command {
    Doctor(command::doctor::Doctor),
    Add(Box<command::add::Add>),
    Remove(command::remove::Remove),
    List(command::list::List),
    ClientConfig(Box<command::client_config::ClientConfig>),
    Import(Box<command::import::Import>),
    Image(command::image::Image),
    Kernel(command::kernel::Kernel),
    Template(command::template::Template),
    Volume(command::volume::Volume),
    Secret(command::secret::Secret),
    Launch(Box<command::launch::Launch>),
    LaunchMany(Box<command::launch_many::LaunchMany>),
    Status(command::status::Status),
    Stop(command::stop::Stop),
    Logs(command::logs::Logs),
    Tools(Box<command::tools::Tools>),
    Call(Box<command::call::Call>),
    Run(Box<command::run::Run>),
    Serve(Box<command::serve::Serve>),
    Test(command::test::Test),
    Mcp(command::mcp::Mcp),
    #[command(flatten)]
    Later(command::later::Later),
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
