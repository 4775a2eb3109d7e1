//! What is mounted into a machine's root beside the folders that it always has.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// User and group of the server in a machine whose agent is root.
pub const SERVER_ID: u32 = 1000;

/// The most file systems that a machine is given: QEMU's microvm has eight devices, and root, link and the
/// writable overlay take three.
pub const MOST: usize = 5;

/// The longest [`Target`], in bytes.
const TARGET_BYTES: usize = 1024;

/// The longest name in a [`Target`], in bytes.
const NAME_BYTES: usize = 255;

/// What a machine mounts itself: nothing else may be mounted there or below.
const WHOLLY_TAKEN: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Folders in which a machine mounts something: nothing else may be mounted there, but below.
const TAKEN: [&str; 3] = ["/", "/run", "/home"];

/// How names of the agent's own folders in `/run` begin.
const AGENTS: &str = "/run/casemate";

/// A file system on a block device of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The serial of the device.
    pub serial: String,
    /// Where it is mounted, never setting user ids and without devices.
    pub target: Target,
    /// What it is.
    pub kind: Kind,
}

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// EROFS, read-only: a folder of the host as it was when it was packed.
    Folder,
    /// ext4, written by the server; it outlives the machine.
    Volume,
}

/// A path inside a machine where something can be mounted: absolute, in its shortest form, and not taken by the
/// machine itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target(String);

/// Why a text is no [`Target`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// It does not begin with a slash.
    #[error("{0:?} is no absolute path inside the machine: it begins with no slash")]
    Relative(String),
    /// It leads up, or to where it is.
    #[error("{0:?} is no plain path: it has a part that is empty, \".\" or \"..\"")]
    Roundabout(String),
    /// It is too long, or holds control characters.
    #[error("{0:?} is no path of at most {TARGET_BYTES} printable characters")]
    Form(String),
    /// The machine mounts something there itself.
    #[error("{path:?} is taken: the machine's own {by} is there")]
    Taken {
        /// The path.
        path: String,
        /// What the machine mounts.
        by: &'static str,
    },
}

impl Target {
    /// The path as text, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether one of the two is the other, or below it.
    pub fn overlaps(&self, other: &Self) -> bool {
        is_below(&self.0, &other.0) || is_below(&other.0, &self.0)
    }

    /// Whether the path is this folder, or below it.
    pub fn is_below(&self, folder: &str) -> bool {
        is_below(&self.0, folder)
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let shown = || text.chars().take(80).collect::<String>();
        if !text.starts_with('/') {
            return Err(InvalidTarget::Relative(shown()));
        }
        let path = if text == "/" { text } else { text.strip_suffix('/').unwrap_or(text) };
        if path.len() > TARGET_BYTES || path.chars().any(char::is_control) {
            return Err(InvalidTarget::Form(shown()));
        }
        let taken = |by| InvalidTarget::Taken { path: shown(), by };
        if let Some(&by) = TAKEN.iter().find(|&&folder| path == folder) {
            return Err(taken(by));
        }
        let mut parts = path.split('/').skip(1);
        if parts.clone().any(|part| matches!(part, "" | "." | "..")) {
            return Err(InvalidTarget::Roundabout(shown()));
        }
        if parts.any(|part| part.len() > NAME_BYTES) {
            return Err(InvalidTarget::Form(shown()));
        }
        if let Some(&by) = WHOLLY_TAKEN.iter().find(|&&folder| is_below(path, folder)) {
            return Err(taken(by));
        }
        if path.starts_with(AGENTS) {
            return Err(taken(AGENTS));
        }
        Ok(Self(path.to_owned()))
    }
}

as_text!(Target => InvalidTarget);

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_plain_path_that_the_machine_leaves_free() {
        for (text, path) in [
            ("/data", "/data"),
            ("/data/", "/data"),
            ("/home/casemate", "/home/casemate"),
            ("/run/mine", "/run/mine"),
            ("/tmp", "/tmp"),
            ("/developer", "/developer"),
            ("/a b/ü", "/a b/ü"),
        ] {
            assert_eq!(text.parse::<Target>().map(String::from), Ok(path.to_owned()));
        }
        use InvalidTarget as No;
        for wrong in ["", "data", "./data", "~/data"] {
            assert!(matches!(wrong.parse::<Target>(), Err(No::Relative(_))), "{wrong}");
        }
        for wrong in ["/a//b", "/a/../etc", "/..", "/.", "/a/.", "/proc/..", "/a//"] {
            assert!(matches!(wrong.parse::<Target>(), Err(No::Roundabout(_))), "{wrong}");
        }
        let long = "/x".repeat(TARGET_BYTES);
        for wrong in ["/a\nb", "/a\0", &long, &format!("/{}", "x".repeat(NAME_BYTES + 1))] {
            assert!(matches!(wrong.parse::<Target>(), Err(No::Form(_))), "{wrong}");
        }
        for wrong in ["/", "/run", "/home/", "/proc", "/proc/1", "/sys", "/dev/shm", "/run/casemate"] {
            assert!(matches!(wrong.parse::<Target>(), Err(No::Taken { .. })), "{wrong}");
        }
        assert!("/run/casemate-code/x".parse::<Target>().is_err());
        assert!(serde_json::from_str::<Target>("\"/proc\"").is_err());
    }

    #[test]
    fn targets_overlap_where_one_is_in_the_other() {
        let overlap = |a: &str, b: &str| {
            let (a, b): (Target, Target) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.overlaps(&b), b.overlaps(&a));
            a.overlaps(&b)
        };
        assert!(overlap("/a", "/a") && overlap("/a", "/a/b") && overlap("/a/b/c", "/a"));
        assert!(!overlap("/a", "/ab") && !overlap("/a/b", "/a/c"));
    }
}
