//! `casemate stop`.

use crate::{
    context::Context,
    engine::{Record, machines},
    error::{Error, Outcome},
    render,
};
use casemate_proto::ids::Name;
use std::rc::Rc;
use tokio::task::JoinSet;

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
}

/// Stops machines, all at once, and waits until they are gone.
pub async fn run(args: Stop, context: &Rc<Context>) -> Result<Outcome, Error> {
    let records = machines::list(context)?;
    let mut meant: Vec<Record> = Vec::new();
    for name in &args.names {
        let machines = machines::named(records.clone(), name);
        if machines.is_empty() {
            context.screen.line(&format!("{name} does not run"))?;
        }
        meant.extend(machines);
    }
    if args.all {
        meant = records.into_iter().filter(|record| !record.state.is_final()).collect();
        if meant.is_empty() {
            context.screen.line("No machine runs")?;
        }
    }
    meant.sort_by(|a, b| a.id.cmp(&b.id));
    meant.dedup_by(|a, b| a.id == b.id);

    let mut tasks = JoinSet::new();
    for record in meant {
        let context = context.clone();
        tasks.spawn_local(async move { (machines::stop(&context, &record).await, record) });
    }
    let mut failed: Option<Error> = None;
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok((Ok(()), record)) => context.screen.line(&format!("Stopped {}", record.name))?,
            Ok((Err(error), _)) => {
                // All but the last are printed here.
                if let Some(earlier) = failed.replace(error) {
                    render::error(&earlier);
                }
            }
            Err(error) => failed = Some(Error::server("internal error: a task ended early").because(error)),
        }
    }
    failed.map_or(Ok(Outcome::Done), Err)
}
