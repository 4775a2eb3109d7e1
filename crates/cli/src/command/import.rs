//! `casemate import`.

use super::{
    client_file::{FileOptions, client_parser, launcher},
    options::{MachineOptions, ServerOptions},
};
use crate::{
    clients::{
        Client, ClientError, Document, Launcher, Mistake, Obstacle,
        adopt::{
            HostPaths, Known, Proposal, SecretsTo, Taken, Terms, Verdict, keyring_key, propose, resembling,
        },
        file::ClientFile,
    },
    config::store::{Definition, Store},
    context::Context,
    engine::{
        self,
        images::{self, Wanted},
        secrets::{check_keyring, find, store_in_keyring},
    },
    error::{Error, Outcome, causes},
    mounts::FolderWish,
    render::{first_line, names},
    secrets::SecretSource,
};
use casemate_machine::secret::Secrets;
use casemate_proto::ids::Name;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Take over the servers that a client has, so that they run in casemate
///
/// Shows what would become of each server. With --write it builds their images, adds them to
/// casemate, and has the client start `casemate run NAME` in their place. Servers that cannot be
/// taken over stay as they are. So do those with secrets, unless --keyring or --plain-env says where
/// those go, and those whose arguments name paths of this host, unless --host-paths says what becomes
/// of them. No value of a variable is shown.
///
/// Examples:
///   casemate import claude-desktop
///   casemate import cursor --write --host-paths mount
///   casemate import vscode --write --file .vscode/mcp.json
///   casemate import cursor --undo
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Import {
    /// The client
    #[arg(value_parser = client_parser())]
    client: Client,
    #[command(flatten)]
    file: FileOptions,
    /// Take over servers with secrets in their environment too, and put those into the system's keyring
    #[arg(long, conflicts_with_all = ["undo", "plain_env"])]
    keyring: bool,
    /// Take over servers with secrets too, and write those into config.toml in clear
    #[arg(long, conflicts_with = "undo")]
    plain_env: bool,
    /// What becomes of servers whose arguments name files or folders of this host
    #[arg(long, value_name = "HOW", default_value = "leave", conflicts_with = "undo")]
    host_paths: HostPaths,
    /// Leave building images to the first start, which a client may not wait for
    #[arg(long, requires = "write")]
    no_build: bool,
    /// Print JSON: {client, file, servers: [{entry, action, server, source, mounts, variables, reason, notes}],
    /// written, backup}; action is add, known, own, skip or failed
    #[arg(long)]
    json: bool,
}

/// What `import --json` prints.
#[derive(Debug, Serialize)]
struct Imported<'a> {
    client: Client,
    file: &'a Path,
    servers: Vec<Shown<'a>>,
    written: bool,
    backup: Option<&'a Path>,
}

/// What becomes of one server of the client.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    entry: &'a str,
    action: &'static str,
    server: Option<&'a Name>,
    source: Option<String>,
    /// The folders of this host that it may read, as `--mount` says them.
    mounts: Vec<String>,
    variables: &'a [String],
    reason: Option<String>,
    notes: &'a [String],
    #[serde(skip)]
    folders: &'a [FolderWish],
}

/// Shows or does it.
pub async fn run(args: Import, context: &Context) -> Result<Outcome, Error> {
    let client = args.client;
    if args.file.undo {
        let outcome = args.file.take_back(client, context, args.json)?;
        context
            .screen
            .note("Servers that were added stay: casemate list shows them, casemate remove NAME forgets one");
        return Ok(outcome);
    }
    let file = ClientFile::read(&args.file.path(client)?)?;
    let text = file.text().ok_or_else(|| ClientError::Missing { path: file.path().to_owned() })?;
    let content = |mistake| ClientError::content(file.path())(mistake);
    let launcher = launcher(context)?;
    let document = Document::new(client.shape(), text.to_owned()).map_err(content)?;
    let known = known(&document, args.terms(), context).await?.map_err(content)?;
    let mut proposals = propose(&document, &launcher, &known, args.terms()).map_err(content)?;
    // What cannot be written is found out before anything is built.
    rewrite(&document, &proposals, &launcher).map_err(content)?;
    let mut backup = None;
    if args.file.write {
        let added_so_far = args.add(&mut proposals, context).await;
        added_so_far.map_err(|(error, names)| after(error, &names))?;
        backup = args.put(&document, &mut proposals, &launcher).map_err(|error| added(error, &proposals))?;
    }
    args.report(file.path(), &proposals, backup.as_deref(), context)?;
    let failed = |proposal: &Proposal| {
        matches!(proposal.verdict, Verdict::Left(Obstacle::Build(_) | Obstacle::Changed(_)))
    };
    Ok(if proposals.iter().any(failed) { Outcome::Failed } else { Outcome::Done })
}

