//! `casemate stop`.

use crate::{
    context::Context,
    engine::{Record, machines},
    error::{Error, Outcome, nearest},
    render::{self, progress::Tally},
};
use casemate_proto::ids::Name;
use std::{rc::Rc, time::Duration};
use tokio::task::JoinSet;

/// How many machines are stopped at once, for each processor. The orderly end of a Node server takes 0.25 s
/// of one in emulation: a server that shares it with a hundred others does not come to it in time.
const AT_ONCE: usize = 4;

/// After so long those that are left are stopped all at once: who does not end in time is killed.
const PATIENCE: Duration = Duration::from_secs(4);

/// Stop machines, and leave nothing of them but their logs
///
/// Stopping what does not run is no error.
///
/// Examples:
///   casemate stop everything
///   casemate stop --all
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Stop {
    /// A machine, or a server whose machines are all stopped
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    names: Vec<Name>,
    /// Stop every machine
    #[arg(long)]
    all: bool,
    /// Print what was stopped as JSON: {machines}
    #[arg(long)]
    json: bool,
}

/// Says what a name may have been meant to be that nothing has.
fn warn_of_typo(context: &Context, name: &Name, records: &[Record]) {
    let Ok(configuration) = context.configuration() else { return };
    let servers = configuration.servers.keys().map(Name::as_str);
    let live = records.iter().filter(|record| !record.state.is_final()).map(|record| record.name.as_str());
    let known: Vec<&str> = servers.chain(live).collect();
    if !known.contains(&name.as_str())
        && let Some(meant) = nearest(name.as_str(), known)
    {
        context.screen.warn(&format!("nothing is named {name}; did you mean {meant}?"));
    }
}

/// Stops machines, some at once, and waits until they are gone.
pub async fn run(args: Stop, context: &Rc<Context>) -> Result<Outcome, Error> {
    let records = machines::list(context)?;
    let mut meant: Vec<Record> = Vec::new();
    for name in &args.names {
        let machines = machines::named(records.clone(), name);
        if machines.is_empty() {
            said(&args, context, &format!("{name} does not run"))?;
            warn_of_typo(context, name, &records);
        }
        meant.extend(machines);
    }
    if args.all {
        meant = records.into_iter().filter(|record| !record.state.is_final()).collect();
        if meant.is_empty() {
            said(&args, context, "No machine runs")?;
        }
    }
    meant.sort_by(|a, b| a.id.cmp(&b.id));
    meant.dedup_by(|a, b| a.id == b.id);
    meant.sort_by_key(|record| record.started_at);
    stop(meant, &args, context).await
}

/// For people alone.
fn said(args: &Stop, context: &Context, line: &str) -> Result<(), Error> {
    if args.json { Ok(()) } else { context.screen.line(line) }
}

async fn stop(meant: Vec<Record>, args: &Stop, context: &Rc<Context>) -> Result<Outcome, Error> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut at_once, mut stopped) = (AT_ONCE * processors, Vec::new());
    let tally = Tally::new(context.screen, meant.len(), "stopped");
    let mut waiting = meant.into_iter().peekable();
    let mut tasks = JoinSet::new();
    let mut failed: Option<Error> = None;
    let patience = tokio::time::sleep(PATIENCE);
    tokio::pin!(patience);
    loop {
        while tasks.len() < at_once
            && let Some(record) = waiting.next()
        {
            let context = context.clone();
            tasks.spawn_local(async move { (machines::stop(&context, &record).await, record) });
        }
        let done = tokio::select! {
            done = tasks.join_next() => done,
            () = &mut patience, if waiting.peek().is_some() => {
                at_once = usize::MAX;
                continue;
            }
        };
        let error = match done {
            None => break,
            Some(Ok((Ok(()), record))) => {
                tally.beside(|| said(args, context, &format!("Stopped {}", record.name)))?;
                stopped.push(record.name);
                tally.show(stopped.len(), "");
                continue;
            }
            Some(Ok((Err(error), _))) => error,
            Some(Err(error)) => Error::server("internal error: a task ended early").because(error),
        };
        // All but the last are printed here.
        if let Some(earlier) = failed.replace(error) {
            tally.beside(|| render::error(&earlier));
        }
    }
    drop(tally);
    if args.json {
        context.screen.json(&serde_json::json!({ "machines": stopped }))?;
    }
    failed.map_or(Ok(Outcome::Done), Err)
}
