//! Machines: what makes them, what owns them, and where they are written down.
//!
//! ```text
//! command ── launch ──> supervisor ── Backend ──> VMM
//!    │                      │ supervisor.sock        ║ link
//!    └───── Session ────────┘                      agent ── server
//! ```
//!
//! A command plans a machine ([`registry`]), starts its supervisor ([`client`]) and talks to it over its
//! socket ([`supervise`]). Nothing here prints, and nothing above [`backend`] asks which backend runs.

pub mod admission;
pub mod backend;
pub mod cgroup;
pub mod client;
mod control;
mod disks;
pub mod doctor;
pub mod egress;
mod hangup;
pub mod home;
mod jsonl;
pub mod leash;
pub mod log;
pub mod record;
pub mod registry;
pub mod secret;
mod sock;
pub mod spec;
pub mod supervise;
pub mod supervisor;
mod sys;
pub mod template;
pub mod volume;

pub use client::{ConversationEnd, LaunchError, Leased, Session, SessionError, launch, launch_from};
pub use egress::Egress;
pub use home::{Home, HomeError};
pub use record::{Record, State, Status};
pub use registry::Registry;
pub use secret::Secrets;
pub use spec::{
    Accelerator, BackendKind, Conversation, FolderMount, Isolation, Level, Lifetime, Origin, Resources,
    Restart, Spec, VolumeMount, Workload,
};
pub use sys::seal_descriptors;
pub use template::{Step, Templates};
pub use volume::{Volume, VolumeError, Volumes};
