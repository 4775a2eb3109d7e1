//! What `client-config` and `import` share: which file, how casemate is started from it, and the way back.

use crate::{
    clients::{
        Client, ClientError, Document, Launcher, Platform, Reverted,
        file::{ClientFile, Since},
        place,
    },
    context::Context,
    error::{Error, Outcome},
    render,
};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Options of what is done to a client's file.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct FileOptions {
    /// Write it; what the client's file was before is kept beside it
    #[arg(long, conflicts_with = "undo")]
    pub write: bool,
    /// Make the client's file again what it was before the last --write
    #[arg(long)]
    pub undo: bool,
    /// If the file was changed since: put casemate's entries back alone, and keep the other changes
    #[arg(long, requires = "undo")]
    pub force: bool,
    /// The client's file, such as one of a project, instead of the one that holds for all projects
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
}

/// What `--undo --json` prints.
#[derive(Debug, Serialize)]
struct Undone<'a> {
    client: Client,
    file: &'a Path,
    /// `file`: all of it; `entries`: casemate's alone.
    restored: &'static str,
    entries: Option<Vec<String>>,
    /// The servers that are not what they were, and the file that still says what that was.
    missing: Vec<String>,
    backup: Option<&'a Path>,
}

/// Reads a client's name on a command line.
pub fn client_parser() -> impl TypedValueParser<Value = Client> {
    PossibleValuesParser::new(Client::ALL.iter().map(|client| client.as_str()))
        .try_map(|word| word.parse::<Client>())
}

impl FileOptions {
    /// The client's file.
    pub fn path(&self, client: Client) -> Result<PathBuf, ClientError> {
        match &self.file {
            Some(path) => Ok(path.clone()),
            None => place(client, Platform::here(), |name| env::var_os(name)),
        }
    }

    /// The command line that takes a write of `command` back.
    pub fn way_back(&self, command: &str, client: Client) -> String {
        let file = self.file.iter().filter_map(|path| shlex::try_quote(path.to_str()?).ok());
        let file: String = file.map(|path| format!(" --file {path}")).collect();
        format!("casemate {command} {client} --undo{file}")
    }

    /// Makes the client's file what it was before the last write.
    pub fn take_back(&self, client: Client, context: &Context, json: bool) -> Result<Outcome, Error> {
        let file = ClientFile::open(&self.path(client)?)?;
        let (backup, since) = file.backup()?;
        let reverted = match (since, file.text()) {
            (Since::Changed | Since::Removed, _) if !self.force => {
                let (path, backup) = (file.path().to_owned(), backup.path().to_owned());
                return Err(ClientError::ChangedSince { path, backup }.into());
            }
            (Since::Changed, Some(text)) => {
                let (shape, launcher) = (client.shape(), launcher(context)?);
                let older = Document::new(shape, backup.text()?.unwrap_or_default())
                    .map_err(ClientError::content(backup.path()))?;
                let mut document =
                    Document::new(shape, text.to_owned()).map_err(ClientError::content(file.path()))?;
                let reverted =
                    document.revert(&older, &launcher).map_err(ClientError::content(file.path()))?;
                file.overwrite(document.text())?;
                // It may be the only copy of what somebody wrote.
                if reverted.missing.is_empty() {
                    backup.discard()?;
                }
                Some(reverted)
            }
            _ => {
                file.restore(&backup)?;
                None
            }
        };
        let restored = if reverted.is_some() { "entries" } else { "file" };
        let (entries, missing) = match reverted {
            Some(Reverted { changed, missing }) => (Some(changed), missing),
            None => (None, Vec::new()),
        };
        let kept = Some(backup.path()).filter(|_| !missing.is_empty());
        if json {
            let undone = Undone { client, file: file.path(), restored, entries, missing, backup: kept };
            context.screen.json(&undone)?;
            return Ok(Outcome::Done);
        }
        let shown = |names: &[String]| {
            render::names(&names.iter().map(|name| render::first_line(name)).collect::<Vec<_>>())
        };
        let path = file.path().display();
        context.screen.line(&match entries {
            None => format!("{path} is again what it was"),
            Some(entries) if entries.is_empty() => format!("No entry of casemate's was left in {path}"),
            Some(entries) => format!("Put back in {path}: {}", shown(&entries)),
        })?;
        if let Some(kept) = kept {
            context.screen.warn(&format!(
                "{} stays: it alone holds what was under {} before; remove it when that is needed no longer",
                kept.display(),
                shown(&missing)
            ));
        }
        context.screen.note(&format!("Restart {}, so that it reads its configuration", client.title()));
        Ok(Outcome::Done)
    }
}

/// How a client starts this program in this home.
pub fn launcher(context: &Context) -> Result<Launcher, Error> {
    let text = |path: PathBuf| {
        path.into_os_string().into_string().map_err(|path| {
            let message = format!("{} is not UTF-8, and clients' files are", path.display());
            Error::configuration(message).hint("use a path without such letters")
        })
    };
    // `XDG_DATA_HOME`, which may lead elsewhere, is among the variables that clients do not pass on.
    let usual = env::var_os("HOME").map(|home| Path::new(&home).join(".local/share/casemate"));
    let home = Some(context.home.path()).filter(|home| usual.as_deref() != Some(*home));
    let config =
        context.asked_config().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    Ok(Launcher {
        program: text(program()?)?,
        home: home.map(|home| text(home.to_owned())).transpose()?,
        config: config.map(text).transpose()?,
    })
}

/// This program, by the path that it was called by: an upgrade may replace what a link leads to.
fn program() -> Result<PathBuf, Error> {
    let actual = env::current_exe()
        .map_err(|error| Error::unavailable("cannot tell where this program is").because(error))?;
    let called = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let candidates: Vec<PathBuf> = match called.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => std::path::absolute(&called).into_iter().collect(),
        _ => {
            let folders = env::var_os("PATH").unwrap_or_default();
            env::split_paths(&folders).map(|folder| folder.join(&called)).collect()
        }
    };
    let is_this =
        |path: &PathBuf| path.is_absolute() && fs::canonicalize(path).is_ok_and(|path| path == actual);
    Ok(candidates.into_iter().find(is_this).unwrap_or(actual))
}
