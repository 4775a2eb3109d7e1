//! Where clients keep the configuration that holds for all projects of a user.

use super::{Client, ClientError};
use std::{ffi::OsString, path::PathBuf};

/// What decides where programs keep their configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Platform {
    Linux,
    Macos,
    Windows,
}

impl Platform {
    /// The one that this program was built for.
    pub fn here() -> Self {
        match std::env::consts::OS {
            "macos" => Self::Macos,
            "windows" => Self::Windows,
            _ => Self::Linux,
        }
    }
}

/// The file of a client; `variable` reads the environment.
///
/// Claude Desktop documents macOS and Windows only; on Linux it is looked for where programs of its kind
/// keep their settings.
pub fn place(
    client: Client,
    platform: Platform,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, ClientError> {
    let set = |name: &'static str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let wanted = |name: &'static str| set(name).ok_or(ClientError::Unset { variable: name });
    let home = || match platform {
        Platform::Windows => wanted("USERPROFILE"),
        Platform::Linux | Platform::Macos => wanted("HOME"),
    };
    // What XDG calls the configuration folder and each platform calls otherwise.
    let settings = || match platform {
        // The XDG specification has relative paths ignored.
        Platform::Linux => match set("XDG_CONFIG_HOME").filter(|path| path.is_absolute()) {
            Some(folder) => Ok(folder),
            None => Ok(home()?.join(".config")),
        },
        Platform::Macos => Ok(home()?.join("Library/Application Support")),
        Platform::Windows => wanted("APPDATA"),
    };
    Ok(match client {
        Client::ClaudeCode => match set("CLAUDE_CONFIG_DIR") {
            Some(folder) => folder.join(".claude.json"),
            None => home()?.join(".claude.json"),
        },
        Client::ClaudeDesktop => settings()?.join("Claude").join("claude_desktop_config.json"),
        Client::Cursor => home()?.join(".cursor").join("mcp.json"),
        Client::Vscode => settings()?.join("Code").join("User").join("mcp.json"),
        Client::Codex => match set("CODEX_HOME") {
            Some(folder) => folder.join("config.toml"),
            None => home()?.join(".codex").join("config.toml"),
        },
        Client::Gemini => home()?.join(".gemini").join("settings.json"),
        Client::Zed => match platform {
            Platform::Linux => settings()?.join("zed").join("settings.json"),
            Platform::Macos => home()?.join(".config").join("zed").join("settings.json"),
            Platform::Windows => settings()?.join("Zed").join("settings.json"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(client: Client, platform: Platform, variables: &[(&str, &str)]) -> Option<String> {
        let read = |name: &str| {
            let value = variables.iter().find(|(other, _)| *other == name)?.1;
            Some(OsString::from(value))
        };
        place(client, platform, read).ok().map(|path| path.display().to_string().replace('\\', "/"))
    }

    #[test]
    fn files_are_where_the_clients_document_them() {
        let linux = [("HOME", "/h")];
        let windows = [("USERPROFILE", "C:/u"), ("APPDATA", "C:/u/AppData/Roaming")];
        for (client, on_linux, on_macos, on_windows) in [
            (Client::ClaudeCode, "/h/.claude.json", "/h/.claude.json", "C:/u/.claude.json"),
            (
                Client::ClaudeDesktop,
                "/h/.config/Claude/claude_desktop_config.json",
                "/h/Library/Application Support/Claude/claude_desktop_config.json",
                "C:/u/AppData/Roaming/Claude/claude_desktop_config.json",
            ),
            (Client::Cursor, "/h/.cursor/mcp.json", "/h/.cursor/mcp.json", "C:/u/.cursor/mcp.json"),
            (
                Client::Vscode,
                "/h/.config/Code/User/mcp.json",
                "/h/Library/Application Support/Code/User/mcp.json",
                "C:/u/AppData/Roaming/Code/User/mcp.json",
            ),
            (Client::Codex, "/h/.codex/config.toml", "/h/.codex/config.toml", "C:/u/.codex/config.toml"),
            (
                Client::Gemini,
                "/h/.gemini/settings.json",
                "/h/.gemini/settings.json",
                "C:/u/.gemini/settings.json",
            ),
            (
                Client::Zed,
                "/h/.config/zed/settings.json",
                "/h/.config/zed/settings.json",
                "C:/u/AppData/Roaming/Zed/settings.json",
            ),
        ] {
            assert_eq!(at(client, Platform::Linux, &linux).as_deref(), Some(on_linux));
            assert_eq!(at(client, Platform::Macos, &linux).as_deref(), Some(on_macos));
            assert_eq!(at(client, Platform::Windows, &windows).as_deref(), Some(on_windows));
        }
    }

    #[test]
    fn what_the_environment_moves_is_found() {
        let moved =
            [("HOME", "/h"), ("XDG_CONFIG_HOME", "/c"), ("CODEX_HOME", "/x"), ("CLAUDE_CONFIG_DIR", "/cc")];
        let found = |client| at(client, Platform::Linux, &moved);
        assert_eq!(found(Client::Zed).as_deref(), Some("/c/zed/settings.json"));
        assert_eq!(found(Client::Vscode).as_deref(), Some("/c/Code/User/mcp.json"));
        assert_eq!(found(Client::Codex).as_deref(), Some("/x/config.toml"));
        assert_eq!(found(Client::ClaudeCode).as_deref(), Some("/cc/.claude.json"));
        let relative = [("HOME", "/h"), ("XDG_CONFIG_HOME", "c")];
        assert_eq!(
            at(Client::Zed, Platform::Linux, &relative).as_deref(),
            Some("/h/.config/zed/settings.json")
        );
        assert_eq!(at(Client::Cursor, Platform::Linux, &[("HOME", "")]), None);
    }
}
