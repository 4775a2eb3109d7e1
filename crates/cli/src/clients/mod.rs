//! Clients of MCP servers: where they keep their configuration, how `casemate run NAME` is written there,
//! and which of their servers casemate can take over.
//!
//! ```text
//! place ──> file: bounded read, atomic write, backup ──> Document: JSON with comments, or TOML
//!                                                          │ entries            ^ put, restore, remove
//!                                                          v                    │
//!                                                        adopt ──> servers of config.toml
//! ```
//!
//! Formats and places are those that the clients document:
//!
//! | client | documentation |
//! | --- | --- |
//! | Claude Code | "Connect Claude Code to tools via MCP", MCP installation scopes |
//! | Claude Desktop | "Connect to local MCP servers" of the Model Context Protocol |
//! | Cursor | "Model Context Protocol (MCP)", STDIO server configuration |
//! | VS Code | "MCP configuration reference" |
//! | Codex | "Config", `mcp_servers` |
//! | Gemini CLI | "MCP servers with the Gemini CLI" |
//! | Zed | "Model Context Protocol", "Configuring Zed" |
//!
//! An edit changes single entries of a text and leaves every other byte as it was; nothing is rendered anew
//! from a parsed document. What these files hold may be secret: no value of them is part of an error.

pub mod adopt;
mod document;
mod entry;
mod error;
pub mod file;
mod json;
mod json_edit;
mod place;
mod secret;
mod toml;

pub use document::{Document, Reverted};
pub use entry::{Entry, Launcher, Obstacle};
pub use error::{ClientError, Mistake};
pub use place::{Platform, place};
pub use secret::is_secret;

use serde::Serialize;
use std::{fmt, str::FromStr};

/// A client whose configuration is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // Products.
pub enum Client {
    ClaudeCode,
    ClaudeDesktop,
    Cursor,
    Vscode,
    Codex,
    Gemini,
    Zed,
}

/// How a client writes its servers down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The syntax of its file.
    pub syntax: Syntax,
    /// The key of the table of servers.
    pub container: &'static str,
    /// An entry says `"type": "stdio"`.
    pub typed: bool,
    /// The client fills in `$NAME` wherever it stands in a text, and not `${NAME}` alone.
    pub fills_in: bool,
}

/// The syntax of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Syntax {
    /// JSON; comments and commas after the last item are read wherever they stand and written nowhere.
    Json,
    /// TOML.
    Toml,
}

/// No client has that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no client that is known")]
pub struct UnknownClient(String);

impl Client {
    /// Every client.
    pub const ALL: [Self; 7] = [
        Self::ClaudeCode,
        Self::ClaudeDesktop,
        Self::Cursor,
        Self::Vscode,
        Self::Codex,
        Self::Gemini,
        Self::Zed,
    ];

    /// Its name on a command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClaudeCode => "claude-code",
            Self::ClaudeDesktop => "claude-desktop",
            Self::Cursor => "cursor",
            Self::Vscode => "vscode",
            Self::Codex => "codex",
            Self::Gemini => "gemini",
            Self::Zed => "zed",
        }
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::ClaudeCode => "Claude Code",
            Self::ClaudeDesktop => "Claude Desktop",
            Self::Cursor => "Cursor",
            Self::Vscode => "VS Code",
            Self::Codex => "Codex",
            Self::Gemini => "Gemini CLI",
            Self::Zed => "Zed",
        }
    }

    /// How it writes its servers down.
    pub fn shape(self) -> Shape {
        let json = |container, typed| Shape { syntax: Syntax::Json, container, typed, fills_in: false };
        match self {
            Self::ClaudeCode | Self::Cursor => json("mcpServers", true),
            Self::ClaudeDesktop => json("mcpServers", false),
            Self::Vscode => json("servers", true),
            Self::Codex => Shape { syntax: Syntax::Toml, ..json("mcp_servers", false) },
            Self::Gemini => Shape { fills_in: true, ..json("mcpServers", false) },
            Self::Zed => json("context_servers", false),
        }
    }
}

impl FromStr for Client {
    type Err = UnknownClient;
    fn from_str(text: &str) -> Result<Self, UnknownClient> {
        let found = Self::ALL.into_iter().find(|client| client.as_str() == text);
        found.ok_or_else(|| UnknownClient(text.to_owned()))
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
