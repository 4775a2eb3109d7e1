//! The seam beneath which walls differ. Above it nobody asks which backend runs.

mod memory;
pub mod qemu;

use crate::{disks::Disks, egress::WayOut, home::Home, record::Record, spec::Spec, template};
use casemate_link::Connector;
pub(crate) use memory::GuestMemory;
use serde::Serialize;
use std::{fs::File, future::Future, io, path::PathBuf, pin::Pin, process::ExitStatus, rc::Rc};

/// What a machine of a backend can do; differences are data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Its memory and devices can be written down and started again.
    pub snapshot: bool,
    /// [`Instance::pause`] works.
    pub pause: bool,
    /// [`Instance::resume`] works.
    pub resume: bool,
    /// [`Instance::kill`] ends it at once, whatever it does.
    pub kill: bool,
    /// [`Instance::cut_link`] works.
    pub cut_link: bool,
    /// Its clock can be set from outside.
    pub set_clock: bool,
    /// Writes to the root can go to a device of their own.
    pub writable_overlay: bool,
    /// It can hold more than one conversation at once.
    pub conversations: bool,
}

/// Why a backend could not do something.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// This backend is not built yet.
    #[error("backend {0} is not built yet")]
    NotBuilt(&'static str),
    /// A program that the backend needs is missing.
    #[error("{program} is not installed")]
    Missing {
        /// The program.
        program: &'static str,
        /// What to install.
        remedy: &'static str,
    },
    /// A program is too old.
    #[error("{program} {found} is older than {needed}")]
    TooOld {
        /// The program.
        program: &'static str,
        /// What is installed.
        found: String,
        /// What is needed.
        needed: &'static str,
        /// What to install.
        remedy: &'static str,
    },
    /// A file that the machine needs cannot be opened.
    #[error("cannot open {what} {path}")]
    Open {
        /// Such as `kernel`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operating system refused something.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM's monitor answered with an error or with nonsense.
    #[error("monitor command {command} failed: {reason}")]
    Monitor {
        /// The command.
        command: &'static str,
        /// What came instead.
        reason: String,
    },
    /// The backend has not this capability.
    #[error("backend {backend} cannot {what}")]
    Incapable {
        /// The backend.
        backend: &'static str,
        /// Such as `pause`.
        what: &'static str,
    },
}

impl BackendError {
    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

/// A future of the seam; not to be cancelled unless said otherwise.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// One isolated instance that was started. Dropping it kills it.
pub trait Instance {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// The process that is the machine on the host.
    fn pid(&self) -> u32;
    /// The way to its ports; valid until [`Instance::cut_link`].
    fn connector(&self) -> Connector;
    /// Resolves when the process has ended and was reaped. May be cancelled and called again.
    fn exited(&mut self) -> Boxed<'_, io::Result<ExitStatus>>;
    /// Stops its processors; open requests wait.
    fn pause(&mut self) -> Boxed<'_, Result<(), BackendError>>;
    /// Lets its processors go on.
    fn resume(&mut self) -> Boxed<'_, Result<(), BackendError>>;
    /// Stops its processors for good and returns the state of its devices.
    fn save(&mut self) -> Boxed<'_, Result<Vec<u8>, BackendError>>;
    /// Its memory.
    fn memory(&self) -> &GuestMemory;
    /// Cuts the link: every stream ends, none can be opened. The machine goes on.
    fn cut_link(&mut self);
    /// Ends it at once and reaps it.
    fn kill(&mut self) -> Boxed<'_, ()>;
}

/// What a backend is given beside the specification.
#[derive(Debug, Clone)]
pub struct Hosting {
    /// The home folder.
    pub home: Home,
    /// The machine's folder, for logs.
    pub dir: PathBuf,
    /// What was written down.
    pub record: Record,
    /// Its block devices beside its root.
    pub(crate) disks: Rc<Disks>,
    /// What becomes of the streams that the guest opens.
    pub(crate) way_out: WayOut,
}

/// What an instance begins with.
#[derive(Debug)]
pub(crate) enum Beginning {
    /// Nothing: its kernel boots.
    Boot,
    /// A template.
    Template(template::Opened),
    /// What it was when it was suspended.
    Suspended(Suspended),
}

/// A machine without a VMM.
#[derive(Debug)]
pub(crate) struct Suspended {
    /// The template's memory, where it was restored from one.
    pub(crate) base: Option<File>,
    /// The pages that are not as there: for each its index (8 bytes, little-endian) and its bytes.
    pub(crate) pages: File,
    /// The state of its devices.
    pub(crate) state: Vec<u8>,
}

/// Starts an instance; on failure nothing is left of it.
pub(crate) async fn start(
    spec: &Spec,
    hosting: &Hosting,
    beginning: Beginning,
) -> Result<Box<dyn Instance>, BackendError> {
    match spec.backend {
        crate::spec::BackendKind::Qemu => Ok(Box::new(qemu::start(spec, hosting, beginning).await?)),
        other => Err(BackendError::NotBuilt(other.as_str())),
    }
}
