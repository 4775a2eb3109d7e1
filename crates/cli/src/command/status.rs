//! `casemate status`.

use crate::{
    context::Context,
    engine::{self, Lifetime, Record, State, machines},
    error::{Error, Outcome},
    render::{
        harmless, milliseconds,
        table::{Cell, table},
    },
};
use casemate_proto::ids::Name;

/// Show which machines run
///
/// Machines that ended are shown with --all, and by their name, for 7 days.
///
/// Examples:
///   casemate status
///   casemate status everything --json
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Status {
    /// Only this machine, or the machines of this server
    name: Option<Name>,
    /// Show ended machines too
    #[arg(long)]
    all: bool,
    /// Print JSON: [{id, name, server, backend, accelerator, state, reason, pid, cid, memory_mb, vcpus,
    /// started_at, uptime_ms, start, start_ms, template, template_reason, rss_mb, log_dir}]
    #[arg(long)]
    json: bool,
}

/// Prints the machines; sweeps up what was killed.
pub fn run(args: Status, context: &Context) -> Result<Outcome, Error> {
    let records = machines::list(context)?;
    // What a leased machine failed of, its owner was told.
    let is_news = |record: &&Record| record.state == State::Failed && record.lifetime == Lifetime::Detached;
    let failed = records.iter().filter(is_news).count();
    let shown = match &args.name {
        Some(name) => of_name(context, records, name, args.all)?,
        None => records.into_iter().filter(|record| args.all || !record.state.is_final()).collect(),
    };
    let status: Vec<_> = shown.iter().map(|record| record.status(&context.home)).collect();
    if args.json {
        context.screen.json(&status)?;
        return Ok(Outcome::Done);
    }
    let or_none = |number: Option<u64>, unit: &str| number.map_or("-".to_owned(), |n| format!("{n} {unit}"));
    let rows: Vec<[Cell; 9]> = status
        .iter()
        .map(|machine| {
            let ready = machine.state == State::Ready;
            let wall = match machine.accelerator {
                Some(accelerator) => format!("{}/{accelerator}", machine.backend),
                None => machine.backend.to_string(),
            };
            [
                machine.name.to_string().into(),
                machine.server.as_str().into(),
                Cell::verdict(machine.state.as_str(), ready),
                wall.into(),
                machine.cid.to_string().into(),
                format!("{} MB", machine.memory_mb).into(),
                or_none(machine.rss_mb, "MB").into(),
                milliseconds(machine.uptime_ms).into(),
                harmless(
                    machine.reason.as_deref().and_then(|reason| reason.lines().next()).unwrap_or_default(),
                )
                .into(),
            ]
        })
        .collect();
    if rows.is_empty() {
        context.screen.line("No machine runs.")?;
    } else {
        let header = ["NAME", "SERVER", "STATE", "BACKEND", "CID", "MEMORY", "RESIDENT", "UPTIME", "REASON"];
        context.screen.print(&table(header, &rows, context.screen.width))?;
    }
    if args.name.is_none() && !args.all && failed > 0 {
        let machines = if failed == 1 { "machine" } else { "machines" };
        context.screen.note(&format!("{failed} {machines} failed in the last days: casemate status --all"));
    }
    Ok(Outcome::Done)
}

/// What a name stands for: live machines, else the last one that had it.
fn of_name(context: &Context, records: Vec<Record>, name: &Name, all: bool) -> Result<Vec<Record>, Error> {
    let is_meant = |record: &Record| record.name == *name || record.server == name.as_str();
    if all {
        return Ok(records.into_iter().filter(is_meant).collect());
    }
    let live = machines::named(records.clone(), name);
    let last = records.into_iter().rev().find(is_meant);
    match (live.is_empty(), last) {
        (false, _) => Ok(live),
        (true, Some(last)) => Ok(vec![last]),
        (true, None) => {
            let configuration = context.configuration()?;
            match configuration.servers.contains_key(name) {
                true => Ok(Vec::new()),
                false => Err(engine::unknown_server(name, &configuration)),
            }
        }
    }
}
