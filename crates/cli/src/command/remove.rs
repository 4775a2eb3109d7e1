//! `casemate remove`.

use crate::{
    config::store::Store,
    context::Context,
    engine::{self, machines},
    error::{Error, Outcome},
};
use casemate_proto::ids::Name;

/// Forget a server; its image stays until `casemate image prune`
///
/// Machines of it that run go on: `casemate stop NAME` ends them.
///
/// Examples:
///   casemate remove everything
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Remove {
    /// The server's name
    name: Name,
    /// Print what was forgotten as JSON: {name}
    #[arg(long)]
    json: bool,
}

/// Removes a server from the configuration file.
pub fn run(args: Remove, context: &Context) -> Result<Outcome, Error> {
    let file = context.config_file()?;
    let store = Store::open(&file)?;
    let configuration = context.configuration()?;
    let Some(server) = configuration.servers.get(&args.name) else {
        return Err(engine::unknown_server(&args.name, &configuration));
    };
    if !store.remove(&args.name)? {
        return Err(Error::configuration(format!("server {} is defined at {}", args.name, server.place))
            .hint("remove it there"));
    }
    let running = machines::named(machines::list(context)?, &args.name);
    if !running.is_empty() {
        context.screen.note(&format!("A machine of it still runs: casemate stop {}", args.name));
    }
    if args.json {
        context.screen.json(&serde_json::json!({ "name": args.name }))?;
    } else {
        context.screen.line(&format!("Removed {}", args.name))?;
    }
    Ok(Outcome::Done)
}
