//! One server as a client starts it, and why casemate may be unable to take it over.

use super::{Shape, secret};
use casemate_proto::ids::Name;
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// How a client starts a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The program.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// What is added to its environment.
    pub env: BTreeMap<String, String>,
}

/// How casemate is started by a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    /// The program's absolute path: a client's search path is seldom a shell's.
    pub program: String,
    /// The home folder, where a client's environment would not lead to it.
    pub home: Option<String>,
    /// The configuration that the user asked for instead of the home folder's.
    pub config: Option<String>,
}

/// Why a client's server cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // Each says itself.
pub enum Obstacle {
    #[error("it is no table of settings")]
    NoTable,
    #[error("it is reached by an address; remote servers are not built yet")]
    Remote,
    #[error("it names no command: the client or an extension of it starts it")]
    NoCommand,
    #[error("its {0} is not what the client documents")]
    Type(&'static str),
    #[error("its {0} refers to a variable that only the client can fill in")]
    Variable(&'static str),
    #[error("its {0} names variables that are not in this file")]
    Elsewhere(&'static str),
    #[error("{0:?} is no name that an environment can hold")]
    VariableName(String),
    #[error("it runs a container; OCI images are not built yet")]
    Container,
    #[error("{0} needs the files of the server: casemate add NAME dir:FOLDER --command '...' takes them")]
    Interpreter(String),
    #[error("{0} is a path that depends on the folder that the client runs in")]
    Relative(String),
    #[error("{0}")]
    Source(String),
    #[error(
        "{} probably a secret; --keyring puts it into the system's keyring, --plain-env into config.toml in clear",
        are(.0)
    )]
    Secret(Vec<String>),
    #[error("its arguments are probably secret, and cannot be kept in the keyring")]
    SecretArgument,
    #[error(
        "its arguments name {} of this host, which a machine does not have; --host-paths mount lets it read \
         folders there, --host-paths ignore takes it over without", .0.join(", ")
    )]
    HostPaths(Vec<String>),
    #[error(
        "{path} of this host cannot be given to its machine: {reason}; --host-paths ignore takes it over without"
    )]
    Unmountable { path: String, reason: String },
    #[error("its image could not be built: {0}")]
    Build(String),
    #[error("its entry was changed meanwhile by another program; casemate has what it was as {0}")]
    Changed(Name),
}

/// The variable that says where casemate keeps everything.
pub(super) const HOME: &str = "CASEMATE_HOME";

impl Launcher {
    /// How a client starts a server of casemate.
    pub fn entry(&self, name: &Name) -> Entry {
        let config = self.config.iter().flat_map(|file| ["--config".to_owned(), file.clone()]);
        let args = config.chain(["run".to_owned(), name.to_string()]).collect();
        Entry { command: self.program.clone(), args, env: self.environment().collect() }
    }

    /// What an entry has casemate run, if it starts casemate: this program or another one of its name.
    pub fn runs<'a>(&self, entry: &'a Value) -> Option<&'a str> {
        let command = entry.get("command")?.as_str()?;
        let is_casemate = Path::new(command).file_stem().is_some_and(|name| name == "casemate");
        let mut args = entry.get("args")?.as_array()?.iter().filter_map(Value::as_str);
        ((is_casemate || command == self.program) && args.any(|arg| arg == "run")).then(|| args.next())?
    }

    /// Whether an entry starts a server in casemate.
    pub fn is_own(&self, entry: &Value) -> bool {
        self.runs(entry).is_some()
    }

    /// Whether an entry is one that this program adds, under the name that it gives it.
    pub fn is_written(&self, key: &str, entry: &Value) -> bool {
        let command = entry.get("command").and_then(Value::as_str);
        command == Some(&self.program) && self.runs(entry) == Some(key)
    }

    /// The same entry for a server whose entry is casemate's already: variables that somebody added stay.
    pub fn renewed(&self, name: &Name, present: &Value) -> Entry {
        let mut entry = self.entry(name);
        let present = present.get("env").and_then(Value::as_object).into_iter().flatten();
        let added = present.filter(|(key, _)| *key != HOME);
        for (key, value) in added.filter_map(|(key, value)| Some((key, value.as_str()?))) {
            entry.env.entry(key.clone()).or_insert_with(|| value.to_owned());
        }
        entry
    }

    fn environment(&self) -> impl Iterator<Item = (String, String)> {
        self.home.iter().map(|home| (HOME.to_owned(), home.clone()))
    }
}

