//! Secrets as people write them: `NAME=SOURCE[,placeholder[=HOST:PORT]]`, where SOURCE says where the value is.

use crate::command::options::{InvalidVariable, check_variable};
use casemate_machine::egress::{Allow, InvalidEntry};
use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

/// What follows a source whose value the server is not to have.
const PLACEHOLDER: &str = ",placeholder";

/// A secret that a server is to be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretWish {
    /// The environment variable.
    pub name: String,
    /// Where its value is.
    pub source: SecretSource,
    /// The server gets a word instead, and the host puts the value into requests.
    pub placeholder: Option<Placeholder>,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A variable of casemate's own environment.
    Env(String),
    /// A file: absolute, or below the home of the user (`~/`).
    File(PathBuf),
    /// What a command prints, which is split into words as a shell does, and run without one.
    Command(String),
    /// The system's keyring, under this key.
    Keyring(String),
}

/// Where the host may send a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placeholder {
    /// To the only host that the server may reach.
    Only,
    /// There.
    To(Allow),
}

/// A secret on the command line. One that is none may be the secret itself: what is wrong is told later, without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretOption(Result<SecretWish, InvalidSecretWish>);

impl SecretOption {
    /// Reads what stands on the command line.
    pub fn read(text: &str) -> Result<Self, Infallible> {
        Ok(Self(SecretWish::here(text)))
    }

    /// What is meant.
    pub fn meant(self) -> Result<SecretWish, InvalidSecretWish> {
        self.0
    }
}