/// The servers that casemate has, with the secrets by which one of them is told from another.
async fn known(
    document: &Document,
    terms: Terms,
    context: &Context,
) -> Result<Result<Known, Mistake>, Error> {
    let servers = context.configuration()?.servers;
    let alike = match resembling(document, &servers, terms) {
        Ok(alike) => alike,
        Err(mistake) => return Ok(Err(mistake)),
    };
    let mut stored = BTreeMap::new();
    for server in alike {
        // Without them it is another server.
        if let Ok(Secrets(found)) = find(context, &server.secrets, &server.egress).await {
            let found = found.into_iter().map(|secret| (secret.name, secret.value));
            stored.insert(server.name.clone(), found.collect());
        }
    }
    Ok(Ok(Known { servers, stored }))
}

/// The client's file with casemate in the place of each server that runs in it.
fn rewrite(document: &Document, proposals: &[Proposal], launcher: &Launcher) -> Result<Document, Mistake> {
    let mut document = document.clone();
    for proposal in proposals {
        if let Verdict::Known(name) | Verdict::New(name, _) = &proposal.verdict {
            document.put(&proposal.entry, &launcher.entry(name))?;
        }
    }
    Ok(document)
}

/// Leaves those entries alone that are not any more what was built.
fn leave_changed(then: &Document, now: &Document, proposals: &mut [Proposal]) -> Result<(), Mistake> {
    let (then, now) = (then.entries()?, now.entries()?);
    for proposal in proposals {
        if let Verdict::Known(name) | Verdict::New(name, _) = &proposal.verdict
            && then.get(&proposal.entry) != now.get(&proposal.entry)
        {
            proposal.verdict = Verdict::Left(Obstacle::Changed(name.clone()));
        }
    }
    Ok(())
}

/// An error after servers were added, which are not added again.
fn added(error: ClientError, proposals: &[Proposal]) -> Error {
    let added = proposals.iter().filter_map(|proposal| match &proposal.verdict {
        Verdict::New(name, _) | Verdict::Left(Obstacle::Changed(name)) => Some(name),
        _ => None,
    });
    let added: Vec<Name> = added.cloned().collect();
    after(error.into(), &added)
}

/// An error after servers were added, with their names.
fn after(error: Error, added: &[Name]) -> Error {
    let which = match added {
        [] => return error,
        [one] => format!("server {one} was"),
        more => format!("servers {} were", names(more)),
    };
    error.hint(format!(
        "{which} added all the same; end the client and import again, which builds nothing twice"
    ))
}

impl Import {
    fn terms(&self) -> Terms {
        let secrets = match (self.keyring, self.plain_env) {
            (true, _) => SecretsTo::Keyring,
            (_, true) => SecretsTo::Clear,
            _ => SecretsTo::Nowhere,
        };
        Terms { secrets, paths: self.host_paths }
    }

    /// Writes the client's file, which the client may have written while images were built.
    fn put(
        &self,
        then: &Document,
        proposals: &mut [Proposal],
        launcher: &Launcher,
    ) -> Result<Option<PathBuf>, ClientError> {
        let file = ClientFile::open(&self.file.path(self.client)?)?;
        let content = |mistake| ClientError::content(file.path())(mistake);
        let missing = || ClientError::Missing { path: file.path().to_owned() };
        let text = file.text().ok_or_else(missing)?;
        let now = Document::new(self.client.shape(), text.to_owned()).map_err(content)?;
        leave_changed(then, &now, proposals).map_err(content)?;
        let document = rewrite(&now, proposals, launcher).map_err(content)?;
        (document.text() != text).then(|| file.replace(document.text())).transpose()
    }

    /// Builds and adds the new servers; those that cannot be built are left where they are.
    async fn add(&self, proposals: &mut [Proposal], context: &Context) -> Result<(), (Error, Vec<Name>)> {
        let mut names = Vec::new();
        match self.add_each(proposals, context, &mut names).await {
            Ok(()) => Ok(()),
            Err(error) => Err((error, names)),
        }
    }

