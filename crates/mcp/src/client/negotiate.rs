//! How the era of a server is found out.
//!
//! Most servers are legacy, and one of both eras is locked by its first message, so `initialize` comes
//! first unless the server is remembered as modern. A server that answers the first attempt with an error
//! gets the other one; the error of the first is reported if both fail.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::exchange::Link;
use super::meta::Identity;
use super::{Answer, RequestError};
use crate::compose::{ErrorObject, quoted};
use crate::era::{Era, NEWEST_LEGACY, NEWEST_MODERN};
use crate::object;

pub(super) const DISCOVER: &str = "server/discover";
const INITIALIZE: &str = "initialize";
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// How much of a text from the server is kept for reports, in characters.
const TEXT_CHARS: usize = 256;

/// Who a server says it is: texts of the server, cut to 256 characters, fit for data and not for terminals.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ServerInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
}

/// Why no conversation came about.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server did not answer, or not in time, or the conversation ended.
    #[error("cannot negotiate a protocol version with the server")]
    NoAnswer(#[source] RequestError),
    /// The server answered `initialize` and `server/discover` with errors.
    #[error("the server refuses {method}: {message} ({code})")]
    Refused {
        /// What it was asked first.
        method: &'static str,
        /// The code of its error.
        code: i64,
        /// The message of its error, cut.
        message: String,
    },
    /// The server speaks revisions that are not known here only.
    #[error("the server speaks an unknown protocol version: {offered:?}")]
    UnknownVersion {
        /// What it offers, cut.
        offered: String,
    },
    /// The answer lacks what it must have.
    #[error("the server's answer to {method} has no {missing}")]
    Malformed {
        /// What it was asked.
        method: &'static str,
        /// What is missing.
        missing: &'static str,
    },
}

/// What was agreed.
pub(super) struct Agreed {
    pub era: Era,
    pub result: Box<RawValue>,
    pub server_info: Option<ServerInfo>,
}

enum Attempt {
    Agreed(Agreed),
    Refused(OpenError),
}

pub(super) async fn negotiate(
    link: &Link,
    identity: &Identity,
    hint: Option<Era>,
    timeout: Duration,
) -> Result<Agreed, OpenError> {
    let deadline = Instant::now() + timeout;
    let modern_first = hint.is_some_and(|era| era.is_modern());
    let attempt = async |modern| {
        if modern {
            discover(link, identity, deadline).await
        } else {
            initialize(link, identity, deadline).await
        }
    };
    let refused = match attempt(modern_first).await? {
        Attempt::Agreed(agreed) => return Ok(agreed),
        Attempt::Refused(error) => error,
    };
    match attempt(!modern_first).await {
        Ok(Attempt::Agreed(agreed)) => Ok(agreed),
        // A server of the other era need not survive the second question.
        Ok(Attempt::Refused(_)) | Err(OpenError::NoAnswer(_)) => Err(refused),
        Err(error) => Err(error),
    }
}

async fn initialize(link: &Link, identity: &Identity, deadline: Instant) -> Result<Attempt, OpenError> {
    let params = format!(
        r#"{{"protocolVersion":{},"capabilities":{{}},"clientInfo":{}}}"#,
        quoted(NEWEST_LEGACY),
        identity.client_info
    );
    let result = match ask(link, INITIALIZE, params, deadline).await? {
        Ok(result) => result,
        Err(refused) => return Ok(Attempt::Refused(refused)),
    };
    let malformed = |missing| OpenError::Malformed { method: INITIALIZE, missing };
    let [version, info] = object::find(result.get(), ["protocolVersion", "serverInfo"])
        .map_err(|_| malformed("unambiguous object"))?;
    let version: String = version
        .and_then(|version| serde_json::from_str(version.get()).ok())
        .ok_or(malformed("protocolVersion"))?;
    let era = Era::of(&version)
        .filter(|era| !era.is_modern())
        .ok_or_else(|| OpenError::UnknownVersion { offered: cut(&version) })?;
    let server_info = info.and_then(ServerInfo::read);
    link.notify("notifications/initialized", None).await.map_err(OpenError::NoAnswer)?;
    Ok(Attempt::Agreed(Agreed { era, result, server_info }))
}

async fn discover(link: &Link, identity: &Identity, deadline: Instant) -> Result<Attempt, OpenError> {
    let era = Era::Modern { version: NEWEST_MODERN };
    let malformed = |missing| OpenError::Malformed { method: DISCOVER, missing };
    let params = identity.params(era, None, false).ok().flatten().ok_or(malformed("params"))?;
    let result = match ask(link, DISCOVER, params, deadline).await? {
        Ok(result) => result,
        Err(refused) => return Ok(Attempt::Refused(refused)),
    };
    let [versions, meta] = object::find(result.get(), ["supportedVersions", "_meta"])
        .map_err(|_| malformed("unambiguous object"))?;
    let versions: Vec<String> = versions
        .and_then(|versions| serde_json::from_str(versions.get()).ok())
        .ok_or(malformed("supportedVersions"))?;
    if !versions.iter().any(|version| version == NEWEST_MODERN) {
        return Err(OpenError::UnknownVersion { offered: cut(&versions.join(", ")) });
    }
    let server_info = meta
        .and_then(|meta| object::find(meta.get(), [SERVER_INFO]).ok())
        .and_then(|[info]| info)
        .and_then(ServerInfo::read);
    Ok(Attempt::Agreed(Agreed { era, result, server_info }))
}

/// The result, or how the server refused.
async fn ask(
    link: &Link,
    method: &'static str,
    params: String,
    deadline: Instant,
) -> Result<Result<Box<RawValue>, OpenError>, OpenError> {
    let timeout = deadline.saturating_duration_since(Instant::now());
    match link.exchange(method, Some(params), None, timeout).await.map_err(OpenError::NoAnswer)? {
        Answer::Result(result) => Ok(Ok(result)),
        Answer::Error(error) => {
            let error = ErrorObject::read(&error);
            let code = error.as_ref().map_or(0, |error| error.code);
            let message = error.map(|error| cut(&error.message)).unwrap_or_default();
            Ok(Err(OpenError::Refused { method, code, message }))
        }
    }
}

impl ServerInfo {
    fn read(info: &RawValue) -> Option<Self> {
        let Self { name, version } = serde_json::from_str(info.get()).ok()?;
        Some(Self { name: cut(&name), version: cut(&version) })
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS).collect()
}
