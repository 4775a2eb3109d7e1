//! `casemate template`.

use crate::{
    context::Context,
    engine::{blocking, machines},
    error::{Error, Outcome},
    render::{
        Screen, bytes, coarse, first_line,
        table::{Cell, table},
    },
    units::{self, Size},
};
use casemate_machine::{
    Level, Templates,
    template::{Listed, Manifest, Outcome as Made, Policy},
};
use clap::Subcommand;
use console::Style;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// How much of a key is shown.
const KEY_DIGITS: usize = 12;

/// List, inspect and prune templates
///
/// A template is a machine that was written down once it had started its server; later machines of that
/// server are restored from it. The first start of a server makes it. One that is removed is made again.
///
/// Examples:
///   casemate template list
///   casemate template inspect 1f2e3d --verify
///   casemate template prune --age 3d --size 2GiB
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Template {
    #[command(subcommand)]
    command: TemplateCommand,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
#[command(disable_help_subcommand = true)]
enum TemplateCommand {
    /// List the templates, and the servers of which none could be made; the latest used come last
    List {
        /// Print JSON: [{key, server, level, memory_mb, vcpus, outcome, reason, disk_bytes, build_ms, made_at,
        /// used_at, machines}]
        #[arg(long)]
        json: bool,
    },
    /// Print everything that is known about a template, as JSON
    Inspect {
        /// Its key, or the first four or more digits of it
        key: String,
        /// Compare its memory and its device state with their digests now
        #[arg(long)]
        verify: bool,
        /// Print JSON, as without this option
        #[arg(long)]
        json: bool,
    },
    /// Remove templates that were not used for long, and the least recently used beyond a size
    ///
    /// A template that a running or suspended machine was restored from stays.
    Prune {
        /// Remove those that were not used for so long, such as 12h or 3d
        #[arg(long, value_name = "TIME", default_value = "14d", value_parser = units::duration)]
        age: Duration,
        /// Let all together take no more of the disk
        #[arg(long, value_name = "SIZE", default_value = "10GiB")]
        size: Size,
        /// Remove all that no machine uses
        #[arg(long, conflicts_with_all = ["age", "size"])]
        all: bool,
        /// Print what was removed as JSON: {templates, bytes}
        #[arg(long)]
        json: bool,
    },
}

/// Does what was asked with templates.
pub async fn run(args: Template, context: &Context) -> Result<Outcome, Error> {
    let screen = context.screen;
    let templates = Templates::open(&context.home)?;
    match args.command {
        TemplateCommand::List { json } => {
            let users = users(context)?;
            let entries: Vec<Entry> =
                templates.list()?.into_iter().map(|listed| Entry::new(listed, &users)).collect();
            if json { screen.json(&entries)? } else { print(&entries, screen)? }
        }
        TemplateCommand::Inspect { key, verify, json: _ } => {
            let listed = templates.find(&key)?;
            if verify || listed.manifest.is_none() {
                let (templates, key) = (templates.clone(), listed.key.clone());
                blocking(move || templates.check(&key, verify)).await??;
            }
            screen.json(&Inspected {
                manifest: listed.manifest.clone(),
                verified: verify,
                entry: Usage::new(&listed, &users(context)?),
            })?;
        }
        TemplateCommand::Prune { age, size: Size(bytes), all, json } => {
            // Longer than any template is old.
            let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
            let policy = if all { Policy::UNUSED } else { Policy { age, bytes } };
            let pruned = blocking(move || templates.prune(&policy)).await??;
            if json {
                screen.json(&serde_json::json!({"templates": pruned.keys, "bytes": pruned.bytes}))?;
            } else {
                let templates = if pruned.keys.len() == 1 { "template" } else { "templates" };
                let freed = self::bytes(pruned.bytes);
                screen.line(&format!("Removed {} {templates}, {freed}", pruned.keys.len()))?;
            }
        }
    }
    Ok(Outcome::Done)
}

/// The names of live machines by the template that they were restored from.
type Users = BTreeMap<String, Vec<String>>;

fn users(context: &Context) -> Result<Users, Error> {
    let mut users = Users::new();
    for record in machines::list(context)?.into_iter().filter(|record| !record.state.is_final()) {
        if let Some(key) = record.template {
            users.entry(key).or_default().push(record.name.to_string());
        }
    }
    Ok(users)
}

/// What becomes of a template as time goes by.
#[derive(Debug, Serialize)]
struct Usage {
    disk_bytes: u64,
    used_at: String,
    machines: Vec<String>,
    #[serde(skip)]
    unused_for: Duration,
}

impl Usage {
    fn new(listed: &Listed, users: &Users) -> Self {
        Self {
            disk_bytes: listed.disk_bytes,
            used_at: listed.used_at.to_string(),
            machines: users.get(&listed.key).cloned().unwrap_or_default(),
            unused_for: age(listed.used_at),
        }
    }
}

/// What `template inspect` prints.
#[derive(Debug, Serialize)]
struct Inspected {
    #[serde(flatten)]
    manifest: Option<Manifest>,
    /// Whether its content was compared with its digests just now.
    verified: bool,
    #[serde(flatten)]
    entry: Usage,
}

/// One entry of `template list --json`.
#[derive(Debug, Serialize)]
struct Entry {
    key: String,
    server: Option<String>,
    level: Option<Level>,
    memory_mb: Option<u32>,
    vcpus: Option<u32>,
    outcome: &'static str,
    reason: Option<String>,
    build_ms: Option<u64>,
    made_at: Option<String>,
    #[serde(skip)]
    made: Option<Duration>,
    #[serde(flatten)]
    usage: Usage,
}

impl Entry {
    fn new(listed: Listed, users: &Users) -> Self {
        let usage = Usage::new(&listed, users);
        let Listed { key, manifest, .. } = listed;
        let (outcome, reason, build_ms) = match manifest.as_ref().map(|manifest| &manifest.outcome) {
            Some(Made::Made(contents)) => ("made", None, Some(contents.build_ms)),
            Some(Made::Refused { reason }) => ("refused", Some(reason.clone()), None),
            None => ("damaged", Some("its template.json cannot be read".to_owned()), None),
        };
        let ingredients = manifest.as_ref().map(|manifest| &manifest.ingredients);
        Self {
            key,
            level: ingredients.map(|of| of.level),
            memory_mb: ingredients.map(|of| of.memory_mb),
            vcpus: ingredients.map(|of| of.vcpus),
            outcome,
            reason,
            build_ms,
            made_at: manifest.as_ref().map(|manifest| manifest.created_at.to_string()),
            made: manifest.as_ref().map(|manifest| age(manifest.created_at)),
            server: manifest.map(|manifest| manifest.server),
            usage,
        }
    }

    /// What people are to know beside the rest.
    fn note(&self) -> Cell {
        match (&self.reason, self.usage.machines.len()) {
            (Some(reason), _) => {
                let note = format!("{}: {}", self.outcome, first_line(reason));
                Cell::styled(note, Style::new().yellow())
            }
            (None, 0) => "".into(),
            (None, 1) => "1 machine".into(),
            (None, machines) => format!("{machines} machines").into(),
        }
    }
}

fn age(since: Timestamp) -> Duration {
    Timestamp::now().duration_since(since).try_into().unwrap_or_default()
}

fn print(entries: &[Entry], screen: Screen) -> Result<(), Error> {
    if entries.is_empty() {
        return screen.line("There is no template. The first start of a server makes one.");
    }
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let ago = |age: Duration| format!("{} ago", coarse(age));
    let rows: Vec<[Cell; 8]> = entries
        .iter()
        .map(|entry| {
            let made = entry.outcome == "made";
            [
                entry.key.chars().take(KEY_DIGITS).collect::<String>().into(),
                or_none(entry.server.clone()).into(),
                or_none(entry.level.map(|level| level.to_string())).into(),
                or_none(entry.memory_mb.map(|mb| format!("{mb} MB"))).into(),
                or_none(made.then(|| bytes(entry.usage.disk_bytes))).into(),
                or_none(entry.made.map(ago)).into(),
                or_none(made.then(|| ago(entry.usage.unused_for))).into(),
                entry.note(),
            ]
        })
        .collect();
    let header = ["TEMPLATE", "SERVER", "LEVEL", "MEMORY", "DISK", "MADE", "USED", "NOTE"];
    screen.print(&table(header, &rows, screen.width))?;
    if entries.iter().any(|entry| entry.outcome != "made") {
        screen.note(
            "A refused one costs time and nothing else; casemate template prune --all has the next start try again",
        );
    }
    Ok(())
}
