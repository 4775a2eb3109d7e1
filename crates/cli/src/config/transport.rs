//! How a server is reached: what was said of it, by options or by a file, and what that means.

use casemate_mcp::http::{DEFAULT_PATH, Endpoint, InvalidPath};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::str::FromStr;

/// How a server is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Transport {
    /// On its stdin and stdout.
    #[default]
    Stdio,
    /// By HTTP, inside its machine.
    Http {
        /// The port that it listens on.
        port: u16,
        /// The path of its MCP endpoint.
        path: String,
    },
}

/// The two ways, as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `stdio`
    Stdio,
    /// `http`
    Http,
}

/// What was said of the way to a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct TransportOptions {
    /// How the server is reached inside its machine: stdio, or http (Streamable HTTP) [default: stdio]
    #[arg(long, value_name = "HOW", value_parser = kind_parser())]
    pub transport: Option<Kind>,
    /// The port that a server with --transport http listens on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// The path of its MCP endpoint [default: /mcp]
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
}

/// Why what was said makes no way to a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// No port was said.
    #[error("transport http needs the port that the server listens on")]
    NoPort,
    /// Something was said that has no meaning there.
    #[error("a {0} is for servers with transport http")]
    Needless(&'static str),
    /// The path is none.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// There is no such transport.
    #[error("write \"stdio\" or \"http\"")]
    Unknown,
}

impl FromStr for Kind {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "http" => Ok(Self::Http),
            _ => Err(TransportError::Unknown),
        }
    }
}

impl Transport {
    /// The way as it is written.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stdio => "stdio",
            Self::Http { .. } => "http",
        }
    }

    /// The port that it listens on.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Stdio => None,
            Self::Http { port, .. } => Some(*port),
        }
    }

    /// The path of its endpoint, where it is not the usual one.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Http { path, .. } if path != DEFAULT_PATH => Some(path),
            Self::Http { .. } | Self::Stdio => None,
        }
    }
}

impl TransportOptions {
    /// What was said, over what held before.
    pub fn over(&self, base: &Transport) -> Result<Transport, TransportError> {
        let (base_kind, base_port, base_path) = match base {
            Transport::Stdio => (Kind::Stdio, None, None),
            Transport::Http { port, path } => (Kind::Http, Some(*port), Some(path)),
        };
        match (self.transport.unwrap_or(base_kind), self.port, &self.path) {
            (Kind::Stdio, Some(_), _) => Err(TransportError::Needless("port")),
            (Kind::Stdio, None, Some(_)) => Err(TransportError::Needless("path")),
            (Kind::Stdio, None, None) => Ok(Transport::Stdio),
            (Kind::Http, port, path) => {
                let port = port.or(base_port).ok_or(TransportError::NoPort)?;
                let path = path.as_ref().or(base_path).map_or(DEFAULT_PATH, String::as_str);
                Endpoint::new(port, path)?;
                Ok(Transport::Http { port, path: path.to_owned() })
            }
        }
    }
}

fn kind_parser() -> impl TypedValueParser<Value = Kind> {
    PossibleValuesParser::new(["stdio", "http"]).try_map(|word| word.parse::<Kind>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(transport: Option<Kind>, port: Option<u16>, path: Option<&str>) -> TransportOptions {
        TransportOptions { transport, port, path: path.map(str::to_owned) }
    }

    fn http(port: u16, path: &str) -> Transport {
        Transport::Http { port, path: path.to_owned() }
    }

    #[test]
    fn options_change_what_the_file_says() {
        let file = http(1, "/a");
        assert_eq!(said(None, None, None).over(&file), Ok(file.clone()));
        assert_eq!(said(None, Some(2), None).over(&file), Ok(http(2, "/a")));
        assert_eq!(said(Some(Kind::Http), None, Some("/b")).over(&file), Ok(http(1, "/b")));
        assert_eq!(said(Some(Kind::Stdio), None, None).over(&file), Ok(Transport::Stdio));
        assert_eq!(said(Some(Kind::Http), Some(3), None).over(&Transport::Stdio), Ok(http(3, "/mcp")));
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        let over = |options: TransportOptions| options.over(&Transport::Stdio);
        assert_eq!(over(said(Some(Kind::Http), None, None)), Err(TransportError::NoPort));
        assert_eq!(over(said(None, Some(1), None)), Err(TransportError::Needless("port")));
        assert_eq!(over(said(None, None, Some("/x"))), Err(TransportError::Needless("path")));
        let path = over(said(Some(Kind::Http), Some(1), Some("x y")));
        assert!(matches!(path, Err(TransportError::Path(_))));
    }
}
