//! `casemate launch-many`.

use super::{
    launch::describe,
    options::{LaterOptions, MachineOptions, ServerOptions, StartOptions},
};
use crate::{
    config::settings::{self, Flags},
    context::Context,
    engine::{self, Conversation, Lifetime, Plan, Record, Unknown, machines},
    error::{Error, Kind, Outcome},
    render::{
        self, first_line,
        progress::{Steps, Tally},
    },
};
use casemate_machine::{LaunchError, Origin, admission::Refusal, registry::ClaimError};
use casemate_proto::ids::Name;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    rc::Rc,
};
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

/// Starts detached machines, some at once; those that start stay when others fail.
pub async fn run(args: LaunchMany, context: &Rc<Context>) -> Result<Outcome, Error> {
    args.later.refuse()?;
    let configuration = context.configuration()?;
    let (name, unknown) = match args.server {
        Some(name) => (name, Unknown::Refused),
        None => (machines::name(PROBE)?, Unknown::Probe),
    };
    let target = engine::resolve(context, &configuration, &name, &args.server_options, unknown)?;
    let flags = Flags { machine: &args.machine, start: &args.start };
    let settings = settings::merge(flags, &context.environment, target.server, &configuration.defaults)?;
    let plan = engine::plan(context, &configuration, &target, &settings).await?;
    let names = free_names(context, &name, args.count)?;
    let origin = origin(context, &plan, &names).await?;

    let crowd = start(context, &Rc::new(plan), names, &origin, args.batch as usize).await;
    if args.json {
        let status: Vec<_> = crowd.ready.iter().map(|record| record.status(&context.home)).collect();
        context.screen.json(&status)?;
    } else {
        context.screen.line(&format!("{} of {} machines are ready", crowd.ready.len(), args.count))?;
    }
    machines::warn_of_lost_template(context, &crowd.ready.iter().collect::<Vec<_>>());
    crowd.verdict(&name, args.count as usize)
}

/// What all the machines begin from: looked for, or made, once.
async fn origin(context: &Context, plan: &Plan, names: &[Name]) -> Result<Origin, Error> {
    // There is at least one.
    let Some(first) = names.first() else { return Err(Error::usage("no machine was asked for")) };
    let steps = Steps::new(context.screen);
    let progress = machines::watch(context, &steps, plan, first);
    let origin = machines::origin(context, plan, first, Conversation::Held, progress).await;
    origin.map_err(|error| engine::launch_error(first.as_str(), error))
}

/// What became of many machines.
#[derive(Debug, Default)]
struct Crowd {
    /// Those that are ready, in the order of their names.
    ready: Vec<Record>,
    /// Those that are not, and why.
    failed: Vec<(Name, Error)>,
    /// Why there is no memory for one more; then no other was tried.
    refusal: Option<Refusal>,
}

/// Starts machines, `batch` at once: as one is ready, or has failed, the next one begins.
async fn start(
    context: &Rc<Context>,
    plan: &Rc<Plan>,
    names: Vec<Name>,
    origin: &Origin,
    batch: usize,
) -> Crowd {
    let tally = Tally::new(context.screen, names.len(), "ready");
    let mut waiting = names.into_iter().enumerate();
    let mut tasks = JoinSet::new();
    let (mut ready, mut crowd) = (BTreeMap::new(), Crowd::default());
    loop {
        while tasks.len() < batch
            && crowd.refusal.is_none()
            && let Some((index, name)) = waiting.next()
        {
            let (context, plan, origin) = (context.clone(), plan.clone(), origin.clone());
            tasks.spawn_local(async move {
                let (lifetime, conversation) = (Lifetime::Detached, Conversation::Held);
                let launched =
                    machines::launch_from(&context, &plan, &name, lifetime, conversation, origin, |_| {});
                let launched = launched.await.map(|leased| machines::let_go(&context, leased));
                (index, name, launched)
            });
        }
        tally.show(ready.len(), &others(tasks.len(), crowd.failed.len()));
        let Some(done) = tasks.join_next().await else { break };
        match done {
            Ok((index, _, Ok(record))) => {
                tally.beside(|| context.screen.note(&describe(&record)));
                ready.insert(index, record);
            }
            Ok((_, _, Err(LaunchError::Claim(ClaimError::NoMemory(refusal))))) => {
                crowd.refusal.get_or_insert(refusal);
            }
            Ok((_, name, Err(error))) => {
                let error = engine::launch_error(name.as_str(), error);
                crowd.failed.push((name, error));
            }
            // A panic, which has printed itself.
            Err(_) => {}
        }
    }
    crowd.ready = ready.into_values().collect();
    crowd
}

