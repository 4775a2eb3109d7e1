//! `casemate list`.

use crate::{
    config::{Server, Tool},
    context::Context,
    engine::Isolation,
    error::{Error, Outcome},
    render::{harmless, table::table},
};
use serde::Serialize;

/// List the servers that were added
///
/// Examples:
///   casemate list
///   casemate list --json
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct List {
    /// Print JSON: [{name, source, isolation, command, image}], and where there are any: mounts, volumes, allow,
    /// forward, secrets (names alone) and tools
    #[arg(long)]
    json: bool,
}

/// One entry of `list --json`.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    name: &'a str,
    source: String,
    isolation: Option<Isolation>,
    command: Option<String>,
    image: Option<&'a str>,
    #[serde(flatten)]
    given: Given<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<ToolEntry<'a>>,
}

/// What a server is given of this host and of the network.
#[derive(Debug, Serialize)]
struct Given<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    forward: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<&'a str>,
}

impl<'a> Given<'a> {
    fn new(server: &'a Server) -> Self {
        Self {
            mounts: texts(&server.folders),
            volumes: texts(&server.volumes),
            allow: texts(&server.egress.allow),
            forward: texts(&server.egress.forward),
            secrets: server.secrets.iter().map(|secret| secret.name.as_str()).collect(),
        }
    }

    /// For people, on one line.
    fn line(&self) -> String {
        let secrets: Vec<String> = self.secrets.iter().map(|name| (*name).to_owned()).collect();
        let kinds = [("", &self.mounts), ("volume ", &self.volumes), ("allow ", &self.allow)];
        let kinds = kinds.into_iter().chain([("forward ", &self.forward), ("secret ", &secrets)]);
        let said = kinds.flat_map(|(kind, things)| things.iter().map(move |thing| format!("{kind}{thing}")));
        said.collect::<Vec<_>>().join(", ")
    }
}

fn texts(things: &[impl ToString]) -> Vec<String> {
    things.iter().map(ToString::to_string).collect()
}

/// What the configuration says of a tool; what it does not say is as the server has it.
#[derive(Debug, Serialize)]
struct ToolEntry<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolation: Option<Isolation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpus: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<String>,
}

impl<'a> ToolEntry<'a> {
    fn new(tool: &'a Tool) -> Self {
        let (isolation, memory_mb, vcpus) = (tool.isolation, tool.memory_mb, tool.vcpus);
        let mounts = texts(&tool.folders);
        Self { name: &tool.name, isolation, memory_mb, vcpus, mounts }
    }
}

impl<'a> Entry<'a> {
    fn new(server: &'a Server, default: Option<Isolation>) -> Self {
        let words = server.command.iter().flatten().chain(&server.args);
        let command = shlex::try_join(words.map(String::as_str)).ok().filter(|text| !text.is_empty());
        Self {
            name: server.name.as_str(),
            source: server.source_text(),
            isolation: server.isolation.or(server.backend.map(|backend| backend.isolation())).or(default),
            command,
            image: server.pinned.as_ref().map(|pinned| pinned.digest.as_str()),
            given: Given::new(server),
            tools: server.tools.iter().map(ToolEntry::new).collect(),
        }
    }
}

/// Prints the servers of the configuration.
pub fn run(args: List, context: &Context) -> Result<Outcome, Error> {
    let configuration = context.configuration()?;
    let default = configuration.defaults.isolation.or(Some(Isolation::Microvm));
    let entries: Vec<Entry<'_>> =
        configuration.servers.values().map(|server| Entry::new(server, default)).collect();
    if args.json {
        context.screen.json(&entries)?;
        return Ok(Outcome::Done);
    }
    if entries.is_empty() {
        context.screen.line(
            "No servers yet. Try: casemate add everything npm:@modelcontextprotocol/server-everything",
        )?;
        return Ok(Outcome::Done);
    }
    let rows: Vec<_> = entries
        .iter()
        .zip(configuration.servers.values())
        .map(|(entry, server)| {
            let version = server.pinned.as_ref().and_then(|pinned| pinned.version.clone());
            [
                entry.name.into(),
                entry.isolation.map_or("-", |level| level.as_str()).into(),
                version.unwrap_or_else(|| "-".to_owned()).into(),
                harmless(&entry.source).into(),
                harmless(server.title.as_deref().unwrap_or_default()).into(),
                harmless(&entry.given.line()).into(),
            ]
        })
        .collect();
    // Few servers have either.
    let title =
        if configuration.servers.values().any(|server| server.title.is_some()) { "TITLE" } else { "" };
    let given = if entries.iter().any(|entry| !entry.given.line().is_empty()) { "GIVEN" } else { "" };
    let header = ["NAME", "ISOLATION", "VERSION", "SOURCE", title, given];
    context.screen.print(&table(header, &rows, context.screen.width))?;
    Ok(Outcome::Done)
}
