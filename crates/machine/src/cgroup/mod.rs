//! A control group of its own around each VMM: what a VMM in a guest's hands can take from the host.
//!
//! ```text
//! Group::create ── find where children may be made ── note it in the machine's folder ── mkdir, limits
//! Group::admit(VMM) ── its pid to cgroup.procs
//! sweep (supervisor's end, or the registry after a kill -9) ── kill what is left ── rmdir ── note removed
//! ```
//!
//! Version 1 has a hierarchy for every controller, version 2 one for all; a host may have both, so every
//! controller is looked for by itself. A controller that cannot be had is a reason to tell, and no reason
//! not to start: the VMM's other walls ([`confine`](crate::backend::qemu::confine)) do not depend on it.
//!
//! The limits are a guard and no tuning; who is admitted at all is decided in [`admission`](crate::admission).

mod find;
mod headroom;
mod limits;
mod remains;
mod v2;

#[cfg(test)]
mod tests;

pub(crate) use headroom::{Headroom, headroom};
pub use limits::Limits;
pub(crate) use remains::{NOTE, sweep};

use crate::home::{Home, HomeError};
use find::{Place, Version};
use std::{
    fmt, fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What bounds a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Memory and swap.
    Memory,
    /// Processor time.
    Cpu,
    /// Processes and threads.
    Pids,
}

impl Controller {
    /// Every controller that a group is given.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// Its name in the kernel's files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a controller does not bound a VMM.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Neither version has it.
    #[error("no cgroup hierarchy with the {0} controller is mounted")]
    NoHierarchy(Controller),
    /// The group that this process is in lies outside of what is mounted here.
    #[error("this process's {controller} group {path} is not visible at any mount point")]
    OutOfSight {
        /// For what.
        controller: Controller,
        /// As `/proc/self/cgroup` names it.
        path: PathBuf,
    },
    /// No group that this process may use passes the controller on to its children.
    #[error("no group from {dir} upwards gives its children the {controller} controller")]
    NotGiven {
        /// For what.
        controller: Controller,
        /// This process's own group.
        dir: PathBuf,
    },
    /// cgroups(7), "no internal processes": a group with processes cannot give its children controllers.
    #[error("group {dir} has processes of its own, so its children get no controllers")]
    InnerProcesses {
        /// Which.
        dir: PathBuf,
    },
    /// The only group that would do lies outside of one that is itself limited.
    #[error("a group above {dir} would escape its {file}")]
    WouldEscape {
        /// The limited group.
        dir: PathBuf,
        /// Its limit.
        file: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// Such as `write`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A group that is written down nowhere would never be swept up.
    #[error("cannot write down the machine's groups")]
    Note(#[source] HomeError),
}

impl Unavailable {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// What the user may do.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoHierarchy(_) | Self::OutOfSight { .. } => {
                Some("mount the cgroup file system, or run outside of this container")
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Some("the container was given its groups read-only: run it with writable ones")
            }
            Self::NotGiven { .. }
            | Self::InnerProcesses { .. }
            | Self::WouldEscape { .. }
            | Self::Io { .. } => Some(
                "run casemate as root, or in groups of your own: systemd-run --user --scope casemate …, or \
                     in a service with Delegate=yes and DelegateSubgroup=main",
            ),
            Self::Note(_) => None,
        }
    }
}

/// One directory of a group, and what it bounds.
#[derive(Debug)]
struct Part {
    version: Version,
    dir: PathBuf,
    controllers: Vec<Controller>,
}

/// The group of one machine's VMM. It stays when this is dropped, and is swept up with the machine.
#[derive(Debug)]
pub struct Group {
    parts: Vec<Part>,
    missing: Vec<Unavailable>,
}

impl Group {
    /// Makes the group of machine `id`, whose folder is `dir`, as far as this host allows.
    ///
    /// May be called again for the same machine, such as after a suspension.
    pub fn create(home: &Home, dir: &Path, id: &str, limits: &Limits) -> Self {
        let mut group = Self { parts: Vec::new(), missing: Vec::new() };
        let planned = group.plan(&name(home, id));
        let dirs: Vec<&Path> = planned.iter().map(|part| part.dir.as_path()).collect();
        if let Err(error) = remains::note(dir, &dirs) {
            group.missing.push(Unavailable::Note(error));
            return group;
        }
        for part in planned {
            match make(&part, limits) {
                Ok(()) => group.parts.push(part),
                Err(error) => group.missing.push(error),
            }
        }
        group
    }

