//! The seeds' spellings of commands. They parse to the same values as our own; there is nothing else here.

use super::{
    add::Add, call::Call, launch::Launch, launch_many::LaunchMany, list::List, remove::Remove,
    status::Status, stop::Stop, test::Test, tools::Tools,
};
use crate::args::Command;
use clap::Subcommand;

/// The same commands under the names that older scripts use
///
/// `casemate mcp microvm launch|launch-many|status|stop|test` and `casemate mcp add|call|tools|list|remove`
/// are aliases of the commands without `mcp`. Here a name that was never defined runs the built-in probe
/// server, and says so.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Mcp {
    #[command(subcommand)]
    command: McpCommand,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
#[command(disable_help_subcommand = true)]
enum McpCommand {
    Microvm(Microvm),
    Add(Box<Add>),
    Remove(Remove),
    List(List),
    Tools(Box<Tools>),
    Call(Box<Call>),
}

/// Machines, as the seeds call them
#[derive(Debug, Clone, PartialEq, clap::Args)]
struct Microvm {
    #[command(subcommand)]
    command: MicrovmCommand,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
#[command(disable_help_subcommand = true)]
enum MicrovmCommand {
    Launch(Box<Launch>),
    LaunchMany(Box<LaunchMany>),
    Status(Status),
    Stop(Stop),
    Test(Test),
}

impl Mcp {
    /// The command in our own spelling, which is never one of these again.
    pub fn canonical(self) -> Command {
        match self.command {
            McpCommand::Add(args) => Command::Add(args),
            McpCommand::Remove(args) => Command::Remove(args),
            McpCommand::List(args) => Command::List(args),
            McpCommand::Tools(args) => Command::Tools(args),
            McpCommand::Call(args) => Command::Call(args),
            McpCommand::Microvm(Microvm { command }) => match command {
                MicrovmCommand::Launch(mut args) => {
                    args.probe_if_unknown = true;
                    args.machine.ask_for_microvm();
                    Command::Launch(args)
                }
                MicrovmCommand::LaunchMany(mut args) => {
                    args.machine.ask_for_microvm();
                    Command::LaunchMany(args)
                }
                MicrovmCommand::Status(args) => Command::Status(args),
                MicrovmCommand::Stop(args) => Command::Stop(args),
                MicrovmCommand::Test(mut args) => {
                    args.machine.ask_for_microvm();
                    Command::Test(args)
                }
            },
        }
    }
}
