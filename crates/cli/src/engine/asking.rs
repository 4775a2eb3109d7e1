//! Asking a server: in the conversation of a machine that runs, or of one started for this command alone.

use super::{
    Conversation, Leased, Lifetime, McpAnswer, Record, Session, Unknown, launch_error,
    machines::{self, Found},
    plan, resolve,
    routing::{self, Need},
    session_error,
};
use crate::{
    command::options::{MachineOptions, ServerOptions, StartOptions},
    config::{
        Configuration, Server, Tool,
        settings::{self, Flags},
    },
    context::Context,
    error::Error,
    render::progress::Steps,
};
use casemate_proto::ids::Name;
use serde_json::value::RawValue;
use std::time::Duration;

/// What a machine must be like.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The machine's wall and size.
    pub machine: &'a MachineOptions,
    /// What it runs.
    pub server: &'a ServerOptions,
    /// How it is started.
    pub start: &'a StartOptions,
    /// A machine that is started stays.
    pub keep: bool,
    /// The tool that is called, if one is.
    pub tool: Option<&'a str>,
}

/// A server that can be asked. Dropping it stops the machine, if it was started for this.
#[derive(Debug)]
pub struct Asking {
    name: String,
    session: Session,
    own: Option<Leased>,
    keep: bool,
}

impl Asking {
    /// Finds the machine of a name that answers calls, or starts one.
    pub async fn open(context: &Context, name: &Name, wish: Wish<'_>) -> Result<Self, Error> {
        let configuration = context.configuration()?;
        // The name of a machine stands for its server.
        let server = machines::named(machines::list(context)?, name)
            .into_iter()
            .find_map(|record| record.server.parse().ok())
            .filter(|server| configuration.servers.contains_key(server));
        let server = server.as_ref().unwrap_or(name);
        let tool = match wish.tool {
            Some(tool) => routing::tool(&configuration, server, tool)?,
            None => None,
        };
        if let Some(record) = running(context, name, configuration.servers.get(server), wish).await? {
            let session = machines::session(context, &record).await?;
            return Ok(Self { name: record.name.to_string(), session, own: None, keep: true });
        }
        let leased = Self::start(context, &configuration, (name, server), tool, wish).await?;
        let name = leased.record().name.to_string();
        let session = leased.session().await.map_err(|error| session_error(&name, error))?;
        Ok(Self { name, session, own: Some(leased), keep: wish.keep })
    }

    async fn start(
        context: &Context,
        configuration: &Configuration,
        (name, server): (&Name, &Name),
        tool: Option<&Tool>,
        wish: Wish<'_>,
    ) -> Result<Leased, Error> {
        let mut target = resolve(context, configuration, server, wish.server, Unknown::Refused)?;
        if let Some(tool) = tool {
            target.add_folders(&tool.folders, wish.server);
        }
        let tool = tool.map(Tool::machine).unwrap_or_default();
        let flags = Flags { machine: wish.machine, start: wish.start };
        let (server, defaults) = (target.server, &configuration.defaults);
        let settings = settings::merge_for(flags, &context.environment, &tool, server, defaults)?;
        let (name, lifetime) = match wish.keep {
            true => (name.clone(), Lifetime::Detached),
            false => (machines::passing_name(&target.name)?, Lifetime::Leased),
        };
        if wish.keep {
            machines::refuse_taken(context, &name)?;
        }
        let plan = plan(context, configuration, &target, &settings).await?;
        machines::launch(context, &plan, &name, lifetime, Conversation::Held).await
    }

    /// Sends a request and waits for its answer.
    pub async fn ask(
        &mut self,
        method: &str,
        params: Option<Box<RawValue>>,
        timeout: Duration,
    ) -> Result<McpAnswer, Error> {
        let answer = self.session.mcp(method, params, timeout).await;
        answer.map_err(|error| session_error(&self.name, error))
    }

    /// Stops the machine, if it was started for this and is not to stay.
    pub async fn close(self, context: &Context) {
        drop(self.session);
        match self.own {
            Some(leased) if self.keep => drop(machines::let_go(context, leased)),
            Some(leased) => drop(leased.stop().await),
            None => {}
        }
    }
}

/// Finds the machine that runs and satisfies a call; says which one was passed over, and why.
async fn running(
    context: &Context,
    name: &Name,
    server: Option<&Server>,
    wish: Wish<'_>,
) -> Result<Option<Record>, Error> {
    let as_it_is = *wish.server == ServerOptions::default()
        && wish.machine.memory.is_none()
        && wish.machine.vcpus.is_none();
    if !as_it_is {
        return Ok(None);
    }
    let need = Need::new(wish.machine, &context.environment.machine, server, wish.tool);
    let (passed, lack) = match machines::answering(context, name, &need).await? {
        Found::Nothing => return Ok(None),
        Found::Lacking(passed, lack) => (passed, lack),
        Found::Running(record) => match need.stale(context, &record).await? {
            None => {
                if *wish.start != StartOptions::default() {
                    context.screen.note(&format!(
                        "{} runs and answers as it is: --cold, --idle and --restart are for machines that are started",
                        record.name
                    ));
                }
                return Ok(Some(*record));
            }
            Some(lack) => (record.name, lack),
        },
    };
    context.screen.warn(&format!("machine {passed} is passed over ({lack}): another one is started"));
    Ok(None)
}

/// Starts a machine that a client is to speak with, for as long as this process holds it.
pub async fn lease_for_client(context: &Context, plan: &super::Plan, server: &str) -> Result<Leased, Error> {
    let name = machines::passing_name(server)?;
    let (lifetime, conversation) = (Lifetime::Leased, Conversation::Client);
    // Nothing is said where the client reads both, but for what takes long.
    let steps = Steps::new(context.screen);
    let progress = machines::watch(context, &steps, plan, &name);
    let leased = machines::launch_quietly(context, plan, &name, lifetime, conversation, progress).await;
    leased.map_err(|error| launch_error(name.as_str(), error))
}