impl Entry {
    /// Reads an entry as it is written.
    pub fn read(written: &Value, shape: Shape) -> Result<Self, Obstacle> {
        let Value::Object(written) = written else { return Err(Obstacle::NoTable) };
        // The first form of Zed's settings.
        let (command, nested) = match written.get("command").filter(|command| !command.is_null()) {
            Some(Value::Object(nested)) => (nested.get("path"), Some(nested)),
            command => (command, None),
        };
        let get = |key: &str| {
            let value = nested.and_then(|nested| nested.get(key)).or_else(|| written.get(key));
            value.filter(|value| !value.is_null())
        };
        let command = match command {
            Some(Value::String(command)) if !command.trim().is_empty() => command.clone(),
            Some(_) => return Err(Obstacle::Type("command")),
            None if ["url", "httpUrl", "serverUrl", "tcp"].iter().any(|key| get(key).is_some()) => {
                return Err(Obstacle::Remote);
            }
            None => return Err(Obstacle::NoCommand),
        };
        let args = get("args").map_or(Some(Vec::new()), texts).ok_or(Obstacle::Type("args"))?;
        let env = get("env").map_or(Some(BTreeMap::new()), variables).ok_or(Obstacle::Type("env"))?;
        for key in ["envFile", "env_vars", "env_file"] {
            if get(key).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
                return Err(Obstacle::Elsewhere(key));
            }
        }
        let entry = Self { command, args, env };
        entry.check_references(shape)?;
        Ok(entry.split())
    }

    /// Names of variables that probably hold secrets, and `arguments` if those do.
    pub fn secrets(&self) -> Vec<String> {
        let secret = self.env.iter().filter(|(name, value)| secret::is_secret(name, value));
        let mut found: Vec<String> = secret.map(|(name, _)| name.clone()).collect();
        if secret::in_arguments(&self.args) || secret::is_value(&self.command) {
            found.push("arguments".to_owned());
        }
        found
    }

    /// The command and its arguments.
    pub fn words(&self) -> Vec<String> {
        std::iter::once(&self.command).chain(&self.args).cloned().collect()
    }

    /// What clients fill in before they start a server: `${env:X}`, `${X}`, `$X` in an environment, and in some of
    /// them `$X` wherever it stands.
    fn check_references(&self, shape: Shape) -> Result<(), Obstacle> {
        let begins = |rest: &str| rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let refers =
            |text: &String| text.contains("${") || shape.fills_in && text.split('$').skip(1).any(begins);
        if refers(&self.command) {
            return Err(Obstacle::Variable("command"));
        }
        if self.args.iter().any(refers) {
            return Err(Obstacle::Variable("args"));
        }
        let is_variable = |text: &String| {
            let name = text.strip_prefix('$').unwrap_or_default();
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        match self.env.values().any(|value| refers(value) || is_variable(value)) {
            true => Err(Obstacle::Variable("env")),
            false => Ok(()),
        }
    }

    /// A whole command line that stands where its program should, as some clients allow.
    fn split(mut self) -> Self {
        let is_line = self.command.contains(char::is_whitespace) && !Path::new(&self.command).exists();
        if let Some(words) = shlex::split(&self.command).filter(|_| is_line)
            && let Some((program, more)) = words.split_first()
        {
            self.command = program.clone();
            self.args.splice(0..0, more.iter().cloned());
        }
        self
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// Clients take numbers and truth values for their text, and null for a variable that is not set.
fn variables(value: &Value) -> Option<BTreeMap<String, String>> {
    let set = value.as_object()?.iter().filter(|(_, value)| !value.is_null());
    let variables = set.map(|(name, value)| match value {
        Value::String(text) => Some((name.clone(), text.clone())),
        Value::Number(_) | Value::Bool(_) => Some((name.clone(), value.to_string())),
        _ => None,
    });
    variables.collect()
}

fn are(names: &[String]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}