/// Why a text names no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecretWish {
    /// There is no source.
    #[error("write NAME=SOURCE; a source is env:VARIABLE, file:PATH, cmd:COMMAND or keyring:KEY")]
    Form,
    /// Nothing is known of such a source. It may be the secret itself, and is not shown.
    #[error("what follows the name is none of env:VARIABLE, file:PATH, cmd:COMMAND and keyring:KEY")]
    Source,
    /// There is nothing behind the colon.
    #[error("nothing follows {0:?}")]
    Nothing(&'static str),
    /// The file depends on where one is.
    #[error("{0:?} is no absolute path of this host")]
    Relative(PathBuf),
    /// The command cannot be split.
    #[error("the quotes of the command do not match")]
    Quotes,
    /// No variable has such a name.
    #[error(transparent)]
    Name(#[from] InvalidVariable),
    /// The secret cannot be sent there.
    #[error("placeholder={text}")]
    To {
        /// Where it was to be sent.
        text: String,
        /// Why it cannot.
        #[source]
        source: InvalidEntry,
    },
}

impl SecretWish {
    /// A name and what was said of it, told apart already.
    pub fn new(name: &str, said: &str) -> Result<Self, InvalidSecretWish> {
        check_variable(name, "")?;
        let (source, placeholder) = split(said)?;
        Ok(Self { name: name.to_owned(), source: source.parse()?, placeholder })
    }

    /// Reads what stands on the command line, where a path may begin in the current folder.
    pub fn here(text: &str) -> Result<Self, InvalidSecretWish> {
        let (name, said) = text.split_once('=').ok_or(InvalidSecretWish::Form)?;
        let Some(path) =
            said.strip_prefix("file:").filter(|path| !path.is_empty() && !path.starts_with("~/"))
        else {
            return Self::new(name, said);
        };
        // A path without a current folder stays as it is, and is refused.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
        Self::new(name, &format!("file:{}", path.display()))
    }

    /// What follows the name.
    pub fn said(&self) -> String {
        match &self.placeholder {
            None => self.source.to_string(),
            Some(Placeholder::Only) => format!("{}{PLACEHOLDER}", self.source),
            Some(Placeholder::To(allow)) => format!("{}{PLACEHOLDER}={allow}", self.source),
        }
    }
}

/// Tells the source from what is said of a placeholder. A path or command may have commas of its own.
fn split(said: &str) -> Result<(&str, Option<Placeholder>), InvalidSecretWish> {
    if let Some(source) = said.strip_suffix(PLACEHOLDER) {
        return Ok((source, Some(Placeholder::Only)));
    }
    match said.rsplit_once(&format!("{PLACEHOLDER}=")) {
        Some((source, to)) => match to.parse() {
            Ok(allow) => Ok((source, Some(Placeholder::To(allow)))),
            Err(error) => Err(InvalidSecretWish::To { text: to.to_owned(), source: error }),
        },
        None => Ok((said, None)),
    }
}

impl FromStr for SecretSource {
    type Err = InvalidSecretWish;

    fn from_str(text: &str) -> Result<Self, InvalidSecretWish> {
        let (kind, rest) = text.split_once(':').ok_or(InvalidSecretWish::Source)?;
        let something =
            |prefix| if rest.is_empty() { Err(InvalidSecretWish::Nothing(prefix)) } else { Ok(()) };
        match kind {
            "env" => {
                something("env:")?;
                check_variable(rest, "")?;
                Ok(Self::Env(rest.to_owned()))
            }
            "file" => {
                something("file:")?;
                let path = PathBuf::from(rest);
                if !path.is_absolute() && !path.starts_with("~") {
                    return Err(InvalidSecretWish::Relative(path));
                }
                Ok(Self::File(path))
            }
            "cmd" => match shlex::split(rest) {
                None => Err(InvalidSecretWish::Quotes),
                Some(words) if words.is_empty() => Err(InvalidSecretWish::Nothing("cmd:")),
                Some(_) => Ok(Self::Command(rest.to_owned())),
            },
            "keyring" => something("keyring:").map(|()| Self::Keyring(rest.to_owned())),
            _ => Err(InvalidSecretWish::Source),
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Command(command) => write!(f, "cmd:{command}"),
            Self::Keyring(key) => write!(f, "keyring:{key}"),
        }
    }
}

/// Adds secrets of the command line to those of a file: one of the same name takes its place.
pub fn overrule(written: &[SecretWish], said: &[SecretWish]) -> Vec<SecretWish> {
    let is_overruled = |wish: &&SecretWish| said.iter().any(|other| other.name == wish.name);
    written.iter().filter(|wish| !is_overruled(wish)).chain(said).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_as_they_are_written() {
        for text in [
            "T=env:GITHUB_TOKEN",
            "T=file:/run/secrets/a,b",
            "T=file:~/.token,placeholder",
            "T=cmd:pass show 'my, token',placeholder=api.github.com:443",
            "T=cmd:echo a=b",
            "T=keyring:github,placeholder=*.example.com:443",
        ] {
            let wish = SecretWish::here(text).unwrap();
            assert_eq!(format!("{}={}", wish.name, wish.said()), text);
            assert_eq!(SecretWish::new(&wish.name, &wish.said()), Ok(wish));
        }
        let wish = SecretWish::here("T=file:token").unwrap();
        assert!(matches!(wish.source, SecretSource::File(path) if path.is_absolute()));
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_repeated() {
        for text in [
            "T",
            "T=hunter2",
            "T=vault:hunter2",
            "T=env:",
            "T=env:hun-ter2",
            "T=cmd:",
            "T=cmd:'hunter2",
            "T=",
        ] {
            let error = SecretWish::here(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(matches!(SecretWish::here("1=env:A"), Err(InvalidSecretWish::Name(_))));
        assert!(matches!(SecretWish::new("T", "file:token"), Err(InvalidSecretWish::Relative(_))));
        assert!(matches!(SecretWish::here("T=env:A,placeholder=x"), Err(InvalidSecretWish::To { .. })));
    }

    #[test]
    fn the_command_line_overrules_a_secret_of_the_same_name() {
        let read =
            |texts: &[&str]| texts.iter().map(|text| SecretWish::here(text).unwrap()).collect::<Vec<_>>();
        let both = overrule(&read(&["A=env:A", "B=env:B"]), &read(&["B=env:C"]));
        assert_eq!(both, read(&["A=env:A", "B=env:C"]));
    }
}
