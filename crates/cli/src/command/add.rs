//! `casemate add`.

use super::options::{LaterOptions, LifeOptions, MachineOptions, ServerOptions};
use crate::{
    clients::is_secret,
    config::{
        store::{Definition, Store},
        transport::Transport,
    },
    context::Context,
    engine::{
        self, Source,
        images::{self, Wanted},
    },
    error::{Error, Outcome},
};
use casemate_proto::ids::Name;
use serde::Serialize;

/// Add a server: resolve its source, build its image, remember it
///
/// Sources: npm:PACKAGE[@VERSION], pypi:PACKAGE[@VERSION], dir:PATH, or a command as it stands in a
/// client's configuration; `npx` and `uvx` commands are taken for the packages that they would run.
/// A package, a folder or a program is copied as it is now: --replace takes it anew.
///
/// Examples:
///   casemate add everything npm:@modelcontextprotocol/server-everything
///   casemate add time pypi:mcp-server-time -- --local-timezone UTC
///   casemate add files 'npx -y @modelcontextprotocol/server-filesystem /tmp'
///   casemate add mine dir:./my-server --command 'node server.js'
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Add {
    /// The name that other commands call the server by
    name: Name,
    /// What the server is made from; may be left out where --command or a command after -- says it
    source: Option<String>,
    /// Arguments of the server, or its command where no SOURCE was given
    #[arg(last = true)]
    args: Vec<String>,
    /// `stdio` for a server that is started here; without a command it is the built-in probe server
    #[arg(long, value_name = "URL", conflicts_with = "source")]
    url: Option<String>,
    /// Replace the server of that name
    #[arg(long)]
    replace: bool,
    /// Let packages run code of theirs while they are installed (not built yet)
    #[arg(long, hide = true)]
    allow_scripts: bool,
    /// Print the added server as JSON: {name, source, version, image, command}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    life: LifeOptions,
    #[command(flatten)]
    later: LaterOptions,
}

/// What `add --json` prints.
#[derive(Debug, Serialize)]
struct Added<'a> {
    name: &'a str,
    source: &'a str,
    version: Option<&'a str>,
    image: &'a str,
    command: &'a [String],
}

/// Builds the server's image and writes the server down.
pub async fn run(args: Add, context: &Context) -> Result<Outcome, Error> {
    args.later.refuse()?;
    let wanted = args.wanted(context)?;
    let configuration = context.configuration()?;
    let target = engine::undefined(args.name.as_str(), wanted.source.clone(), &args.server)?;
    let target = engine::defined(context, &configuration.defaults, target, &args.machine)?;
    let file = context.config_file()?;
    if let Some(server) = configuration.servers.get(&args.name) {
        if !args.replace {
            return Err(Error::configuration(format!(
                "server {} exists already, at {}",
                args.name, server.place
            ))
            .hint("add --replace to replace it, or choose another name"));
        }
        if *server.place.path != *file {
            return Err(Error::configuration(format!("server {} is defined at {}", args.name, server.place))
                .hint("change it there"));
        }
    }
    let image = images::build(context, &configuration.registries, wanted.clone()).await?;
    if image.meta.command.is_empty() {
        return Err(Error::configuration(format!("{} does not say which program to start", wanted.source))
            .hint("say it with --command 'PROGRAM ARGUMENTS'"));
    }
    let definition = Definition {
        source: wanted.source.to_string(),
        command: args.server.command.clone().filter(|_| wanted.command.is_some()),
        args: wanted.args,
        isolation: args.machine.isolation.map(|level| level.to_string()),
        backend: args.machine.backend.map(|kind| kind.to_string()),
        memory_mb: args.machine.memory,
        vcpus: args.machine.vcpus,
        idle: args.life.idle.map(|idle| idle.to_string()),
        restart: args.life.restart.map(|policy| policy.to_string()),
        env: target.env,
        secrets: target.secrets.iter().map(|wish| (wish.name.clone(), wish.said())).collect(),
        allow: args.server.allow.iter().map(ToString::to_string).collect(),
        forward: args.server.forward.iter().map(ToString::to_string).collect(),
        transport: (target.transport != Transport::Stdio).then(|| target.transport.as_str().to_owned()),
        port: target.transport.port(),
        path: target.transport.path().map(str::to_owned),
        mounts: args.server.mount.iter().map(ToString::to_string).collect(),
        volumes: args.server.volume.iter().map(ToString::to_string).collect(),
        version: images::version(&wanted.source, &image.meta),
        image: Some(image.digest.clone()),
    };
    let store = Store::open(&file)?;
    // Somebody else may have added the name while the image was built.
    if !args.replace && context.configuration()?.servers.contains_key(&args.name) {
        return Err(Error::configuration(format!(
            "server {} was added meanwhile by another command",
            args.name
        ))
        .hint("add --replace to replace it"));
    }
    store.put(&args.name, &definition)?;
    if args.json {
        context.screen.json(&Added {
            name: args.name.as_str(),
            source: &definition.source,
            version: definition.version.as_deref(),
            image: &image.digest,
            command: &image.meta.command,
        })?;
    } else {
        let version = definition.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        context.screen.line(&format!("Added {}: {}{version}", args.name, definition.source))?;
        let in_clear = definition.env.iter().filter(|(name, value)| is_secret(name, value));
        for (name, _) in in_clear {
            context.screen.note(&format!(
                "{name} looks like a secret, and is in config.toml in clear; --secret {name}=keyring:KEY (casemate \
                 secret set KEY) keeps it out"
            ));
        }
        context.screen.note(&format!("Try: casemate tools {}", args.name));
    }
    Ok(Outcome::Done)
}

impl Add {
    /// What is to be built.
    fn wanted(&self, context: &Context) -> Result<Wanted, Error> {
        if let Some(url) = self.url.as_deref().filter(|url| *url != "stdio") {
            if url.starts_with("http://") || url.starts_with("https://") {
                return Err(Error::unavailable(
                    "remote servers are not built yet: --url takes only \"stdio\"",
                )
                .hint("name a package or a command to run the server here"));
            }
            return Err(Error::usage(format!("--url {url:?} is neither \"stdio\" nor an http address")));
        }
        let command = self.server.command.as_deref().map(engine::split_command).transpose()?;
        let ((source, mut args), command) = match (&self.source, command) {
            (Some(text), command) => (engine::parse_source(text)?, command),
            (None, Some(words)) => (engine::source_of_command(&words)?, None),
            (None, None) if self.args.is_empty() && self.url.is_some() => {
                context
                    .screen
                    .warn(&format!("{} has no command: it runs the built-in probe server", self.name));
                ((Source::Builtin, Vec::new()), None)
            }
            (None, None) if self.args.is_empty() => {
                let hint = format!(
                    "casemate add {} npm:PACKAGE, or pypi:PACKAGE, dir:PATH, or a command",
                    self.name
                );
                return Err(Error::usage(format!("no source given for server {}", self.name)).hint(hint));
            }
            (None, None) => (engine::source_of_command(&self.args)?, None),
        };
        if self.source.is_some() || self.server.command.is_some() {
            args.extend(self.args.iter().cloned());
        }
        args.extend(self.server.further_args()?);
        // Who replaces a server wants what its source gives today.
        Ok(Wanted { source, args, command, allow_scripts: self.allow_scripts, refresh: self.replace })
    }
}
