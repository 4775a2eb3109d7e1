//! `casemate launch`.

use super::options::{LaterOptions, MachineOptions, ServerOptions};
use crate::{
    config::settings::{self, Flags},
    context::Context,
    engine::{self, Conversation, Lifetime, Record, Start, Unknown, machines},
    error::{Error, Outcome},
    render::milliseconds,
};
use casemate_proto::ids::Name;

/// Start a machine that stays until it is stopped
///
/// The machine has the server's name. Once it is ready, `casemate tools` and `casemate call` ask it.
///
/// Examples:
///   casemate launch everything
///   casemate launch big --command 'npx -y @modelcontextprotocol/server-everything' --memory 512
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Launch {
    /// The server's name; a new one with --command
    name: Name,
    /// Print the machine as JSON, as `casemate status --json` lists it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    pub(super) machine: MachineOptions,
    #[command(flatten)]
    start: super::options::StartOptions,
    #[command(flatten)]
    later: LaterOptions,
    /// The seeds' spelling launches names that were never defined.
    #[arg(skip)]
    pub(super) probe_if_unknown: bool,
}

/// Starts a detached machine.
pub async fn run(args: Launch, context: &Context) -> Result<Outcome, Error> {
    args.later.refuse()?;
    let configuration = context.configuration()?;
    let unknown = if args.probe_if_unknown { Unknown::Probe } else { Unknown::Refused };
    let target = engine::resolve(context, &configuration, &args.name, &args.server, unknown)?;
    let flags = Flags { machine: &args.machine, start: &args.start };
    let settings = settings::merge(flags, &context.environment, target.server, &configuration.defaults)?;
    machines::refuse_taken(context, &args.name)?;
    let plan = engine::plan(context, &configuration, &target, &settings).await?;
    let leased = machines::launch(context, &plan, &args.name, Lifetime::Detached, Conversation::Held).await?;
    let record = machines::let_go(context, leased);
    if args.json {
        context.screen.json(&record.status(&context.home))?;
    } else {
        context.screen.line(&describe(&record))?;
        context.screen.note(&format!("Try: casemate tools {}", record.name));
    }
    Ok(Outcome::Done)
}

/// One line about a machine that is ready.
pub(super) fn describe(record: &Record) -> String {
    let accelerator = match record.accelerator {
        Some(engine::Accelerator::Tcg) => " in emulation",
        _ => "",
    };
    let restored = if record.start == Start::Restored { ", restored" } else { "" };
    let took = record.start_ms.map(|ms| format!(" in {}", milliseconds(ms))).unwrap_or_default();
    format!("{} is ready{took} ({}{accelerator}{restored}, CID {})", record.name, record.backend, record.cid)
}
