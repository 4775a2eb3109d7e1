//! What a name or a command stands for: the server that a machine is to run.

use crate::{
    command::options::ServerOptions,
    config::{Configuration, Pinned, Server, transport::Transport},
    context::Context,
    engine::Source,
    error::{Error, nearest},
    mounts::{FolderWish, VolumeWish, overrule},
    secrets::{self, SecretWish},
};
use casemate_machine::Egress;
use casemate_proto::ids::Name;
use std::collections::BTreeMap;

/// A server, with what this command line changes about it.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// The server's name, for people and for machines' names.
    pub name: String,
    /// What its image is made from.
    pub source: Source,
    /// The command inside the image, where it is not the source's own.
    pub command: Option<Vec<String>>,
    /// Arguments after the command.
    pub args: Vec<String>,
    /// Its environment, beside the image's.
    pub env: BTreeMap<String, String>,
    /// Secrets that it is given.
    pub secrets: Vec<SecretWish>,
    /// Folders of the host that it is given.
    pub folders: Vec<FolderWish>,
    /// Volumes that it is given.
    pub volumes: Vec<VolumeWish>,
    /// How it is reached.
    pub transport: Transport,
    /// What it may reach outside.
    pub egress: Egress,
    /// The image that was built for it, if its source is unchanged.
    pub pinned: Option<&'a Pinned>,
    /// Its definition, if it has one.
    pub server: Option<&'a Server>,
}

/// What a name that was never defined means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// A mistake.
    Refused,
    /// The built-in probe server, as the seeds' spelling has it.
    Probe,
}

/// Finds the server of a name.
pub fn resolve<'a>(
    context: &Context,
    configuration: &'a Configuration,
    name: &Name,
    options: &ServerOptions,
    unknown: Unknown,
) -> Result<Target<'a>, Error> {
    let command = options.command.as_deref().map(split_command).transpose()?;
    let server = configuration.servers.get(name);
    let mut target = match (server, command) {
        (None, None) if unknown == Unknown::Refused => return Err(unknown_server(name, configuration)),
        (None, None) => {
            context.screen.warn(&format!("{name} is not defined: it runs the built-in probe server"));
            Target::of_source(name.as_str(), Source::Builtin, Vec::new())
        }
        (None, Some(words)) => {
            let (source, args) = Source::from_command(&words)?;
            Target::of_source(name.as_str(), source, args)
        }
        (Some(server), command) => of_server(context, server, command)?,
    };
    target.transport = transport(options, &target.transport)?;
    target.overrule(options)?;
    Ok(target)
}

/// A server that is not defined yet: what it is made from, and what it is given.
pub fn undefined(name: &str, source: Source, options: &ServerOptions) -> Result<Target<'static>, Error> {
    let mut target = Target::of_source(name, source, Vec::new());
    target.transport = transport(options, &target.transport)?;
    target.overrule(options)?;
    Ok(target)
}

/// A server that is not defined but given as a command.
pub fn ad_hoc(name: &str, words: &[String], options: &ServerOptions) -> Result<Target<'static>, Error> {
    let (source, args) = Source::from_command(words)?;
    let mut target = Target::of_source(name, source, args);
    target.command = options.command.as_deref().map(split_command).transpose()?;
    target.transport = transport(options, &target.transport)?;
    target.overrule(options)?;
    Ok(target)
}

impl Target<'_> {
    /// What the command line says about the server.
    fn overrule(&mut self, options: &ServerOptions) -> Result<(), Error> {
        self.args.extend(options.further_args()?);
        let secrets = options.secrets()?;
        // One of the same name takes the place of what is written, whichever of the two it is.
        self.env.retain(|name, _| !secrets.iter().any(|secret| secret.name == *name));
        self.secrets.retain(|secret| !options.env.iter().any(|(name, _)| *name == secret.name));
        self.env.extend(options.env.iter().cloned());
        self.egress.extend(&options.egress());
        self.secrets = secrets::overrule(&self.secrets, &secrets);
        self.folders = overrule(&self.folders, &options.mount, |wish| &wish.target);
        self.volumes = overrule(&self.volumes, &options.volume, |wish| &wish.target);
        Ok(())
    }

    /// Gives the machine folders of tools, in the place of the server's where both have one; what the command
    /// line puts there stays.
    pub fn add_folders(&mut self, tools: &[FolderWish], options: &ServerOptions) {
        let server = self.server.map(|server| server.folders.as_slice()).unwrap_or_default();
        let written = overrule(server, tools, |wish| &wish.target);
        self.folders = overrule(&written, &options.mount, |wish| &wish.target);
    }
}

