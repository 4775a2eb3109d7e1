//! What is to run, and within which bounds: all that a supervisor is told.

use casemate_proto::{control, ids::Name};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

/// How strong a wall is; a stronger one satisfies a weaker wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// No wall at all.
    Process,
    /// Namespaces, seccomp and Landlock on the host's kernel.
    Sandbox,
    /// A container of a container engine.
    Container,
    /// A virtual machine with a kernel of its own.
    Microvm,
}

/// What makes machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Firecracker under KVM.
    Firecracker,
    /// QEMU's microvm machine, under KVM or in software emulation.
    Qemu,
    /// A Docker engine.
    Docker,
    /// Namespaces without a daemon.
    Sandbox,
    /// No wall.
    Process,
}

/// What executes a virtual machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator, in software.
    Tcg,
}

/// A word that names none of the values that exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is none of {known}")]
pub struct UnknownWord {
    /// What was given.
    pub given: String,
    /// What exists, separated by commas.
    pub known: String,
}

macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// Every value, weakest or least preferred last where there is an order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The value as it is written in commands and files.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or_else(|| UnknownWord {
                    given: text.to_owned(),
                    known: [$($word),+].join(", "),
                })
            }
        }
    };
}

words!(Isolation { Microvm = "microvm", Container = "container", Sandbox = "sandbox", Process = "process" });
words!(BackendKind {
    Firecracker = "firecracker",
    Qemu = "qemu",
    Docker = "docker",
    Sandbox = "sandbox",
    Process = "process",
});
words!(Accelerator { Kvm = "kvm", Tcg = "tcg" });

impl BackendKind {
    /// The strength of the wall that this backend builds.
    pub fn isolation(self) -> Isolation {
        match self {
            Self::Firecracker | Self::Qemu => Isolation::Microvm,
            Self::Docker => Isolation::Container,
            Self::Sandbox => Isolation::Sandbox,
            Self::Process => Isolation::Process,
        }
    }
}

/// What a machine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory of the guest, in MiB.
    pub memory_mb: u32,
    /// Virtual processors.
    pub vcpus: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { memory_mb: 256, vcpus: 1 }
    }
}

/// How long a machine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// Until it is stopped.
    Detached,
    /// As long as its owner holds the connection to the supervisor.
    Leased,
}

/// Who speaks MCP with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conversation {
    /// The supervisor, on behalf of all who ask it.
    Held,
    /// One client that attaches to port 5252.
    Client,
}

/// A server, resolved to what runs inside a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// The image's root file system, an EROFS file.
    pub rootfs: PathBuf,
    /// The image's digest.
    pub image: String,
    /// Program and arguments inside the machine.
    pub command: Vec<String>,
    /// The server's whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder it starts in.
    pub cwd: String,
    /// How it is reached.
    pub transport: control::Transport,
    /// Bounds inside the machine.
    pub limits: control::Limits,
    /// Who speaks with it.
    pub conversation: Conversation,
    /// Whether writes to the root go to a device of their own, so that they can be compared from outside.
    pub overlay: bool,
}

/// Everything that a supervisor is told about the machine that it is to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The machine's name, unique among live machines.
    pub name: Name,
    /// The server's name, for people.
    pub server: String,
    /// Which backend makes it.
    pub backend: BackendKind,
    /// What executes its instructions.
    pub accelerator: Option<Accelerator>,
    /// Its kernel, an uncompressed ELF image.
    pub kernel: PathBuf,
    /// Its initramfs, with the agent.
    pub initramfs: PathBuf,
    /// What it may use.
    pub resources: Resources,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// What runs in it; nothing for a machine that only shows that it boots.
    pub workload: Option<Workload>,
    /// How long it may take to be ready, in milliseconds.
    pub deadline_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stronger_wall_is_greater() {
        assert!(BackendKind::Qemu.isolation() > BackendKind::Docker.isolation());
        assert!(BackendKind::Docker.isolation() > BackendKind::Sandbox.isolation());
        assert!(BackendKind::Sandbox.isolation() > BackendKind::Process.isolation());
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for &kind in BackendKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        let error = "vm".parse::<Isolation>().unwrap_err().to_string();
        assert_eq!(error, r#""vm" is none of microvm, container, sandbox, process"#);
    }
}
