//! What can never start is refused before anything is asked for, fetched or made: when a server is started, and
//! when it is added, so that nobody meets the reason much later.

use super::{BackendKind, Target, disks, plan::choose, secrets};
use crate::{
    command::options::{MachineOptions, StartOptions},
    config::{
        Defaults,
        settings::{self, Flags},
        transport::Transport,
    },
    context::Context,
    error::Error,
};

/// Refuses a target that contradicts itself, or that this host or this kind of machine cannot serve.
pub fn check(context: &Context, backend: BackendKind, target: &Target<'_>) -> Result<(), Error> {
    disks::check(backend, target)?;
    disks::find(context, target)?;
    let own_port = match &target.transport {
        Transport::Http { port, .. } => Some(*port),
        Transport::Stdio => None,
    };
    target.egress.check(own_port).map_err(|conflict| {
        Error::configuration(format!("what {} may reach does not go together", target.name)).because(conflict)
    })?;
    secrets::check(target)
}

/// A server that is about to be defined, checked as if it were started with what `defaults` say beside it.
pub fn defined(
    context: &Context,
    defaults: &Defaults,
    target: Target<'static>,
    machine: &MachineOptions,
) -> Result<Target<'static>, Error> {
    let flags = Flags { machine, start: &StartOptions::default() };
    let settings = settings::merge(flags, &context.environment, None, defaults)?;
    check(context, choose(&settings)?, &target)?;
    Ok(target)
}

/// Something that is there twice.
pub fn repeated<T: Ord>(things: impl Iterator<Item = T>) -> Option<T> {
    let mut things: Vec<T> = things.collect();
    things.sort();
    let twice = things.windows(2).position(|pair| pair[0] == pair[1])?;
    Some(things.swap_remove(twice))
}