/// What is to be said of those that are not ready.
fn others(starting: usize, failed: usize) -> String {
    match (starting, failed) {
        (0, 0) => String::new(),
        (starting, 0) => format!(", {starting} starting"),
        (starting, failed) => format!(", {starting} starting, {failed} failed"),
    }
}

impl Crowd {
    /// Prints why machines failed, each reason once, and sums up.
    fn verdict(self, server: &Name, count: usize) -> Result<Outcome, Error> {
        let missing = count - self.ready.len();
        if missing == 0 {
            return Ok(Outcome::Done);
        }
        let is_unavailable = |(_, error): &(Name, Error)| error.kind() == Kind::Unavailable;
        let kind = match self.refusal.is_some() || self.failed.first().is_some_and(is_unavailable) {
            true => Kind::Unavailable,
            false => Kind::Server,
        };
        for (error, likewise) in grouped(self.failed) {
            render::error(&error);
            if !likewise.is_empty() {
                render::eprint_line(&format!("likewise: {}", render::names(&likewise)));
            }
        }
        let error = Error::new(kind, format!("{missing} of {count} machines did not start"));
        match self.refusal {
            Some(refusal) => {
                let hint = refusal.remedy();
                Err(error.because(refusal).hint(hint))
            }
            None if self.ready.is_empty() => Err(error),
            None => Err(error.hint(format!(
                "casemate status lists the others; casemate stop {server} ends the machines of this server"
            ))),
        }
    }
}

/// Errors that say the same but for the machine's name, and the names of the others that they say it of.
fn grouped(failed: Vec<(Name, Error)>) -> Vec<(Error, Vec<Name>)> {
    let mut groups: BTreeMap<String, (Error, Vec<Name>)> = BTreeMap::new();
    for (name, error) in failed {
        let said = error.report().to_string().replace(name.as_str(), "NAME");
        // Further lines quote what it printed, with times; the folder of its log is its own.
        match groups.entry(first_line(&said)) {
            Entry::Occupied(mut group) => group.get_mut().1.push(name),
            Entry::Vacant(group) => drop(group.insert((error, Vec::new()))),
        }
    }
    groups.into_values().collect()
}

/// The first names of the series that no live machine has.
fn free_names(context: &Context, server: &Name, count: u32) -> Result<Vec<Name>, Error> {
    let live = machines::list(context)?.into_iter().filter(|record| !record.state.is_final());
    let taken: BTreeSet<Name> = live.map(|record| record.name).collect();
    let names = (1..).map(|n| machines::name(&format!("{server}-{n}")));
    names.filter(|name| !name.as_ref().is_ok_and(|name| taken.contains(name))).take(count as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_say_the_same_are_one() {
        let failed = |name: &str, what: &str| {
            let name: Name = name.parse().unwrap();
            let error = Error::server(format!("machine {name} failed: {what}\n[  0.1] x"))
                .log(name.as_str().as_ref());
            (name, error)
        };
        let groups = grouped(vec![failed("s-1", "no"), failed("s-3", "oh"), failed("s-2", "no")]);
        let groups: Vec<_> = groups.iter().map(|(error, more)| (error.to_string(), more.clone())).collect();
        assert_eq!(groups.len(), 2);
        assert!(groups[0].0.starts_with("machine s-1 failed: no"));
        assert_eq!(groups[0].1, ["s-2".parse().unwrap()]);
        assert!(groups[1].0.starts_with("machine s-3 failed: oh") && groups[1].1.is_empty());
    }
}
