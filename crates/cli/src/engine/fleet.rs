//! The machines of the gateway: one for each session, planned and started as `casemate run` does.

use super::{Conversation, Leased, Lifetime, Unknown, machines, plan, resolve, routing};
use crate::{
    command::options::{MachineOptions, ServerOptions, StartOptions},
    config::{
        Configuration,
        settings::{self, Flags, Settings},
    },
    context::Context,
    engine::{Target, launch_error},
    error::Error,
    render::harmless,
};
use casemate_gateway::{Backend, Machine, OpenError};
use casemate_machine::{ConversationEnd, LaunchError, Step, registry::ClaimError};
use casemate_proto::ids::Name;
use std::rc::Rc;
use tokio::net::UnixStream;

/// Starts machines for sessions.
#[derive(Debug)]
pub struct Fleet {
    context: Rc<Context>,
    configuration: Configuration,
    machine: MachineOptions,
    start: StartOptions,
}

/// The machine of a session.
#[derive(Debug)]
pub struct Berth {
    context: Rc<Context>,
    name: Name,
    leased: Leased,
}

impl Fleet {
    /// Machines of the servers of a configuration, with what the command line says about all of them.
    pub fn new(
        context: Rc<Context>,
        configuration: Configuration,
        machine: MachineOptions,
        start: StartOptions,
    ) -> Self {
        Self { context, configuration, machine, start }
    }

    /// The names of the servers.
    pub fn servers(&self) -> impl Iterator<Item = &Name> {
        self.configuration.servers.keys()
    }

    /// What a server's machine is to be like. Tells what would fail later for want of a word.
    pub fn settle(&self, name: &Name) -> Result<(Target<'_>, Settings), Error> {
        let (context, configuration) = (&self.context, &self.configuration);
        let said = ServerOptions::default();
        let mut target = resolve(context, configuration, name, &said, Unknown::Refused)?;
        let tools = routing::for_all(context, configuration, &mut target, &said)?;
        let flags = Flags { machine: &self.machine, start: &self.start };
        let (server, defaults) = (target.server, &configuration.defaults);
        let settings = settings::merge_for(flags, &context.environment, &tools, server, defaults)?;
        Ok((target, settings))
    }

    async fn launch(&self, server: &str) -> Result<Berth, OpenError> {
        let name: Name = server.parse().map_err(|_| OpenError::Failed(format!("no server {server:?}")))?;
        let planned = async {
            let (target, settings) = self.settle(&name)?;
            let plan = plan(&self.context, &self.configuration, &target, &settings).await?;
            Ok((plan, machines::passing_name(&target.name)?))
        };
        let (plan, machine) = planned.await.map_err(|error: Error| self.failed(&error))?;
        let mut told = false;
        let progress = |step| {
            if matches!(step, Step::BuildingTemplate(_)) && !told {
                self.context.screen.note(&format!("making a template of {server}, once"));
                told = true;
            }
        };
        let (lifetime, conversation) = (Lifetime::Leased, Conversation::Client);
        let launched =
            machines::launch_quietly(&self.context, &plan, &machine, lifetime, conversation, progress).await;
        match launched {
            Ok(leased) => {
                machines::warn_of_lost_template(&self.context, &[leased.record()]);
                Ok(Berth { context: Rc::clone(&self.context), name: machine, leased })
            }
            Err(LaunchError::Claim(ClaimError::NoMemory(refusal))) => {
                Err(OpenError::NoRoom(refusal.to_string()))
            }
            Err(LaunchError::Claim(error @ ClaimError::Busy)) => Err(OpenError::NoRoom(error.to_string())),
            Err(error) => Err(self.failed(&launch_error(machine.as_str(), error))),
        }
    }

    /// A client is told what failed; where the logs are, and what to try, is for whoever runs the gateway.
    fn failed(&self, error: &Error) -> OpenError {
        self.context.screen.note(&harmless(&error.report().to_string()));
        OpenError::Failed(error.to_string())
    }
}

impl Backend for Fleet {
    type Machine = Berth;

    fn knows(&self, server: &str) -> bool {
        server.parse().is_ok_and(|name: Name| self.configuration.servers.contains_key(&name))
    }

    async fn open(&self, server: &str) -> Result<Berth, OpenError> {
        self.launch(server).await
    }

    fn note(&self, sentence: &str) {
        // A guest's console may be part of it.
        self.context.screen.note(&harmless(sentence));
    }
}

impl Machine for Berth {
    type Stream = UnixStream;

    async fn connect(&mut self) -> Result<UnixStream, OpenError> {
        Machine::connect(&mut self.leased).await
    }

    async fn end(&mut self) -> Option<ConversationEnd> {
        self.leased.conversation_end().await
    }

    async fn stop(self) {
        Machine::stop(self.leased).await;
        self.context.leases.borrow_mut().remove(&self.name);
    }
}