    /// Tries what [`Group::create`] does, and leaves nothing; returns why what is missing is missing.
    pub fn probe(home: &Home, limits: &Limits) -> Vec<Unavailable> {
        let mut group = Self { parts: Vec::new(), missing: Vec::new() };
        for part in group.plan(&name(home, &format!("probe{}", std::process::id()))) {
            group.missing.extend(make(&part, limits).err());
            // It is empty: if it was made it can be removed.
            let _ = fs::remove_dir(&part.dir);
        }
        group.missing
    }

    /// Where the group is to be; what cannot be had is noted as missing.
    fn plan(&mut self, name: &str) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut unified: Option<(Place, Vec<Controller>)> = None;
        let system = match find::System::read() {
            Ok(system) => system,
            Err(error) => {
                self.missing.push(error);
                return parts;
            }
        };
        for controller in Controller::ALL {
            match system.locate(controller) {
                Err(error) => self.missing.push(error),
                Ok(place) if place.version == Version::V2 => {
                    unified.get_or_insert((place, Vec::new())).1.push(controller);
                }
                Ok(place) => {
                    let dir = place.dir.join(name);
                    match parts.iter_mut().find(|part| part.dir == dir) {
                        // Mounted together, such as cpu with cpuacct.
                        Some(part) => part.controllers.push(controller),
                        None => {
                            parts.push(Part { version: Version::V1, dir, controllers: vec![controller] });
                        }
                    }
                }
            }
        }
        if let Some((place, wanted)) = unified {
            let chosen = v2::choose_parent(&place, &wanted);
            if !chosen.controllers.is_empty() {
                let dir = chosen.dir.join(name);
                parts.push(Part { version: Version::V2, dir, controllers: chosen.controllers });
            }
            self.missing.extend(chosen.missing);
        }
        parts
    }

    /// Moves a process, with all its threads, into the group.
    ///
    /// Done by the supervisor after the start, not by the child before exec: the first move for a while waits
    /// for the kernel's RCU grace period, 10 ms here, which then passes beside the VMM's own start. A VMM is
    /// in nobody's hands before its guest runs.
    pub fn admit(&mut self, pid: u32) {
        let missing = &mut self.missing;
        self.parts.retain(|part| {
            let path = part.dir.join("cgroup.procs");
            let joined = fs::write(&path, pid.to_string()).map_err(Unavailable::io("add the VMM to", &path));
            joined.map_err(|error| missing.push(error)).is_ok()
        });
    }

    /// Why what does not bound the VMM does not; empty where everything does.
    pub fn missing(&self) -> &[Unavailable] {
        &self.missing
    }

    /// How often the kernel ended a process of the group because it had used up its memory; `None` where its
    /// memory is not bounded.
    pub fn oom_kills(&self) -> Option<u64> {
        let part = self.parts.iter().find(|part| part.controllers.contains(&Controller::Memory))?;
        let file = match part.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(part.dir.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }
}

/// Makes one directory and writes its limits; on failure it is not there.
fn make(part: &Part, limits: &Limits) -> Result<(), Unavailable> {
    match fs::create_dir(&part.dir) {
        // Of the same machine, before it was suspended.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(Unavailable::io("create", &part.dir))?,
    }
    let written =
        part.controllers.iter().try_for_each(|&controller| limits.write(part.version, controller, &part.dir));
    written.inspect_err(|_| drop(fs::remove_dir(&part.dir)))
}

/// The name of a machine's group: distinct for every machine of every home.
fn name(home: &Home, id: &str) -> String {
    // FNV-1a; that it is short matters, and not which it is.
    let hash = home.path().as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{PREFIX}{:08x}-{id}", (hash ^ (hash >> 32)) as u32)
}

/// How the names of all groups begin.
const PREFIX: &str = "casemate-";