impl Target<'static> {
    fn of_source(name: &str, source: Source, args: Vec<String>) -> Self {
        let (name, env, transport) = (name.to_owned(), BTreeMap::new(), Transport::Stdio);
        let (folders, volumes, egress) = (Vec::new(), Vec::new(), Egress::default());
        let (secrets, command, pinned, server) = (Vec::new(), None, None, None);
        Self {
            name,
            source,
            command,
            args,
            env,
            secrets,
            transport,
            egress,
            folders,
            volumes,
            pinned,
            server,
        }
    }
}

fn of_server<'a>(
    context: &Context,
    server: &'a Server,
    command: Option<Vec<String>>,
) -> Result<Target<'a>, Error> {
    if let Some(unbuilt) = server.unbuilt.first() {
        return Err(Error::unavailable(format!("{}: {} is not built yet", unbuilt.place, unbuilt.what))
            .hint("remove it if the server can do without"));
    }
    let mut target = Target {
        name: server.name.to_string(),
        source: server.source.clone().unwrap_or(Source::Builtin),
        command: server.command.clone(),
        args: server.args.clone(),
        env: server.env.clone(),
        secrets: server.secrets.clone(),
        egress: server.egress.clone(),
        transport: server.transport.clone(),
        folders: server.folders.clone(),
        volumes: server.volumes.clone(),
        pinned: server.pinned.as_ref(),
        server: Some(server),
    };
    if server.source.is_none() && command.is_none() {
        context.screen.warn(&format!(
            "{} has no command ({}): it runs the built-in probe server",
            server.name, server.place
        ));
    }
    let Some(words) = command else { return Ok(target) };
    match (Source::from_command(&words)?, &target.source) {
        // A plain command chooses what to start in the server's own image.
        ((Source::Command(_), _), source) if *source != Source::Builtin => {
            (target.command, target.args) = (Some(words), Vec::new());
        }
        // Nothing in it but the probe server, or a command that names a package: another image.
        ((source, args), _) => {
            (target.source, target.args, target.command, target.pinned) = (source, args, None, None);
        }
    }
    Ok(target)
}

/// No server has that name.
pub fn unknown_server(name: &Name, configuration: &Configuration) -> Error {
    let known = configuration.servers.keys().map(Name::as_str);
    let hint = match nearest(name.as_str(), known) {
        Some(nearest) => format!("did you mean {nearest}?"),
        None if configuration.servers.is_empty() => format!("casemate add {name} npm:PACKAGE defines it"),
        None => "casemate list shows the servers that are defined".to_owned(),
    };
    Error::configuration(format!("no server is named {name}")).hint(hint)
}

/// How a server is reached that options say something of.
pub fn transport(options: &ServerOptions, base: &Transport) -> Result<Transport, Error> {
    options.transport.over(base).map_err(|error| {
        Error::usage("the way to the server cannot be used")
            .because(error)
            .hint("say --transport http --port N, or leave --port and --path out")
    })
}

/// Splits a command into words as a shell does.
pub fn split_command(text: &str) -> Result<Vec<String>, Error> {
    match shlex::split(text) {
        Some(words) if !words.is_empty() => Ok(words),
        Some(_) => {
            Err(Error::usage("the command is empty").hint("write it as in --command 'PROGRAM ARGUMENTS'"))
        }
        None => Err(Error::usage(format!("the quotes of {text:?} do not match"))
            .hint("close each quote, or put a \\ before one that is meant")),
    }
}

/// Reads a source, with its path made independent of the current folder.
pub fn parse_source(text: &str) -> Result<(Source, Vec<String>), Error> {
    Ok(absolute(Source::parse(text)?))
}

/// Reads the source that a command stands for.
pub fn source_of_command(words: &[String]) -> Result<(Source, Vec<String>), Error> {
    Ok(absolute(Source::from_command(words)?))
}

fn absolute((source, args): (Source, Vec<String>)) -> (Source, Vec<String>) {
    let source = match source {
        // A path without a current folder stays as it is, and is refused when it is used.
        Source::Dir(path) => Source::Dir(std::path::absolute(&path).unwrap_or(path)),
        other => other,
    };
    (source, args)
}
