//! `casemate client-config`.

use super::client_file::{FileOptions, client_parser, launcher};
use crate::{
    clients::{Client, ClientError, Document, Launcher, Syntax, file::ClientFile},
    context::Context,
    engine,
    error::{Error, Outcome},
    render::{first_line, names as names_of},
};
use casemate_proto::ids::Name;
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};

/// Print what goes into a client's configuration, or write it there
///
/// For each NAME, or every server that was added, an entry that starts `casemate run NAME`.
/// --write touches casemate's own entries alone and leaves every other byte of the file as it is.
///
/// Examples:
///   casemate client-config claude-code everything
///   casemate client-config cursor --write
///   casemate client-config vscode --write --file .vscode/mcp.json
///   casemate client-config cursor --undo
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct ClientConfig {
    /// The client
    #[arg(value_parser = client_parser())]
    client: Client,
    /// The servers; all if none is named
    #[arg(conflicts_with = "undo")]
    names: Vec<Name>,
    #[command(flatten)]
    file: FileOptions,
    /// Print JSON: {client, format, file, servers: [{name, entry, command, args, env}], snippet, written, backup}
    #[arg(long)]
    json: bool,
}

/// What `client-config --json` prints.
#[derive(Debug, Serialize)]
struct Configured<'a> {
    client: Client,
    format: Syntax,
    file: Option<&'a Path>,
    servers: Vec<Server>,
    snippet: Option<&'a str>,
    written: bool,
    backup: Option<&'a Path>,
}

/// A server as the client will start it.
#[derive(Debug, Serialize)]
struct Server {
    name: Name,
    /// The name of its entry in the client's file.
    entry: String,
    command: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
}

/// Prints or writes the entries.
pub fn run(args: ClientConfig, context: &Context) -> Result<Outcome, Error> {
    let client = args.client;
    if args.file.undo {
        return args.file.take_back(client, context, args.json);
    }
    if args.file.file.is_some() && !args.file.write {
        return Err(Error::usage("--file names a file to write to").hint("add --write, or leave --file out"));
    }
    let names = args.names(context)?;
    let launcher = launcher(context)?;
    if args.file.write {
        args.write(&names, &launcher, context)
    } else {
        args.print(&names, &launcher, context)
    }
}

impl ClientConfig {
    /// The servers that are asked for, in their order.
    fn names(&self, context: &Context) -> Result<Vec<Name>, Error> {
        let configuration = context.configuration()?;
        if let Some(name) = self.names.iter().find(|name| !configuration.servers.contains_key(name)) {
            return Err(engine::unknown_server(name, &configuration));
        }
        if self.names.is_empty() && configuration.servers.is_empty() {
            return Err(Error::configuration("no server was added yet").hint(
                "casemate add NAME SOURCE adds one; casemate import CLIENT takes those that a client has",
            ));
        }
        let mut names = self.names.clone();
        names.sort();
        names.dedup();
        Ok(if names.is_empty() { configuration.servers.keys().cloned().collect() } else { names })
    }

    fn print(&self, names: &[Name], launcher: &Launcher, context: &Context) -> Result<Outcome, Error> {
        let path = self.file.path(self.client).ok();
        let mut document = self.document(String::new(), Path::new(""))?;
        let mut servers = Vec::new();
        for name in names {
            servers.push(self.put(&mut document, name, launcher, Path::new(""))?);
        }
        if self.json {
            let snippet = Some(document.text());
            context.screen.json(&self.report(path.as_deref(), servers, snippet, false, None))?;
            return Ok(Outcome::Done);
        }
        context.screen.print(document.text())?;
        if let Some(path) = path {
            context.screen.note(&format!("It goes into {}; --write puts it there", path.display()));
        }
        Ok(Outcome::Done)
    }

    fn write(&self, names: &[Name], launcher: &Launcher, context: &Context) -> Result<Outcome, Error> {
        let file = ClientFile::open(&self.file.path(self.client)?)?;
        let mut document = self.document(file.text().unwrap_or_default().to_owned(), file.path())?;
        let mut servers = Vec::new();
        for name in names {
            servers.push(self.put(&mut document, name, launcher, file.path())?);
        }
        let changed = file.text() != Some(document.text());
        let backup = if changed { Some(file.replace(document.text())?) } else { None };
        if self.json {
            let backup = backup.as_deref();
            context.screen.json(&self.report(Some(file.path()), servers, None, changed, backup))?;
            return Ok(Outcome::Done);
        }
        let path = file.path().display();
        if !changed {
            context.screen.line(&format!("{path} says so already"))?;
            return Ok(Outcome::Done);
        }
        let entries: Vec<String> = servers.iter().map(|server| first_line(&server.entry)).collect();
        context.screen.line(&format!("Wrote into {path}: {}", names_of(&entries)))?;
        let back = self.file.way_back("client-config", self.client);
        context.screen.note(&format!("Restart {}; {back} takes it back", self.client.title()));
        Ok(Outcome::Done)
    }

    fn document(&self, text: String, path: &Path) -> Result<Document, ClientError> {
        Document::new(self.client.shape(), text).map_err(ClientError::content(path))
    }

    /// Writes the entry of a server, under whatever name it has there already.
    fn put(
        &self,
        document: &mut Document,
        name: &Name,
        launcher: &Launcher,
        path: &Path,
    ) -> Result<Server, Error> {
        let entries = document.entries().map_err(ClientError::content(path))?;
        let present = entries.iter().find(|(_, entry)| launcher.runs(entry) == Some(name.as_str()));
        let (key, entry) = match present {
            Some((key, present)) => (key.clone(), launcher.renewed(name, present)),
            None if entries.contains_key(name.as_str()) => {
                let message =
                    format!("{} has a server {name} that is not casemate's {name}", self.client.title());
                let hint = format!(
                    "casemate import {} shows what it is and can take it over; else rename it in {}",
                    self.client,
                    path.display()
                );
                return Err(Error::configuration(message).hint(hint));
            }
            None => (name.to_string(), launcher.entry(name)),
        };
        document.put(&key, &entry).map_err(ClientError::content(path))?;
        Ok(Server {
            name: name.clone(),
            entry: key,
            command: entry.command,
            args: entry.args,
            env: entry.env,
        })
    }

    fn report<'a>(
        &self,
        file: Option<&'a Path>,
        servers: Vec<Server>,
        snippet: Option<&'a str>,
        written: bool,
        backup: Option<&'a Path>,
    ) -> Configured<'a> {
        let format = self.client.shape().syntax;
        Configured { client: self.client, format, file, servers, snippet, written, backup }
    }
}
