//! Machines: started, found, asked, stopped.

use super::{Conversation, Leased, Lifetime, Plan, Record, Session, State, launch_error, session_error};
use crate::{command::options::MachineOptions, context::Context, error::Error, render::progress::Steps};
use casemate_image::progress::Progress;
use casemate_machine::{LaunchError, Origin, Registry, Step, client, registry::ClaimError};
use casemate_proto::ids::Name;
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

/// How long a call waits for a machine that another command is starting.
const STARTING_TIMEOUT: Duration = Duration::from_secs(60);

/// How long an interrupted command waits for its machines to be gone.
const STOPPING_TIMEOUT: Duration = Duration::from_secs(10);

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
    let launched = launch_quietly(context, plan, name, lifetime, conversation, |step| {
        if context.screen.live {
            steps.step(&describe(name, step));
        }
    });
    let leased = launched.await.map_err(|error| launch_error(name.as_str(), error))?;
    warn_of_lost_template(context, leased.record());
    Ok(leased)
}

/// What is being done for a machine, in words.
pub fn describe(name: &Name, step: Step) -> String {
    match step {
        Step::AwaitingTemplate => format!("starting {name}: waiting for its template"),
        Step::BuildingTemplate(state) => {
            format!("starting {name}: making a template of its server, once ({})", state.as_str())
        }
        Step::Phase(state) => format!("starting {name}: {}", state.as_str()),
    }
}

/// Says that a template was of no use: the start took longer than it should.
fn warn_of_lost_template(context: &Context, record: &Record) {
    if let Some(reason) =
        record.template_reason.as_deref().filter(|reason| reason.contains("could not be restored"))
    {
        let first = reason.lines().next().unwrap_or_default();
        context.screen.warn(&format!("{} was started cold: {first}", record.name));
    }
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
    let launched = casemate_machine::launch_from(&context.home, &spec, origin, progress).await;
    if launched.is_err() {
        context.leases.borrow_mut().remove(name);
    }
    launched
}

/// Lets a detached machine go on after this command.
pub fn let_go(context: &Context, leased: Leased) -> Record {
    let record = leased.let_go();
    context.leases.borrow_mut().remove(&record.name);
    record
}

/// Waits until the machines that this command held are gone, after it dropped them.
pub async fn gone(context: &Context) {
    let until = Instant::now() + STOPPING_TIMEOUT;
    while Instant::now() < until {
        let held =
            |record: &Record| context.leases.borrow().contains(&record.name) && !record.state.is_final();
        // A registry that cannot be read tells nothing more by waiting.
        if !list(context).is_ok_and(|records| records.iter().any(held)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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

/// The running machine that answers calls of a name and satisfies what was asked, if there is one. Waits
/// for one that another command is starting.
pub async fn answering(
    context: &Context,
    name: &Name,
    wish: &MachineOptions,
) -> Result<Option<Record>, Error> {
    let said = wish.isolation.is_some() || wish.backend.is_some();
    let wish = if said { wish } else { &context.environment.0 };
    let until = Instant::now() + STARTING_TIMEOUT;
    loop {
        let candidates = named(list(context)?, name).into_iter().filter(|record| answers(record, wish));
        let candidates: Vec<Record> = candidates.collect();
        let ready = candidates.iter().find(|record| matches!(record.state, State::Ready | State::Suspended));
        if ready.is_some() || candidates.is_empty() || Instant::now() > until {
            return Ok(ready.cloned());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a machine takes calls and is as strong as asked for.
fn answers(record: &Record, wish: &MachineOptions) -> bool {
    record.lifetime == Lifetime::Detached
        && record.conversation == Some(Conversation::Held)
        && wish.isolation.is_none_or(|level| record.backend.isolation() >= level)
        && wish.backend.is_none_or(|backend| record.backend == backend)
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
        Err(error) => Err(Error::server(format!("cannot stop machine {name}")).because(error)),
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
