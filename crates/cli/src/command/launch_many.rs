//! `casemate launch-many`.

use super::{
    launch::describe,
    options::{LaterOptions, MachineOptions, ServerOptions, StartOptions},
};
use crate::{
    config::settings,
    context::Context,
    engine::{self, Conversation, Lifetime, Plan, Record, Unknown, machines},
    error::{Error, Kind, Outcome},
    render,
};
use casemate_proto::ids::Name;
use std::{collections::BTreeSet, rc::Rc};
use tokio::task::JoinSet;

/// The server of `launch-many` without `--server`.
const PROBE: &str = "test-server";

/// Start many machines of one server, named SERVER-1, SERVER-2, …
///
/// Without --server the machines run the built-in probe server.
///
/// Examples:
///   casemate launch-many 8 --server everything
///   casemate launch-many 100 --memory 128 --batch 20
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct LaunchMany {
    /// How many, 1 to 1000
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// The server
    #[arg(long, value_name = "NAME")]
    server: Option<Name>,
    /// How many start at once, 1 to 100
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    batch: u32,
    /// Print the machines that started as JSON, as `casemate status --json` lists them
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server_options: ServerOptions,
    #[command(flatten)]
    pub(super) machine: MachineOptions,
    #[command(flatten)]
    start: StartOptions,
    #[command(flatten)]
    later: LaterOptions,
}

/// Starts detached machines, a batch at a time; those that start stay when others fail.
pub async fn run(args: LaunchMany, context: &Rc<Context>) -> Result<Outcome, Error> {
    args.later.refuse()?;
    let configuration = context.configuration()?;
    let (name, unknown) = match args.server {
        Some(name) => (name, Unknown::Refused),
        None => (machines::name(PROBE)?, Unknown::Probe),
    };
    let target = engine::resolve(context, &configuration, &name, &args.server_options, unknown)?;
    let settings =
        settings::merge(&args.machine, &context.environment, target.server, &configuration.defaults)?;
    let plan = engine::plan(context, &configuration, &target, &settings).await?.starting(&args.start);
    let plan = Rc::new(plan);
    let names = free_names(context, &name, args.count)?;

    let (mut started, mut failed) = (Vec::new(), Vec::new());
    for batch in names.chunks(args.batch as usize) {
        for result in start(context, &plan, batch).await {
            match result {
                Ok(record) => {
                    context.screen.note(&describe(&record));
                    started.push(record);
                }
                Err(error) => {
                    render::error(&error);
                    failed.push(error);
                }
            }
        }
    }
    if args.json {
        let status: Vec<_> = started.iter().map(|record| record.status(&context.home)).collect();
        context.screen.json(&status)?;
    } else {
        context.screen.line(&format!("{} of {} machines are ready", started.len(), args.count))?;
    }
    match failed.first() {
        None => Ok(Outcome::Done),
        Some(first) => {
            let message = format!("{} of {} machines did not start", failed.len(), args.count);
            let kind = if first.kind() == Kind::Unavailable { Kind::Unavailable } else { Kind::Server };
            Err(Error::new(kind, message)
                .hint("casemate status lists the others; casemate stop --all ends them"))
        }
    }
}

/// Starts machines at once and waits for all of them, in the order of their names.
async fn start(context: &Rc<Context>, plan: &Rc<Plan>, names: &[Name]) -> Vec<Result<Record, Error>> {
    let mut tasks = JoinSet::new();
    for (index, name) in names.iter().cloned().enumerate() {
        let (context, plan) = (context.clone(), plan.clone());
        tasks.spawn_local(async move {
            let (lifetime, conversation) = (Lifetime::Detached, Conversation::Held);
            let launched = machines::launch_quietly(&context, &plan, &name, lifetime, conversation, |_| {});
            let launched = launched.await.map_err(|error| engine::launch_error(name.as_str(), error));
            (index, launched.map(|leased| machines::let_go(&context, leased)))
        });
    }
    let mut results = tasks.join_all().await;
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The first names of the series that no live machine has.
fn free_names(context: &Context, server: &Name, count: u32) -> Result<Vec<Name>, Error> {
    let live = machines::list(context)?.into_iter().filter(|record| !record.state.is_final());
    let taken: BTreeSet<Name> = live.map(|record| record.name).collect();
    let names = (1..).map(|n| machines::name(&format!("{server}-{n}")));
    names.filter(|name| !name.as_ref().is_ok_and(|name| taken.contains(name))).take(count as usize).collect()
}
