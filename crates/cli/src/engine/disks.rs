//! What a server is given of the host's disk: folders are packed and volumes made, or refused with the reason.

use super::{BackendKind, Isolation, Progress, Target, blocking, check::repeated};
use crate::{
    context::Context,
    error::{Error, Kind},
    mounts::{FolderWish, VolumeWish},
    render::progress::Steps,
};
use casemate_image::{
    folder::{self, FolderError},
    store::Store,
};
use casemate_machine::{FolderMount, VolumeError, VolumeMount, Volumes, volume::ExportError};
use casemate_proto::mount::{self, SERVER_ID};
use std::{fs::File, sync::Arc};

/// What a server is given.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Packed folders.
    pub folders: Vec<FolderMount>,
    /// Volumes that exist.
    pub volumes: Vec<VolumeMount>,
    /// Keeps the packed folders from being pruned before a machine has them.
    pub held: Vec<Arc<File>>,
}

/// Refuses what a backend cannot give, before anything is done for it.
pub fn check(backend: BackendKind, target: &Target<'_>) -> Result<(), Error> {
    let (folders, volumes) = (&target.folders, &target.volumes);
    if let Some(wish) = folders.iter().find(|wish| wish.writable)
        && backend.isolation() == Isolation::Microvm
    {
        let message = format!(
            "a microVM cannot be given {} to write to: it has block devices, and no folder is shared with the host",
            wish.host.display()
        );
        return Err(Error::unavailable(message).hint(format!(
            "give the server a volume (--volume NAME:{}), which casemate volume export reads; or the folder \
             to read (:ro)",
            wish.target
        )));
    }
    let count = folders.len() + volumes.len();
    if count > mount::MOST {
        let message = format!(
            "{count} folders and volumes are more than a machine can have: it has eight devices, of which {} are \
             left for them",
            mount::MOST
        );
        return Err(Error::unavailable(message).hint("give it a folder that holds the others"));
    }
    let targets: Vec<&mount::Target> =
        folders.iter().map(|wish| &wish.target).chain(volumes.iter().map(|wish| &wish.target)).collect();
    for (number, one) in targets.iter().enumerate() {
        if let Some(other) = targets[..number].iter().find(|other| other.overlaps(one)) {
            let message = format!("{one} and {other} cannot both be mounted: one would hide the other");
            return Err(Error::configuration(message).hint("mount them beside each other"));
        }
    }
    if let Some(twice) = repeated(volumes.iter().map(|wish| &wish.name)) {
        let message = format!("volume {twice} cannot be mounted twice in one machine");
        return Err(Error::configuration(message).hint("mount it once, or name two volumes"));
    }
    Ok(())
}

/// Refuses folders that are not there, and volumes that are there with another size.
pub fn find(context: &Context, target: &Target<'_>) -> Result<(), Error> {
    if let Some(wish) = target.folders.iter().find(|wish| !wish.path().is_dir()) {
        return Err(FolderError::NoFolder { path: wish.path() }.into());
    }
    if target.volumes.is_empty() {
        return Ok(());
    }
    let volumes = Volumes::open(&context.home)?;
    for VolumeWish { name, size, .. } in &target.volumes {
        volumes.fitting(name, size.map(|size| size.0))?;
    }
    Ok(())
}

/// Packs the folders and makes the volumes of a target.
pub async fn prepare(context: &Context, target: &Target<'_>) -> Result<Given, Error> {
    let mut given = Given::default();
    for wish in &target.folders {
        let packed = pack(context, wish).await?;
        given.folders.push(FolderMount {
            image: packed.image,
            digest: packed.digest,
            target: wish.target.clone(),
        });
        given.held.push(packed.held);
    }
    for wish in &target.volumes {
        let volumes = Volumes::open(&context.home)?;
        let VolumeWish { name, size, .. } = wish.clone();
        let volume = blocking(move || volumes.ensure(&name, size.map(|size| size.0))).await??;
        if let Some(by) = volume.used_by {
            return Err(VolumeError::Used { name: volume.name, by }.into());
        }
        let (name, bytes) = (volume.name, volume.size_bytes);
        given.volumes.push(VolumeMount { name, bytes, target: wish.target.clone() });
    }
    Ok(given)
}

/// Packs a folder, or finds it packed.
pub(super) async fn pack(context: &Context, wish: &FolderWish) -> Result<folder::Packed, Error> {
    let steps = Steps::new(context.screen);
    steps.step(&format!("packing {}", wish.host.display()));
    let (store, path) = (Store::open(context.home.path())?, wish.path());
    Ok(blocking(move || folder::pack(&store, &path, SERVER_ID, &steps)).await??)
}

impl From<FolderError> for Error {
    fn from(error: FolderError) -> Self {
        let (kind, hint) = match &error {
            FolderError::NoFolder { .. } => (Kind::Configuration, "name a folder that exists"),
            FolderError::TooLarge { .. } => {
                (Kind::Configuration, "give the part of it that the server needs")
            }
            FolderError::Special { .. } => (Kind::Configuration, "give a folder without it"),
            FolderError::Mounted { .. } => {
                (Kind::Configuration, "give each file system with a --mount of its own")
            }
            FolderError::Deep { .. } => (Kind::Configuration, "give a folder further down"),
            FolderError::Changed { .. } => {
                (Kind::Unavailable, "try again when nothing writes to it, or give a copy of it")
            }
            FolderError::Io { .. } => (Kind::Configuration, "check that it can be read, and the free space"),
            FolderError::Store(_) | FolderError::Erofs(_) => {
                (Kind::Unavailable, "`casemate doctor` says what this host can run")
            }
            _ => (Kind::Unavailable, "try again"),
        };
        Self::new(kind, "cannot give the server a folder").because(error).hint(hint)
    }
}

impl From<VolumeError> for Error {
    fn from(error: VolumeError) -> Self {
        let (kind, hint) = match &error {
            VolumeError::Home(_) | VolumeError::Io { .. } => {
                return super::failure::storage("cannot use the volume", error);
            }
            VolumeError::Missing(_) => (Kind::Configuration, "`casemate volume list` shows the volumes"),
            VolumeError::Used { .. } => {
                (Kind::Configuration, "stop who has it (casemate stop NAME), or name another volume")
            }
            VolumeError::Size { .. } => (Kind::Configuration, "say another size, such as 1GiB"),
            VolumeError::OtherSize { .. } => {
                (Kind::Configuration, "leave the size out, or name another volume: a size cannot be changed")
            }
            VolumeError::Damaged { .. } => (Kind::Failed, "casemate volume remove NAME removes it"),
            VolumeError::NoMaker => (Kind::Unavailable, "install it, then try again"),
            VolumeError::Maker(_) => (Kind::Unavailable, "check the free space of CASEMATE_HOME"),
        };
        Self::new(kind, error.to_string()).hint(hint)
    }
}

impl From<ExportError> for Error {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Volume(error) => error.into(),
            ExportError::Write(_) => Self::new(Kind::Failed, "cannot write the archive")
                .because(error)
                .hint("check the free space"),
            ExportError::Read { ref source, .. } => {
                let hint = "a machine that starts with it recovers what a killed one left; e2fsck mends a copy of it";
                Self::new(Kind::Failed, error.to_string()).hint(hint).because(source.to_string())
            }
        }
    }
}
