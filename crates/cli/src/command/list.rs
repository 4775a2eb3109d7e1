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
    /// Print JSON: [{name, source, isolation, command, image}], with tools where they have tables
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<ToolEntry<'a>>,
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
        let mounts = tool.folders.iter().map(ToString::to_string).collect();
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
            ]
        })
        .collect();
    context.screen.print(&table(
        ["NAME", "ISOLATION", "VERSION", "SOURCE", "TITLE"],
        &rows,
        context.screen.width,
    ))?;
    Ok(Outcome::Done)
}
