//! What is to run, and within which bounds: all that a supervisor is told.

use crate::egress::Egress;
use casemate_proto::{control, ids::Name, mount::Target};
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
    /// An emulated processor has every instruction that can be emulated, also those that make most servers
    /// slower to start (AVX).
    #[serde(default)]
    pub full_cpu: bool,
}

impl Default for Resources {
    fn default() -> Self {
        Self { memory_mb: 256, vcpus: 1, full_cpu: false }
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

/// How much of the disk suspended machines may take unless something else is said, in bytes.
pub const SUSPEND_DISK_BYTES: u64 = 10 << 30;

/// How often a machine is asked for a sign of life unless something else is said, in milliseconds.
pub const HEALTH_MS: u64 = 10_000;

/// Who speaks MCP with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conversation {
    /// The supervisor, on behalf of all who ask it.
    Held,
    /// One client that attaches to port 5252.
    Client,
}

/// How far a template has come when it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The server is started and waits for its first message.
    Server,
    /// The root is mounted; the server is not started.
    Agent,
}

words!(Level { Server = "server", Agent = "agent" });

/// Where a machine's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Its kernel boots.
    Cold {
        /// Why no template serves.
        reason: String,
    },
    /// It is restored from a template.
    Template {
        /// The template's key.
        key: String,
        /// How far it had come.
        level: Level,
        /// Why it had not come further.
        reason: Option<String>,
    },
    /// Its kernel boots so that it becomes a template, and nothing else.
    Builder {
        /// The name of the builder's folder.
        folder: String,
        /// How far it is to come.
        level: Level,
    },
}

/// What is done about a machine that fails once it was ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It stays as it ended.
    #[default]
    Never,
    /// It is started anew, after a pause that grows, a limited number of times.
    OnFailure,
}

words!(Restart { Never = "never", OnFailure = "on-failure" });

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
    /// The path of its MCP endpoint, where it is reached by HTTP; `/mcp` if nothing was said.
    #[serde(default)]
    pub http_path: Option<String>,
    /// Bounds inside the machine.
    pub limits: control::Limits,
    /// How its runtime is kept from repeating random numbers in clones; nothing where it cannot be, and
    /// where the server therefore starts in each clone.
    pub reseed: Option<control::Reseed>,
    /// Who speaks with it.
    pub conversation: Conversation,
    /// Whether writes to the root go to a device of their own, so that they can be compared from outside.
    pub overlay: bool,
    /// What it may reach outside.
    #[serde(default)]
    pub egress: Egress,
    /// Folders of the host that it can read.
    #[serde(default)]
    pub folders: Vec<FolderMount>,
    /// What it writes that outlives its machines.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    /// Names of the [secrets](crate::secret) that it is given; nothing else of them is here.
    #[serde(default)]
    pub secrets: Vec<String>,
}

/// A folder of the host, as it was when it was packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderMount {
    /// An EROFS image.
    pub image: PathBuf,
    /// The image's digest.
    pub digest: String,
    /// Where it is mounted, read-only.
    pub target: Target,
}

/// A [volume](crate::volume).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Its name.
    pub name: Name,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Where it is mounted.
    pub target: Target,
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
    /// Where its memory comes from.
    pub origin: Origin,
    /// After how long without a request it is suspended, in milliseconds.
    pub idle_ms: Option<u64>,
    /// How much of the disk all suspended machines of the home may take, in bytes.
    pub suspend_disk_bytes: u64,
    /// What is done when it fails.
    pub restart: Restart,
    /// How often it is asked for a sign of life, in milliseconds.
    pub health_ms: u64,
    /// How much memory all machines of the home may be expected to use, in MiB, where the host has more.
    pub memory_limit_mb: Option<u64>,
    /// How long it may take to be ready, in milliseconds.
    pub deadline_ms: u64,
}

impl Spec {
    /// A machine that only boots, leased, with the default size.
    pub fn bare(name: Name, backend: BackendKind, kernel: PathBuf, initramfs: PathBuf) -> Self {
        Self {
            server: name.to_string(),
            name,
            backend,
            accelerator: None,
            kernel,
            initramfs,
            resources: Resources::default(),
            lifetime: Lifetime::Leased,
            workload: None,
            origin: Origin::Cold { reason: "nothing runs in it".to_owned() },
            idle_ms: None,
            suspend_disk_bytes: SUSPEND_DISK_BYTES,
            restart: Restart::Never,
            health_ms: HEALTH_MS,
            memory_limit_mb: None,
            deadline_ms: 60_000,
        }
    }
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
