//! Secrets of a server: from the command that found them, over the leash, to the supervisor, and to no disk: but for
//! the memory of a suspended machine, in which a secret is that its server was given.
//!
//! ```text
//! command ── Order (leash) ──> supervisor ─┬─ given:       the server's environment, at its start
//!                                          └─ placeholder: the server has a word that means nothing;
//!                                             the gate puts the value in its place (`egress::swap`)
//! ```
//!
//! Nothing of this is in a [`Spec`](crate::Spec), a record, or a template: a server that is given secrets starts
//! in each machine. What it prints of them is taken out of logs and errors.

mod redact;

pub(crate) use redact::{Redacted, Redactor};

use crate::egress::Allow;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{collections::BTreeMap, fmt, io, sync::Arc};
use zeroize::{Zeroize, Zeroizing};

/// The longest secret, in bytes: an environment variable of 128 KiB cannot be given to a program, execve(2).
pub const SECRET_BYTES: usize = 64 << 10;

/// The most secrets of a server.
pub const SECRETS: usize = 64;

/// A text that is shown nowhere, and wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

/// Why a text is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is too long.
    #[error("it is longer than {SECRET_BYTES} bytes")]
    Long,
    /// No environment can hold it.
    #[error("it contains a zero byte")]
    Zero,
    /// It is something else.
    #[error("it is no UTF-8 text")]
    NoText,
}

impl SecretText {
    /// Takes a text; what cannot be a secret is wiped.
    pub fn new(text: String) -> Result<Self, InvalidSecret> {
        let text = Zeroizing::new(text);
        match &**text {
            "" => Err(InvalidSecret::Empty),
            long if long.len() > SECRET_BYTES => Err(InvalidSecret::Long),
            zero if zero.contains('\0') => Err(InvalidSecret::Zero),
            _ => Ok(Self(text)),
        }
    }

    /// The same of bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, InvalidSecret> {
        match String::from_utf8(bytes) {
            Ok(text) => Self::new(text),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(InvalidSecret::NoText)
            }
        }
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

// For the leash, between two processes of one user.
impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Who has a secret's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// The server.
    Server,
    /// The host alone, which puts it into requests to these targets.
    Host {
        /// Where it is sent; each is among what the server may reach.
        to: Vec<Allow>,
    },
}

/// One secret of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The environment variable.
    pub name: String,
    /// Its value.
    pub value: SecretText,
    /// Who has it.
    pub holder: Holder,
}

/// All secrets of a server; none, unless something is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub Vec<Secret>);

/// What a supervisor keeps of a server's secrets.
#[derive(Debug)]
pub(crate) struct Kept {
    secrets: Vec<(Secret, Option<String>)>,
    pub(crate) redactor: Arc<Redactor>,
}

/// A secret that is put into requests.
#[derive(Debug)]
pub(crate) struct Swapped {
    pub(crate) name: String,
    /// What the server has instead.
    pub(crate) placeholder: String,
    pub(crate) value: SecretText,
    pub(crate) to: Vec<Allow>,
}

impl Kept {
    /// Keeps secrets; draws placeholders, which are of this machine alone.
    pub(crate) fn new(secrets: Secrets) -> io::Result<Self> {
        let redactor = Arc::new(Redactor::new(&secrets));
        let with_placeholder = |secret: Secret| {
            let placeholder = match secret.holder {
                Holder::Server => None,
                Holder::Host { .. } => Some(placeholder()?),
            };
            Ok((secret, placeholder))
        };
        let secrets = secrets.0.into_iter().map(with_placeholder).collect::<io::Result<_>>()?;
        Ok(Self { secrets, redactor })
    }

    /// Adds to the environment of the server what it is to have.
    pub(crate) fn extend(&self, env: &mut BTreeMap<String, String>) {
        for (secret, placeholder) in &self.secrets {
            let value = placeholder.as_deref().unwrap_or_else(|| secret.value.expose());
            env.insert(secret.name.clone(), value.to_owned());
        }
    }

    /// The secrets that the server has placeholders of.
    pub(crate) fn swapped(&self) -> Vec<Swapped> {
        let swapped = self.secrets.iter().filter_map(|(secret, placeholder)| {
            let Holder::Host { to } = &secret.holder else { return None };
            Some(Swapped {
                name: secret.name.clone(),
                placeholder: placeholder.clone()?,
                value: secret.value.clone(),
                to: to.clone(),
            })
        });
        swapped.collect()
    }
}

/// A word that stands for a secret; it appears in nothing else.
fn placeholder() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("casemate-placeholder-{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> SecretText {
        SecretText::new(text.to_owned()).unwrap()
    }

    #[test]
    fn what_no_environment_can_hold_is_no_secret() {
        let new = |bytes: &[u8]| SecretText::from_bytes(bytes.to_vec());
        assert_eq!(new(b"").unwrap_err(), InvalidSecret::Empty);
        assert_eq!(new(b"a\0b").unwrap_err(), InvalidSecret::Zero);
        assert_eq!(new(b"\xff").unwrap_err(), InvalidSecret::NoText);
        assert_eq!(new(&vec![b'x'; SECRET_BYTES + 1]).unwrap_err(), InvalidSecret::Long);
        assert_eq!(new(&vec![b'x'; SECRET_BYTES]).unwrap().expose().len(), SECRET_BYTES);
    }

    #[test]
    fn a_secret_is_not_among_what_is_printed() {
        let secret = Secret { name: "TOKEN".into(), value: text("hunter2"), holder: Holder::Server };
        let shown = format!("{secret:?} {:#?}", Kept::new(Secrets(vec![secret.clone()])).unwrap());
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_server_has_the_value_or_a_word_that_is_of_its_machine_alone() {
        let given = Secret { name: "A".into(), value: text("value-a"), holder: Holder::Server };
        let to = vec!["a.example:443".parse().unwrap()];
        let held = Secret { name: "B".into(), value: text("value-b"), holder: Holder::Host { to } };
        let secrets = Secrets(vec![given, held]);
        let environment = || {
            let kept = Kept::new(secrets.clone()).unwrap();
            let mut env = BTreeMap::new();
            kept.extend(&mut env);
            (env, kept.swapped())
        };
        let ((env, swapped), (other, _)) = (environment(), environment());
        assert_eq!((&*env["A"], swapped.len()), ("value-a", 1));
        assert_eq!((&env["B"], swapped[0].value.expose()), (&swapped[0].placeholder, "value-b"));
        assert_ne!(env["B"], other["B"]);
    }
}
