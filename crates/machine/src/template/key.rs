//! A template's key: a digest of everything that its memory depends on.

use super::Level;
use crate::{
    backend::{BackendError, qemu::probe},
    egress::Egress,
    spec::{Accelerator, Spec},
};
use casemate_proto::mount::Target;
use serde::Serialize;
use std::{collections::BTreeMap, fs, io, path::Path};

/// Changes when machines are made differently, so that older templates are not taken for current ones.
const LAYOUT: u32 = 5;

/// Why a machine can have no template.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Nothing runs in it.
    #[error("nothing runs in it")]
    NoServer,
    /// Writes to its root go to a device of their own.
    #[error("its root is writable")]
    Overlay,
    /// It has a volume: a template would hold the file system as it once was, and write that over what came
    /// after.
    #[error("it has a volume, of which a template would remember an old state")]
    Volume,
    /// The kernel cannot be looked at.
    #[error("cannot look at the kernel")]
    Kernel(#[source] io::Error),
    /// There is no VMM.
    #[error(transparent)]
    Vmm(#[from] BackendError),
}

/// What a template depends on. Nothing of it is secret but what stands behind `configuration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Ingredients {
    /// Which way machines are made.
    pub layout: u32,
    /// The program's version.
    pub version: String,
    /// The protocol between supervisor and agent.
    pub protocol: u32,
    /// How far it has come.
    pub level: Level,
    /// The kernel's folder and the size of its image.
    pub kernel: String,
    /// The initramfs, named by its digest; the agent is in it.
    pub initramfs: String,
    /// Which build of the VMM.
    pub vmm: String,
    /// What executes instructions.
    pub accelerator: Option<Accelerator>,
    /// The processor that guests see.
    pub cpu: String,
    /// MiB.
    pub memory_mb: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// The image's digest.
    pub image: String,
    /// A keyed digest of every configured value: command, environment, folder, limits.
    pub configuration: String,
}

impl Ingredients {
    /// Of the template of this level that a machine could be restored from; `secret` keys the digest of what
    /// may hold a password.
    pub fn of(spec: &Spec, level: Level, secret: &[u8; 32]) -> Result<Self, KeyError> {
        let workload = spec.workload.as_ref().ok_or(KeyError::NoServer)?;
        if workload.overlay {
            return Err(KeyError::Overlay);
        }
        if level == Level::Server && !workload.volumes.is_empty() {
            return Err(KeyError::Volume);
        }
        #[derive(Serialize)]
        struct Configured<'a> {
            command: Option<&'a [String]>,
            env: Option<&'a BTreeMap<String, String>>,
            cwd: Option<&'a str>,
            limits: casemate_proto::control::Limits,
            transport: casemate_proto::control::Transport,
            reseed: Option<casemate_proto::control::Reseed>,
            egress: Option<&'a Egress>,
            /// The content of each packed folder, and where it is mounted.
            folders: Vec<(&'a str, &'a Target)>,
            /// The size of each volume's device, and where it will be mounted.
            volumes: Vec<(u64, &'a Target)>,
        }
        // A template without a server holds nothing of its configuration.
        let server = level == Level::Server;
        let configured = Configured {
            command: server.then_some(&workload.command),
            env: server.then_some(&workload.env),
            cwd: server.then_some(&workload.cwd),
            limits: workload.limits,
            transport: workload.transport,
            reseed: workload.reseed.filter(|_| server),
            egress: server.then_some(&workload.egress),
            // Mounted in both kinds of template: a machine has the devices that its template had.
            folders: workload.folders.iter().map(|folder| (&*folder.digest, &folder.target)).collect(),
            volumes: workload.volumes.iter().map(|volume| (volume.bytes, &volume.target)).collect(),
        };
        // Strings and numbers: it serialises.
        let configured = serde_json::to_vec(&configured).unwrap_or_default();
        let emulated = spec.accelerator != Some(Accelerator::Kvm);
        Ok(Self {
            layout: LAYOUT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: casemate_proto::control::VERSION,
            level,
            kernel: kernel(&spec.kernel)?,
            initramfs: name(&spec.initramfs),
            vmm: probe::build()?,
            accelerator: spec.accelerator,
            cpu: match (emulated, spec.resources.full_cpu) {
                (true, false) => "emulated".to_owned(),
                (true, true) => "emulated, full".to_owned(),
                (false, _) => probe::host_cpu(),
            },
            memory_mb: spec.resources.memory_mb,
            vcpus: spec.resources.vcpus,
            image: workload.image.clone(),
            configuration: blake3::keyed_hash(secret, &configured).to_hex().to_string(),
        })
    }

    /// The key: 32 hexadecimal digits.
    pub fn key(&self) -> String {
        // Strings and numbers: it serialises.
        let text = serde_json::to_vec(self).unwrap_or_default();
        blake3::hash(&text).to_hex().as_str()[..32].to_owned()
    }
}

fn kernel(path: &Path) -> Result<String, KeyError> {
    let size = fs::metadata(path).map_err(KeyError::Kernel)?.len();
    Ok(format!("{}/{size}", name(path.parent().unwrap_or(path))))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