    async fn add_each(
        &self,
        proposals: &mut [Proposal],
        context: &Context,
        names: &mut Vec<Name>,
    ) -> Result<(), Error> {
        let file = context.config_file()?;
        let has_secrets = |proposal: &Proposal| matches!(&proposal.verdict, Verdict::New(_, taken) if !taken.secrets.is_empty());
        if proposals.iter().any(has_secrets) {
            // Before images are built.
            check_keyring().await?;
        }
        for proposal in proposals {
            let Verdict::New(name, taken) = &proposal.verdict else { continue };
            let definition = match self.build(name, taken, context).await {
                Ok(definition) => definition,
                Err(error) => {
                    proposal.verdict = Verdict::Left(Obstacle::Build(causes(&error)));
                    continue;
                }
            };
            let store = Store::open(&file)?;
            // Somebody else may have added the name while the image was built.
            if context.configuration()?.servers.contains_key(name) {
                let message = format!("server {name} was added meanwhile by another command");
                return Err(Error::configuration(message)
                    .hint("import again; nothing was written to the client's file"));
            }
            for (variable, value) in &taken.secrets {
                store_in_keyring(&keyring_key(name, variable), value).await?;
            }
            store.put(name, &definition)?;
            names.push(name.clone());
        }
        Ok(())
    }

    async fn build(&self, name: &Name, taken: &Taken, context: &Context) -> Result<Definition, Error> {
        let mut definition = Definition {
            source: taken.source.clone(),
            args: taken.args.clone(),
            env: taken.env.clone(),
            secrets: in_keyring(name, taken),
            mounts: taken.folders.iter().map(ToString::to_string).collect(),
            ..Definition::default()
        };
        let given = ServerOptions { mount: taken.folders.clone(), ..ServerOptions::default() };
        let target = engine::undefined(name.as_str(), taken.meaning.clone(), &given)?;
        let configuration = context.configuration()?;
        engine::defined(context, &configuration.defaults, target, &MachineOptions::default())?;
        if self.no_build {
            return Ok(definition);
        }
        let wanted = Wanted {
            source: taken.meaning.clone(),
            args: taken.meant_args.clone(),
            command: None,
            allow_scripts: false,
            refresh: false,
        };
        let image = images::build(context, &configuration.registries, wanted).await?;
        if image.meta.command.is_empty() {
            return Err(Error::configuration(format!(
                "{} does not say which program to start",
                taken.source
            )));
        }
        definition.version = images::version(&taken.meaning, &image.meta);
        definition.image = Some(image.digest);
        Ok(definition)
    }

    fn report(
        &self,
        file: &Path,
        proposals: &[Proposal],
        backup: Option<&Path>,
        context: &Context,
    ) -> Result<(), Error> {
        if self.json {
            let servers = proposals.iter().map(Shown::new).collect();
            let (client, written) = (self.client, backup.is_some());
            return context.screen.json(&Imported { client, file, servers, written, backup });
        }
        let title = self.client.title();
        if proposals.is_empty() {
            return context.screen.line(&format!("{title} has no servers in {}", file.display()));
        }
        context.screen.line(&format!("Servers of {title} in {}:", file.display()))?;
        let width = proposals.iter().map(|proposal| proposal.entry.chars().count()).max().unwrap_or_default();
        let (mut exposed, mut hidden) = (Vec::new(), Vec::new());
        for proposal in proposals {
            let shown = Shown::new(proposal);
            let what = shown.sentence(self.file.write);
            context.screen.line(&format!(
                "  {:width$}  {}",
                first_line(&proposal.entry),
                first_line(&what)
            ))?;
            for note in &proposal.notes {
                context.screen.warn(&format!("{}: {}", first_line(&proposal.entry), first_line(note)));
            }
            if let Verdict::New(name, taken) = &proposal.verdict {
                exposed.extend(taken.secret.then_some(name));
                hidden.extend(taken.secrets.keys().map(|variable| keyring_key(name, variable)));
            }
        }
        if self.file.write && !exposed.is_empty() {
            let message = "config.toml holds secrets in clear; it is readable for you alone. They belong to";
            context.screen.warn(&format!("{message} {}", names(&exposed)));
        }
        if !hidden.is_empty() {
            let (done, clear) = match self.file.write {
                true => ("In the keyring now", "; the backup of the client's file still holds them in clear"),
                false => ("Would go into the keyring", ""),
            };
            context.screen.note(&format!("{done}: {}{clear}", hidden.join(", ")));
        }
        match backup {
            Some(backup) => context.screen.note(&format!(
                "What the file was is kept in {}; restart {title}; {} takes it back",
                backup.display(),
                self.file.way_back("import", self.client)
            )),
            None if self.file.write => context.screen.note("Nothing had to be written"),
            None => context.screen.note("Nothing was written; --write does it"),
        }
        Ok(())
    }
}

