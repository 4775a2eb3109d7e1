//! The block devices of a machine beside its root, opened once for all of its life: while it is suspended no VMM
//! holds them.

use crate::{
    home::Home,
    record::Record,
    spec::{Origin, Spec, VolumeMount, Workload},
    volume::{VolumeError, Volumes},
};
use casemate_proto::mount::{Kind, Mount};
use rustix::fs::MemfdFlags;
use std::{fs::File, io, path::PathBuf};

/// The serial of a device: virtio's has 20 bytes.
pub(crate) fn serial(kind: Kind, number: usize) -> String {
    match kind {
        Kind::Folder => format!("casemate-folder-{number}"),
        Kind::Volume => format!("casemate-volume-{number}"),
    }
}

/// Why a machine's block devices cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// A packed folder is gone.
    #[error("cannot open packed folder {path}")]
    Folder {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device cannot be made for a machine that becomes a template.
    #[error("cannot make a device")]
    Placeholder(#[source] io::Error),
    /// A volume cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl DiskError {
    /// What the user may do.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Volume(VolumeError::Used { .. }) => {
                Some("stop the machine that has it (casemate volume list), or name another volume")
            }
            _ => None,
        }
    }
}

/// Opened block devices, in the order in which the machine is given them.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    /// Images of folders, opened for reading and kept from being pruned.
    pub(crate) folders: Vec<File>,
    /// Volumes, which nobody else has meanwhile.
    pub(crate) volumes: Vec<File>,
}

impl Disks {
    /// Opens what a machine is given. One that becomes a template has devices of the same sizes, and no volume.
    pub(crate) fn open(home: &Home, spec: &Spec, record: &Record) -> Result<Self, DiskError> {
        let Some(workload) = &spec.workload else { return Ok(Self::default()) };
        let open = |path: &PathBuf| {
            let opened = File::open(path).and_then(|file| file.lock_shared().map(|()| file));
            opened.map_err(|source| DiskError::Folder { path: path.clone(), source })
        };
        let folders =
            workload.folders.iter().map(|folder| open(&folder.image)).collect::<Result<Vec<_>, _>>()?;
        let mut volumes = Vec::new();
        if matches!(spec.origin, Origin::Builder { .. }) {
            volumes = workload.volumes.iter().map(placeholder).collect::<Result<_, _>>()?;
        } else if !workload.volumes.is_empty() {
            let store = Volumes::open(home).map_err(VolumeError::from)?;
            for volume in &workload.volumes {
                volumes.push(store.take(&volume.name, &record.name)?);
            }
        }
        Ok(Self { folders, volumes })
    }
}

/// A device of a volume's size with nothing on it.
fn placeholder(volume: &VolumeMount) -> Result<File, DiskError> {
    let made = rustix::fs::memfd_create("casemate-no-volume", MemfdFlags::CLOEXEC)
        .and_then(|made| rustix::fs::ftruncate(&made, volume.bytes).map(|()| made));
    made.map(File::from).map_err(|errno| DiskError::Placeholder(errno.into()))
}

/// What the agent is to mount.
pub(crate) fn mounts(workload: &Workload) -> Vec<Mount> {
    let folders = workload.folders.iter().map(|folder| (Kind::Folder, &folder.target)).enumerate();
    let volumes = workload.volumes.iter().map(|volume| (Kind::Volume, &volume.target)).enumerate();
    folders
        .chain(volumes)
        .map(|(number, (kind, target))| Mount { serial: serial(kind, number), target: target.clone(), kind })
        .collect()
}
