//! What is written down about a machine: `machine.json`, and what `status` shows of it.

use crate::{
    home::{Home, HomeError, write_atomically},
    spec::{Accelerator, BackendKind, Conversation, FolderMount, Lifetime, Origin, Spec},
};
use casemate_proto::ids::{Cid, Name};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where a machine stands. `Stopped` and `Failed` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has a name and a CID.
    Planned,
    /// Everything that it needs is open.
    Prepared,
    /// Its agent answers.
    Booted,
    /// Its server answers, or is alive where a client is to speak with it.
    Ready,
    /// Its memory is on disk.
    Suspended,
    /// It was told to end and did.
    Stopped,
    /// It ended otherwise.
    Failed,
}

impl State {
    /// Whether the machine is over.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }

    /// The state as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Prepared => "prepared",
            Self::Booted => "booted",
            Self::Ready => "ready",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// How a machine came to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Its kernel booted.
    Cold,
    /// It was restored from a template.
    Restored,
}

/// The content of `machine.json`. Written by the command that plans the machine, then by its supervisor
/// alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name of its folder.
    pub id: String,
    /// The name that commands use.
    pub name: Name,
    /// The server's name.
    pub server: String,
    /// What made it.
    pub backend: BackendKind,
    /// What executes its instructions.
    pub accelerator: Option<Accelerator>,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Who speaks MCP with its server; nothing where none runs.
    pub conversation: Option<Conversation>,
    /// Where it stands.
    pub state: State,
    /// Why it ended, or what it waits for.
    pub reason: Option<String>,
    /// The VMM.
    pub pid: Option<u32>,
    /// The supervisor.
    pub supervisor_pid: Option<u32>,
    /// Its context id.
    pub cid: Cid,
    /// Memory of the guest, in MiB.
    pub memory_mb: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// The image's digest.
    pub image: Option<String>,
    /// The folders of the host that it was given, as they were then.
    #[serde(default)]
    pub folders: Vec<FolderMount>,
    /// When it was planned.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it came to run.
    pub start: Start,
    /// From the plan to `ready`, in milliseconds.
    pub start_ms: Option<u64>,
    /// The template that it was restored from.
    pub template: Option<String>,
    /// Why there was none, or none of its running server.
    pub template_reason: Option<String>,
    /// How many times it was started anew because it had failed.
    #[serde(default)]
    pub restarts: u32,
    /// What it takes on disk while it is suspended.
    #[serde(default)]
    pub suspend_bytes: Option<u64>,
}

impl Record {
    /// A machine that is planned.
    pub(crate) fn planned(id: String, cid: Cid, spec: &Spec) -> Self {
        let (start, template, template_reason) = match &spec.origin {
            Origin::Cold { reason } => (Start::Cold, None, Some(reason.clone())),
            Origin::Template { key, reason, .. } => (Start::Restored, Some(key.clone()), reason.clone()),
            Origin::Builder { .. } => (Start::Cold, None, Some("it is to become a template".to_owned())),
        };
        Self {
            id,
            name: spec.name.clone(),
            server: spec.server.clone(),
            backend: spec.backend,
            accelerator: spec.accelerator,
            lifetime: spec.lifetime,
            conversation: spec.workload.as_ref().map(|workload| workload.conversation),
            state: State::Planned,
            reason: None,
            pid: None,
            supervisor_pid: None,
            cid,
            memory_mb: spec.resources.memory_mb,
            vcpus: spec.resources.vcpus,
            image: spec.workload.as_ref().map(|workload| workload.image.clone()),
            folders: spec.workload.as_ref().map(|workload| workload.folders.clone()).unwrap_or_default(),
            started_at: Timestamp::now(),
            ended_at: None,
            start,
            start_ms: None,
            template,
            template_reason,
            restarts: 0,
            suspend_bytes: None,
        }
    }

    /// Reads the record of a machine; `None` if there is none that can be read.
    pub(crate) fn load(home: &Home, id: &str) -> Option<Self> {
        Self::load_from(&home.machine(id))
    }

    /// Reads the record in a machine's folder; `None` if there is none that can be read.
    pub(crate) fn load_from(dir: &Path) -> Option<Self> {
        let text = fs::read(dir.join("machine.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes the record in one step.
    pub(crate) fn save(&self, home: &Home) -> Result<(), HomeError> {
        // String keys and our own types only: it serialises.
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        write_atomically(&home.machine(&self.id).join("machine.json"), &text)
    }

    /// The record as `status --json` prints it.
    pub fn status(&self, home: &Home) -> Status {
        let until = self.ended_at.unwrap_or_else(Timestamp::now);
        let alive = !self.state.is_final();
        Status {
            id: self.id.clone(),
            name: self.name.clone(),
            server: self.server.clone(),
            backend: self.backend,
            accelerator: self.accelerator,
            state: self.state,
            reason: self.reason.clone(),
            pid: self.pid.filter(|_| alive),
            cid: self.cid,
            memory_mb: self.memory_mb,
            vcpus: self.vcpus,
            started_at: self.started_at.to_string(),
            uptime_ms: until.duration_since(self.started_at).as_millis().max(0) as u64,
            start: self.start,
            start_ms: self.start_ms,
            template: self.template.clone(),
            template_reason: self.template_reason.clone(),
            rss_mb: self.pid.filter(|_| alive).and_then(resident_mb),
            restarts: self.restarts,
            suspend_bytes: self.suspend_bytes.filter(|_| alive),
            log_dir: home.machine(&self.id).join("logs"),
        }
    }
}

/// One entry of `status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // As in `Record`, where they are explained.
pub struct Status {
    pub id: String,
    pub name: Name,
    pub server: String,
    pub backend: BackendKind,
    pub accelerator: Option<Accelerator>,
    pub state: State,
    pub reason: Option<String>,
    pub pid: Option<u32>,
    pub cid: Cid,
    pub memory_mb: u32,
    pub vcpus: u32,
    /// RFC 3339.
    pub started_at: String,
    pub uptime_ms: u64,
    pub start: Start,
    pub start_ms: Option<u64>,
    pub template: Option<String>,
    pub template_reason: Option<String>,
    /// Resident memory of the VMM, in MiB.
    pub rss_mb: Option<u64>,
    pub restarts: u32,
    pub suspend_bytes: Option<u64>,
    pub log_dir: PathBuf,
}

fn resident_mb(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes / 1024)
}