/// Where the secrets of a server are, as its definition says it.
fn in_keyring(name: &Name, taken: &Taken) -> BTreeMap<String, String> {
    let kept = taken
        .secrets
        .keys()
        .map(|variable| (variable.clone(), SecretSource::Keyring(keyring_key(name, variable)).to_string()));
    kept.collect()
}

impl<'a> Shown<'a> {
    fn new(proposal: &'a Proposal) -> Self {
        let (action, server, source, reason) = match &proposal.verdict {
            Verdict::Own => ("own", None, None, None),
            Verdict::Known(name) => ("known", Some(name), None, None),
            Verdict::New(name, taken) => ("add", Some(name), Some(taken.source_text()), None),
            Verdict::Left(obstacle @ (Obstacle::Build(_) | Obstacle::Changed(_))) => {
                ("failed", None, None, Some(obstacle.to_string()))
            }
            Verdict::Left(obstacle) => ("skip", None, None, Some(obstacle.to_string())),
        };
        let folders = match &proposal.verdict {
            Verdict::New(_, taken) => taken.folders.as_slice(),
            _ => &[],
        };
        let mounts = folders.iter().map(ToString::to_string).collect();
        let (variables, notes) = (proposal.variables.as_slice(), proposal.notes.as_slice());
        Self { entry: &proposal.entry, action, server, source, mounts, variables, reason, notes, folders }
    }

    fn sentence(&self, written: bool) -> String {
        let read: Vec<String> = self.folders.iter().map(|folder| folder.host.display().to_string()).collect();
        let read = if read.is_empty() { String::new() } else { format!(", reads {}", read.join(", ")) };
        match (self.server, &self.source, &self.reason) {
            (Some(name), Some(source), _) if written => format!("became {name}: {source}{read}"),
            (Some(name), Some(source), _) => format!("would become {name}: {source}{read}"),
            (Some(name), None, _) if written => format!("runs as {name} now, which was there"),
            (Some(name), None, _) => format!("would run as {name}, which is there"),
            (None, _, Some(reason)) => format!("stays: {reason}"),
            (None, _, None) => "runs in casemate already".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::adopt::propose;
    use std::fs;

    const THEN: &str = r#"{"mcpServers": {
        "a": {"command": "npx", "args": ["-y", "a-server"]},
        "b": {"command": "npx", "args": ["-y", "b-server"]},
        "c": {"command": "npx", "args": ["-y", "c-server"]}
    }, "theme": "light"}"#;

    fn import(file: &Path) -> Import {
        let file = FileOptions { write: true, file: Some(file.to_owned()), ..FileOptions::default() };
        Import {
            client: "cursor".parse().unwrap(),
            file,
            keyring: false,
            plain_env: false,
            host_paths: HostPaths::Leave,
            no_build: true,
            json: false,
        }
    }

    fn launcher() -> Launcher {
        Launcher { program: "/bin/casemate".to_owned(), home: None, config: None }
    }

    #[test]
    fn what_the_client_wrote_while_images_were_built_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mcp.json");
        let import = import(&path);
        let then = Document::new(import.client.shape(), THEN.to_owned()).unwrap();
        let mut proposals = propose(&then, &launcher(), &Known::default(), Terms::default()).unwrap();
        fs::write(&path, THEN.replace("light", "dark").replace("b-server", "b-server@2")).unwrap();
        let backup = import.put(&then, &mut proposals, &launcher()).unwrap().unwrap();
        assert!(fs::read_to_string(backup).unwrap().contains("b-server@2"));
        let now = fs::read_to_string(&path).unwrap();
        assert!(now.contains("dark") && now.contains("b-server@2"), "{now}");
        assert!(!now.contains("a-server") && !now.contains("c-server"), "{now}");
        let left: Vec<String> = proposals
            .iter()
            .filter_map(|proposal| match &proposal.verdict {
                Verdict::Left(obstacle) => Some(format!("{}: {obstacle}", proposal.entry)),
                _ => None,
            })
            .collect();
        assert_eq!(
            left,
            ["b: its entry was changed meanwhile by another program; casemate has what it was as b"]
        );
    }

    #[test]
    fn an_error_after_servers_were_added_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mcp.json");
        let import = import(&path);
        let then = Document::new(import.client.shape(), THEN.to_owned()).unwrap();
        let mut proposals = propose(&then, &launcher(), &Known::default(), Terms::default()).unwrap();
        fs::write(&path, "{").unwrap();
        let error = import.put(&then, &mut proposals, &launcher()).unwrap_err();
        let shown = added(error, &proposals).report().to_string();
        assert!(shown.contains("servers a, b, c were added"), "{shown}");
        assert!(!shown.contains("nothing was written"), "{shown}");
    }
}
