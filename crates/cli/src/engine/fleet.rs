//! The machines of the gateway: one for each session, planned and started as `casemate run` does.

use super::{Conversation, Leased, Lifetime, Plan, Unknown, machines, plan, resolve, routing};
use crate::{
    command::options::{MachineOptions, ServerOptions, StartOptions},
    config::{
        Configuration,
        settings::{self, Flags, Settings},
    },
    context::Context,
    engine::{Target, launch_error},
    error::{Error, causes},
    render::harmless,
};
use casemate_gateway::{Backend, Machine, OpenError};
use casemate_machine::{ConversationEnd, LaunchError, Origin, Step, registry::ClaimError};
use casemate_proto::{ids::Name, port};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};
use tokio::net::UnixStream;

/// Starts machines for sessions.
#[derive(Debug)]
pub struct Fleet {
    context: Rc<Context>,
    configuration: &'static Configuration,
    machine: MachineOptions,
    start: StartOptions,
    settled: RefCell<BTreeMap<Name, Rc<Settled>>>,
}

/// What a server's machines are to be like.
pub type Settled = (Target<'static>, Settings);

/// What a session's machine is started from.
#[derive(Debug)]
pub struct Voyage {
    plan: Plan,
    name: Name,
    origin: Origin,
}

/// The machine of a session.
#[derive(Debug)]
pub struct Berth {
    context: Rc<Context>,
    name: Name,
    leased: Leased,
}

impl Fleet {
    /// Machines of the servers of a configuration, with what the command line says about all of them. There is one
    /// fleet in a process, and its configuration is kept until that ends.
    pub fn new(
        context: Rc<Context>,
        configuration: Configuration,
        machine: MachineOptions,
        start: StartOptions,
    ) -> Self {
        let configuration = Box::leak(Box::new(configuration));
        Self { context, configuration, machine, start, settled: RefCell::default() }
    }

    /// The names of the servers.
    pub fn servers(&self) -> impl Iterator<Item = &Name> {
        self.configuration.servers.keys()
    }

    /// What a server's machines are to be like. Tells what would fail later for want of a word, and what there is
    /// to be warned of once.
    pub fn settle(&self, name: &Name) -> Result<Rc<Settled>, Error> {
        if let Some(settled) = self.settled.borrow().get(name) {
            return Ok(Rc::clone(settled));
        }
        let (context, configuration) = (&self.context, self.configuration);
        let said = ServerOptions::default();
        let mut target = resolve(context, configuration, name, &said, Unknown::Refused)?;
        let tools = routing::for_all(context, configuration, &mut target, &said)?;
        let flags = Flags { machine: &self.machine, start: &self.start };
        let (server, defaults) = (target.server, &configuration.defaults);
        let settings = settings::merge_for(flags, &context.environment, &tools, server, defaults)?;
        let settled = Rc::new((target, settings));
        self.settled.borrow_mut().insert(name.clone(), Rc::clone(&settled));
        Ok(settled)
    }

    /// Gets image, kernel, secrets and template. Cancelling leaves what was made to the next session.
    async fn prepare(&self, server: &str) -> Result<Voyage, OpenError> {
        let name: Name = server.parse().map_err(|_| OpenError::Failed(format!("no server {server:?}")))?;
        let planned = async {
            let settled = self.settle(&name)?;
            let (target, settings) = &*settled;
            let plan = plan(&self.context, self.configuration, target, settings).await?;
            Ok((plan, machines::passing_name(&target.name)?))
        };
        let (plan, name) = planned.await.map_err(|error: Error| self.failed(server, &error))?;
        let mut told = false;
        let progress = |step| {
            if matches!(step, Step::BuildingTemplate(_)) && !told {
                self.context.screen.note(&format!("making a template of {server}, once"));
                told = true;
            }
        };
        let origin = machines::origin(&self.context, &plan, &name, Conversation::Client, progress).await;
        let origin = origin.map_err(|error| self.not_launched(&plan, &name, error))?;
        Ok(Voyage { plan, name, origin })
    }

    /// Starts a machine. Cancelling ends it.
    async fn launch(&self, voyage: Voyage) -> Result<Berth, OpenError> {
        let Voyage { plan, name, origin } = voyage;
        let (context, lifetime, conversation) = (&self.context, Lifetime::Leased, Conversation::Client);
        let launched =
            machines::launch_from(context, &plan, &name, lifetime, conversation, origin, |_| ()).await;
        let leased = launched.map_err(|error| self.not_launched(&plan, &name, error))?;
        machines::warn_of_lost_template(context, &[leased.record()]);
        Ok(Berth { context: Rc::clone(context), name, leased })
    }

    fn not_launched(&self, plan: &Plan, name: &Name, error: LaunchError) -> OpenError {
        match error {
            LaunchError::Claim(ClaimError::NoMemory(refusal)) => OpenError::NoRoom(refusal.to_string()),
            LaunchError::Claim(error @ ClaimError::Busy) => OpenError::NoRoom(error.to_string()),
            error => self.failed(plan.server(), &launch_error(name.as_str(), error)),
        }
    }

    /// A client is told what failed; where the logs are, and what to try, is for whoever runs the gateway.
    fn failed(&self, server: &str, error: &Error) -> OpenError {
        self.context.screen.note(&entry(&format!("{server}: no session: {}", error.report())));
        OpenError::Failed(error.to_string())
    }
}

impl Backend for Fleet {
    type Plan = Voyage;
    type Machine = Berth;

    fn knows(&self, server: &str) -> bool {
        server.parse().is_ok_and(|name: Name| self.configuration.servers.contains_key(&name))
    }

    async fn plan(&self, server: &str) -> Result<Voyage, OpenError> {
        self.prepare(server).await
    }

    async fn open(&self, voyage: Voyage) -> Result<Berth, OpenError> {
        self.launch(voyage).await
    }

    fn note(&self, sentence: &str) {
        self.context.screen.note(&entry(sentence));
    }
}

impl Machine for Berth {
    type Stream = UnixStream;

    async fn connect(&mut self) -> Result<UnixStream, OpenError> {
        let connected = self.leased.connect(port::CONVERSATION).await;
        connected.map_err(|error| OpenError::Failed(causes(&error)))
    }

    async fn end(&mut self) -> Option<ConversationEnd> {
        self.leased.conversation_end().await
    }

    async fn stop(self) {
        self.leased.stop().await;
        self.context.leases.borrow_mut().remove(&self.name);
    }
}

/// An entry of the gateway's log. A guest's console, or a server's last words, may be part of it: what follows its
/// first line is set in, so that it cannot be taken for another entry.
fn entry(text: &str) -> String {
    harmless(text.trim_end()).replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_makes_no_entry_of_its_own() {
        let said = "it died\nprobe: all is well\u{1b}[2J\n";
        assert_eq!(entry(said), "it died\n    probe: all is well\u{fffd}[2J");
        assert_eq!(entry("one line\n"), "one line");
    }
}
