//! `casemate tools`.

use super::{
    call::refusal,
    options::{LaterOptions, MachineOptions, ServerOptions, StartOptions},
};
use crate::{
    context::Context,
    engine::{
        McpAnswer,
        asking::{Asking, Wish},
    },
    error::{Error, Outcome},
    render::{first_line, harmless, table::table},
};
use casemate_proto::ids::Name;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use std::time::Duration;

/// More pages of tools are taken for a server that never ends its list.
const PAGES: usize = 100;

/// List the tools of a server
///
/// Asks the running machine of that server, or one that is started for this and stopped after it.
///
/// Examples:
///   casemate tools everything
///   casemate tools everything --json
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Tools {
    /// A machine, or a server
    name: Name,
    /// Print the tools as the server sent them, a JSON array
    #[arg(long)]
    json: bool,
    /// How many seconds the server may take to answer, 1 to 86400
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: u64,
    /// Leave a machine that had to be started running
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    start: StartOptions,
    #[command(flatten)]
    later: LaterOptions,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    tools: Vec<Box<RawValue>>,
    #[serde(default)]
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Tool {
    name: String,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    description: Option<String>,
}

#[derive(Serialize)]
struct After {
    cursor: String,
}

/// Lists all pages of tools.
pub async fn run(args: Tools, context: &Context) -> Result<Outcome, Error> {
    args.later.refuse()?;
    let wish = Wish {
        machine: &args.machine,
        server: &args.server,
        start: &args.start,
        keep: args.keep,
        tool: None,
    };
    let mut asking = Asking::open(context, &args.name, wish).await?;
    let listed = list(&mut asking, &args).await;
    asking.close(context).await;
    let tools = match listed? {
        Ok(tools) => tools,
        Err(error) if !args.json => return Err(refusal(&args.name, &error)),
        Err(error) => {
            context.screen.json(&serde_json::json!({"error": error}))?;
            return Ok(Outcome::Failed);
        }
    };
    if args.json {
        context.screen.json(&tools)?;
        return Ok(Outcome::Done);
    }
    let rows = tools.iter().map(|raw| match serde_json::from_str::<Tool>(raw.get()) {
        Ok(tool) => {
            let text = tool.description.or(tool.title).unwrap_or_default();
            [harmless(&tool.name).into(), first_line(&text).into()]
        }
        Err(_) => ["?".into(), "the server sent no tool here; see --json".into()],
    });
    context.screen.print(&table(["TOOL", "DESCRIPTION"], &rows.collect::<Vec<_>>(), context.screen.width))?;
    Ok(Outcome::Done)
}

/// The tools of all pages, or the error that the server answered.
async fn list(asking: &mut Asking, args: &Tools) -> Result<Result<Vec<Box<RawValue>>, Box<RawValue>>, Error> {
    let broken = |error: serde_json::Error| {
        Error::server(format!("server {} sent no list of tools", args.name))
            .because(error)
            .hint(format!("casemate logs {} shows what it said", args.name))
    };
    let mut tools = Vec::new();
    let mut cursor: Option<String> = None;
    for _ in 0..PAGES {
        let params =
            cursor.take().map(|cursor| to_raw_value(&After { cursor })).transpose().map_err(broken)?;
        let answer = asking.ask("tools/list", params, Duration::from_secs(args.timeout)).await?;
        let result = match answer {
            McpAnswer::Result(result) => result,
            McpAnswer::Error(error) => return Ok(Err(error)),
        };
        let page: Page = serde_json::from_str(result.get()).map_err(broken)?;
        tools.extend(page.tools);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(Ok(tools));
        }
    }
    Err(Error::server(format!("server {} lists its tools on more than {PAGES} pages", args.name))
        .hint("call a tool by its name, if you know it; a list without end is a fault of the server"))
}
