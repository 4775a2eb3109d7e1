//! `casemate doctor`.

use crate::{
    context::Context,
    engine,
    error::{Error, Outcome},
    render::{
        milliseconds,
        table::{Cell, table},
    },
};

/// Find out what this host can run, why not, and the remedy
///
/// Every backend is tried, not guessed: a KVM device that opens but cannot run a guest is unusable. The
/// first run fetches a guest kernel, because only a boot decides.
///
/// Examples:
///   casemate doctor
///   casemate doctor --json
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Doctor {
    /// Print JSON: {backends: [{name, level, usable, accelerator, reason, remedy, probe_ms}], default,
    /// limits: [{reason, remedy}]}, where limits are those that machines are not given from outside
    #[arg(long)]
    json: bool,
}

/// Tries every backend and prints what was found.
pub async fn run(args: Doctor, context: &Context) -> Result<Outcome, Error> {
    let report = engine::doctor(context).await?;
    if args.json {
        context.screen.json(&report)?;
        return Ok(Outcome::Done);
    }
    let rows: Vec<[Cell; 5]> = report
        .backends
        .iter()
        .map(|backend| {
            let usable = if backend.usable { "yes" } else { "no" };
            [
                backend.name.as_str().into(),
                backend.level.as_str().into(),
                Cell::verdict(usable, backend.usable),
                backend.accelerator.map_or("-", |accelerator| accelerator.as_str()).into(),
                backend
                    .reason
                    .clone()
                    .unwrap_or_else(|| format!("tried in {}", milliseconds(backend.probe_ms)))
                    .into(),
            ]
        })
        .collect();
    context.screen.print(&table(
        ["BACKEND", "LEVEL", "USABLE", "ACCELERATOR", "REASON"],
        &rows,
        // Why something is not usable is what this command is for: it is wrapped rather than cut.
        None,
    ))?;
    for backend in &report.backends {
        if let Some(remedy) = &backend.remedy {
            context.screen.line(&format!("{}: {remedy}", backend.name))?;
        }
    }
    for limit in &report.limits {
        let remedy = limit.remedy.as_ref().map(|remedy| format!(" ({remedy})")).unwrap_or_default();
        context.screen.line(&format!("A limit from outside is missing: {}{remedy}", limit.reason))?;
    }
    match report.default {
        Some(default) => context.screen.line(&format!("\nMachines are made with {default}."))?,
        None => context.screen.line("\nNo backend works here: no server can be started behind a wall.")?,
    }
    Ok(Outcome::Done)
}
