//! `casemate secret`.

use crate::{
    context::Context,
    engine::secrets,
    error::{Error, Outcome},
};
use casemate_machine::secret::{SECRET_BYTES, SecretText};
use clap::Subcommand;
use console::Term;
use std::io::{self, IsTerminal, Read};
use zeroize::{Zeroize, Zeroizing};

/// Put secrets into the system's keyring, and remove them
///
/// What is there under KEY is given to a server by `--secret NAME=keyring:KEY`. It is found and
/// changed with other tools, too, by its attributes: service=casemate, username=KEY.
///
/// Examples:
///   casemate secret set github
///   casemate run github --secret GITHUB_TOKEN=keyring:github,placeholder --allow api.github.com:443
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Secret {
    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
#[command(disable_help_subcommand = true)]
enum SecretCommand {
    /// Read a secret from standard input, where a terminal does not show it, and put it into the keyring
    Set {
        /// Where it is found again
        key: String,
    },
    /// Remove a secret from the keyring
    Remove {
        /// Where it was put
        key: String,
    },
}

/// Changes the keyring.
pub async fn run(args: Secret, context: &Context) -> Result<Outcome, Error> {
    match args.command {
        SecretCommand::Set { key } => {
            let value = SecretText::from_bytes(read(&key)?)
                .map_err(|error| Error::usage(format!("no secret was given for {key}")).because(error))?;
            secrets::store_in_keyring(&key, &value).await?;
            context.screen.line(&format!("Put {key} into the keyring"))?;
            context.screen.note(&format!("Use: --secret NAME=keyring:{key}"));
        }
        SecretCommand::Remove { key } => {
            secrets::remove_from_keyring(&key).await?;
            context.screen.line(&format!("Removed {key} from the keyring"))?;
        }
    }
    Ok(Outcome::Done)
}

/// One line that is typed, or all that is piped in without the end of its line.
fn read(key: &str) -> Result<Vec<u8>, Error> {
    let failed = |error: io::Error| Error::usage("cannot read the secret").because(error);
    if io::stdin().is_terminal() {
        let term = Term::stderr();
        term.write_str(&format!("Secret for {key}: ")).map_err(failed)?;
        return Ok(term.read_secure_line().map_err(failed)?.into_bytes());
    }
    let mut value = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + 4));
    io::stdin().take(SECRET_BYTES as u64 + 3).read_to_end(&mut value).map_err(failed)?;
    let end = value.trim_ascii_end().len();
    value[end..].zeroize();
    value.truncate(end);
    Ok(std::mem::take(&mut *value))
}
