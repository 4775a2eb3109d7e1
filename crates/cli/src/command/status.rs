//! `casemate status`.

use crate::{
    context::Context,
    engine::{self, Lifetime, Record, Start, State, machines},
    error::{Error, Outcome},
    render::{
        self, coarse, first_line,
        table::{Cell, table},
    },
};
use casemate_proto::ids::Name;
use console::Style;
use std::time::Duration;

/// Show which machines run
///
/// MEMORY is what a machine has of what it may have, or what it takes while it is suspended. Machines that
/// ended are shown with --all, and by their name: the last 50, for 7 days. Those that only made a template or
/// tried this host are shown with --all --json.
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
    /// started_at, uptime_ms, start, start_ms, template, template_reason, rss_mb, restarts, suspend_bytes,
    /// log_dir}]
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
        None if args.all => {
            records.into_iter().filter(|record| args.json || !is_done_chore(record)).collect()
        }
        None => records.into_iter().filter(|record| !record.state.is_final()).collect(),
    };
    let status: Vec<_> = shown.iter().map(|record| record.status(&context.home)).collect();
    if args.json {
        context.screen.json(&status)?;
        return Ok(Outcome::Done);
    }
    if status.is_empty() {
        context.screen.line("No machine runs.")?;
    } else {
        context.screen.print(&listing(&status, context.screen.width))?;
    }
    // Of one machine there is room to say why it started as it did.
    if let ([machine], true) = (&*status, args.name.is_some())
        && let Some(reason) = &machine.template_reason
    {
        let how = if machine.template.is_some() {
            "restored before its server had started"
        } else {
            "started cold"
        };
        context.screen.note(&format!("{} was {how}: {}", machine.name, first_line(reason)));
    }
    if args.name.is_none() && !args.all && failed > 0 {
        let machines = render::machines(failed);
        context.screen.note(&format!("{machines} failed in the last days: casemate status --all"));
    }
    Ok(Outcome::Done)
}

/// Whether a machine was one of casemate's own and has done what it was for: it tried this host, which
/// `doctor` tells about, or became a template.
fn is_done_chore(record: &Record) -> bool {
    let tried_host = record.conversation.is_none() && record.state.is_final();
    let was_builder = record.name.as_str().starts_with("template.") && record.state == State::Stopped;
    record.lifetime == Lifetime::Leased && (tried_host || was_builder)
}

fn listing(machines: &[engine::Status], width: Option<usize>) -> String {
    let mut rows: Vec<[Cell; 9]> = machines.iter().map(row).collect();
    let mut header = ["NAME", "SERVER", "STATE", "BACKEND", "CID", "MEMORY", "START", "UPTIME", "REASON"];
    if machines.iter().all(|machine| machine.reason.is_none()) {
        header[8] = "";
    }
    // Where the names say it there is more room for the reasons.
    if machines.iter().all(|machine| machine.name.as_str().starts_with(&machine.server)) {
        header[1] = "";
        rows.iter_mut().for_each(|row| row[1] = "".into());
    }
    table(header, &rows, width)
}

fn row(machine: &engine::Status) -> [Cell; 9] {
    let wall = match machine.accelerator {
        Some(accelerator) => format!("{}/{accelerator}", machine.backend),
        None => machine.backend.to_string(),
    };
    let memory = match (machine.suspend_bytes, machine.rss_mb) {
        (Some(bytes), _) => format!("{} MB on disk", bytes.div_ceil(1 << 20)),
        (None, Some(resident)) => format!("{resident}/{} MB", machine.memory_mb),
        (None, None) => format!("{} MB", machine.memory_mb),
    };
    let start = match (machine.start, machine.start_ms) {
        (Start::Cold, None) => "cold".to_owned(),
        (Start::Restored, None) => "restored".to_owned(),
        (Start::Cold, Some(ms)) => format!("cold {}", seconds(ms)),
        (Start::Restored, Some(ms)) => format!("restored {}", seconds(ms)),
    };
    [
        machine.name.to_string().into(),
        machine.server.as_str().into(),
        Cell::styled(machine.state.as_str(), colour(machine.state)),
        wall.into(),
        machine.cid.to_string().into(),
        memory.into(),
        start.into(),
        coarse(Duration::from_millis(machine.uptime_ms)).into(),
        machine.reason.as_deref().map(gist).unwrap_or_default().into(),
    ]
}

fn colour(state: State) -> Style {
    match state {
        State::Ready => Style::new().green(),
        State::Suspended => Style::new().cyan(),
        State::Planned | State::Prepared | State::Booted => Style::new().yellow(),
        State::Stopped => Style::new().dim(),
        State::Failed => Style::new().red(),
    }
}

/// `0.31 s`, `7.2 s`.
fn seconds(ms: u64) -> String {
    if ms < 1000 { format!("0.{:02} s", ms / 10) } else { format!("{}.{} s", ms / 1000, ms % 1000 / 100) }
}

/// The first line of a reason, which says when there are more.
fn gist(reason: &str) -> String {
    let first = first_line(reason);
    if reason.trim().lines().nth(1).is_some() { format!("{first} …") } else { first }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_many_lines_says_so() {
        assert_eq!(gist("VMM ended; it last printed:\nKernel panic\n"), "VMM ended; it last printed: …");
        assert_eq!(gist("stopped on request\n"), "stopped on request");
    }

    #[test]
    fn starts_are_told_in_seconds() {
        assert_eq!(
            [5, 310, 999, 1000, 12_345].map(seconds),
            ["0.00 s", "0.31 s", "0.99 s", "1.0 s", "12.3 s"]
        );
    }
}
