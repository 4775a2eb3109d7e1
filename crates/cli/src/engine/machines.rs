//! Machines: started, found, asked, stopped.

use super::{
    Conversation, Leased, Lifetime, Plan, Record, Session, State, launch_error,
    processes::{children, is_running_child},
    routing::{Lack, Need},
    session_error,
};
use crate::{
    context::Context,
    error::Error,
    render::{self, first_line, progress::Steps},
};
use casemate_image::progress::Progress;
use casemate_machine::{LaunchError, Origin, Registry, Step, client, registry::ClaimError};
use casemate_proto::{ids::Name, limits::STOP_TIMEOUT};
use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

/// How long a call waits for a machine that another command is starting.
const STARTING_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a machine and waits until it is ready.
///
/// Cancelling ends the machine.
pub async fn launch(
    context: &Context,
    plan: &Plan,
    name: &Name,
    lifetime: Lifetime,
    conversation: Conversation,
) -> Result<Leased, Error> {
    let steps = Steps::new(context.screen);
    steps.step(&format!("starting {name}"));
    let launched =
        launch_quietly(context, plan, name, lifetime, conversation, watch(context, &steps, plan, name));
    let leased = launched.await.map_err(|error| launch_error(name.as_str(), error))?;
    warn_of_lost_template(context, &[leased.record()]);
    Ok(leased)
}

/// Shows the steps of a start on a terminal; elsewhere only that a template is made, which takes long and
/// happens once.
pub fn watch(context: &Context, steps: &Steps, plan: &Plan, name: &Name) -> impl FnMut(Step) {
    let mut told = false;
    move |step| {
        let building = matches!(step, Step::BuildingTemplate(_));
        if context.screen.live {
            steps.step(&describe(plan, name, step));
        } else if building && !told {
            steps.step(&format!("making a template of {}, once", plan.server()));
            told = true;
        }
    }
}

/// What is being done for a machine, in words.
fn describe(plan: &Plan, name: &Name, step: Step) -> String {
    match step {
        Step::AwaitingTemplate => format!("waiting for the template of {}", plan.server()),
        Step::BuildingTemplate(state) => {
            format!("making a template of {}, once: {}", plan.server(), state.as_str())
        }
        Step::Phase(state) => format!("starting {name}: {}", state.as_str()),
    }
}

/// Says that a template was of no use: the starts took longer than they should.
pub fn warn_of_lost_template(context: &Context, records: &[&Record]) {
    let lost = |record: &&&Record| {
        let reason = record.template_reason.as_deref();
        reason.is_some_and(|reason| {
            reason.contains("could not be restored") || reason.contains("did not serve")
        })
    };
    let cold: Vec<&&Record> = records.iter().filter(lost).collect();
    let Some(reason) = cold.first().and_then(|record| record.template_reason.as_deref()) else { return };
    let names: Vec<&Name> = cold.iter().map(|record| &record.name).collect();
    let were = if names.len() == 1 { "was" } else { "were" };
    context.screen.warn(&format!("{} {were} started cold: {}", render::names(&names), first_line(reason)));
}

/// Refuses a name that a live machine has, before images and kernels are fetched for it.
pub fn refuse_taken(context: &Context, name: &Name) -> Result<(), Error> {
    match list(context)?.into_iter().find(|record| record.name == *name && !record.state.is_final()) {
        None => Ok(()),
        Some(other) => Err(launch_error(
            name.as_str(),
            ClaimError::NameTaken { name: other.name, state: other.state }.into(),
        )),
    }
}

/// The template that a plan's machines are restored from, or why there is none.
pub async fn origin(
    context: &Context,
    plan: &Plan,
    name: &Name,
    conversation: Conversation,
    progress: impl FnMut(Step),
) -> Result<Origin, LaunchError> {
    match plan.cold() {
        Some(cold) => Ok(cold),
        None => {
            let spec = plan.spec(name, Lifetime::Leased, conversation);
            casemate_machine::template::obtain(&context.home, &spec, progress).await
        }
    }
}

/// Starts a machine; `progress` hears of its phases.
pub async fn launch_quietly(
    context: &Context,
    plan: &Plan,
    name: &Name,
    lifetime: Lifetime,
    conversation: Conversation,
    mut progress: impl FnMut(Step),
) -> Result<Leased, LaunchError> {
    let origin = origin(context, plan, name, conversation, &mut progress).await?;
    launch_from(context, plan, name, lifetime, conversation, origin, progress).await
}

/// Starts a machine from what was found for it.
pub async fn launch_from(
    context: &Context,
    plan: &Plan,
    name: &Name,
    lifetime: Lifetime,
    conversation: Conversation,
    origin: Origin,
    progress: impl FnMut(Step),
) -> Result<Leased, LaunchError> {
    context.leases.borrow_mut().insert(name.clone());
    let spec = plan.spec(name, lifetime, conversation);
    let launched =
        casemate_machine::launch_from(&context.home, &spec, plan.secrets(), origin, progress).await;
    if launched.is_err() {
        context.leases.borrow_mut().remove(name);
    }
    launched
}

/// Lets a detached machine go on after this command.
pub fn let_go(context: &Context, leased: Leased) -> Record {
    let record = leased.let_go();
    context.leases.borrow_mut().remove(&record.name);
    context.kept.borrow_mut().push(record.name.clone());
    record
}

/// Waits until the machines that this command held are gone, after it dropped them; says what is left.
pub async fn gone(context: &Context) -> Option<String> {
    let until = Instant::now() + STOP_TIMEOUT;
    loop {
        // A registry that cannot be read tells nothing more by waiting.
        let mut live = list(context).unwrap_or_default();
        live.retain(|record| !record.state.is_final());
        let (leased, kept) = (context.leases.borrow().clone(), context.kept.borrow().clone());
        let held = live.iter().filter(|record| is_ending(record, &leased)).count();
        if (held > 0 || has_unborn(&live)) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        // Those that became ready while the command was interrupted belong to nobody any more, too.
        let is_kept = |record: &&Record| kept.contains(&record.name) || leased.contains(&record.name);
        let kept: Vec<&Name> = live.iter().filter(is_kept).map(|record| &record.name).collect();
        return match (kept.len(), held) {
            (0, 0) => None,
            (0, held) => Some(format!("{} still being stopped: casemate status", render::machines(held))),
            (count, _) => Some(format!(
                "{} had started and stay: {}; casemate stop NAME or casemate stop --all ends them",
                render::machines(count),
                render::names(&kept)
            )),
        };
    }
}

/// Whether a live machine was this command's, and ends with it.
fn is_ending(record: &Record, leased: &BTreeSet<Name>) -> bool {
    let was_let_go =
        record.lifetime == Lifetime::Detached && matches!(record.state, State::Ready | State::Suspended);
    // A machine that was to become a template has a name that its command was not told.
    let is_child =
        || record.lifetime == Lifetime::Leased && record.supervisor_pid.is_some_and(is_running_child);
    !was_let_go && (leased.contains(&record.name) || is_child())
}

/// Whether a machine of this command's is planned whose supervisor has not said yet who it is: a machine that was
/// to become a template, whose name its command was not told.
fn has_unborn(live: &[Record]) -> bool {
    let is_unborn = |record: &Record| record.lifetime == Lifetime::Leased && record.supervisor_pid.is_none();
    let is_known = |pid: &u32| live.iter().any(|record| record.supervisor_pid == Some(*pid));
    live.iter().any(is_unborn)
        && children(std::process::id()).iter().any(|pid| !is_known(pid) && is_running_child(*pid))
}

/// All machines, live and ended, oldest first.
pub fn list(context: &Context) -> Result<Vec<Record>, Error> {
    Ok(Registry::new(&context.home).list()?)
}

/// The machines that a name stands for: the live machine of that name, else the live machines of that
/// server.
pub fn named(records: Vec<Record>, name: &Name) -> Vec<Record> {
    let live: Vec<Record> = records.into_iter().filter(|record| !record.state.is_final()).collect();
    match live.iter().find(|record| record.name == *name) {
        Some(record) => vec![record.clone()],
        None => live.into_iter().filter(|record| record.server == name.as_str()).collect(),
    }
}

/// What was found among the machines that run.
#[derive(Debug)]
pub enum Found {
    /// One that answers.
    Running(Box<Record>),
    /// One that takes calls, and why it cannot answer this one.
    Lacking(Name, Lack),
    /// None that takes calls.
    Nothing,
}

/// Finds the running machine that answers calls of a name and satisfies what they need. Waits for one that
/// another command is starting.
pub async fn answering(context: &Context, name: &Name, need: &Need) -> Result<Found, Error> {
    let until = Instant::now() + STARTING_TIMEOUT;
    loop {
        let (candidates, lack) = candidates(named(list(context)?, name), need);
        let ready = candidates.iter().find(|record| matches!(record.state, State::Ready | State::Suspended));
        match (ready, lack) {
            (Some(record), _) => return Ok(Found::Running(Box::new(record.clone()))),
            (None, _) if !candidates.is_empty() && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (None, Some((name, lack))) => return Ok(Found::Lacking(name, lack)),
            (None, None) => return Ok(Found::Nothing),
        }
    }
}

/// The machines that take calls and lack nothing, and the first of those that lack something.
fn candidates(records: Vec<Record>, need: &Need) -> (Vec<Record>, Option<(Name, Lack)>) {
    let mut first = None;
    let takes_calls = |record: &Record| {
        record.lifetime == Lifetime::Detached && record.conversation == Some(Conversation::Held)
    };
    let candidates = records.into_iter().filter(takes_calls).filter(|record| match need.lack(record) {
        None => true,
        Some(lack) => {
            first.get_or_insert((record.name.clone(), lack));
            false
        }
    });
    (candidates.collect(), first)
}

/// Opens a session with the supervisor of a running machine.
pub async fn session(context: &Context, record: &Record) -> Result<Session, Error> {
    Session::open(&context.home, record).await.map_err(|error| session_error(record.name.as_str(), error))
}

/// Stops a machine and waits until nothing of it is left.
pub async fn stop(context: &Context, record: &Record) -> Result<(), Error> {
    let name = record.name.as_str();
    match client::stop(&context.home, record).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::server(format!("machine {name} is still there"))
            .hint(format!("kill -9 {}, then casemate status", record.supervisor_pid.unwrap_or_default()))),
        Err(error) => Err(Error::server(format!("cannot stop machine {name}")).because(error).hint(format!(
            "try again, or kill -9 {}: its machine ends with it",
            record.supervisor_pid.unwrap_or_default()
        ))),
    }
}

/// A name for a machine that lives for one command, unlike any other.
pub fn passing_name(server: &str) -> Result<Name, Error> {
    let server: String = server.chars().take(48).collect();
    let random = RandomState::new().build_hasher().finish() & 0xff_ffff;
    name(&format!("{server}.{random:06x}"))
}

/// Makes a name of a text that is made of names.
pub fn name(text: &str) -> Result<Name, Error> {
    text.parse().map_err(|error| Error::usage(format!("{text:?} cannot name a machine")).because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_names_differ_and_are_names_however_long_the_server_is_called() {
        let long = "x".repeat(63);
        let (one, two) = (passing_name(&long).unwrap(), passing_name(&long).unwrap());
        assert_ne!(one, two);
        assert!(one.as_str().starts_with(&"x".repeat(48)));
    }
}
