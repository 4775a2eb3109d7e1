//! What stands between a server process and everything else: the steps that a child takes, in this order,
//! between `fork` and `exec`.
//!
//! | attack | barrier |
//! | --- | --- |
//! | signals to, or a terminal of, the agent | own session |
//! | outliving its end | own cgroup, killed as a whole |
//! | memory and process exhaustion | cgroup limits, resource limits, first victim of the OOM killer |
//! | the agent's files, the link's devices | own mount namespace whose root is the machine's root |
//! | root, capabilities, set-uid programs | own user, empty sets, no-new-privileges |
//! | attack surface of the kernel | system call filter |

use crate::filter;
use crate::sys;
use casemate_proto::control::Limits;
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use rustix::{fs::Gid, fs::Uid, io::Errno};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

pub use casemate_proto::mount::SERVER_ID;

/// Above everything else in a machine, below the agent by far.
const OOM_SCORE: &[u8] = b"500";

/// Which user a child becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// [`SERVER_ID`], because the agent is root.
    Server,
    /// The agent's, because it has no privilege to change it.
    Agent,
}

impl Identity {
    /// What this process's privileges ask for.
    pub fn of_this_process() -> Self {
        if rustix::process::geteuid().is_root() { Self::Server } else { Self::Agent }
    }
}

/// Everything that a child needs to wall itself in.
#[derive(Debug)]
pub struct Wall {
    /// The machine's root as the agent sees it; `None` where the agent lives in it too.
    pub root: Option<CString>,
    /// Opened for writing; the child joins by writing its id.
    pub cgroup: Option<OwnedFd>,
    /// The user it becomes.
    pub identity: Identity,
    /// Resource limits.
    pub limits: Limits,
    /// The folder it starts in.
    pub cwd: CString,
}

/// The steps; each is named in the error when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // `describe` says what each does.
pub enum Step {
    Session,
    Cgroup,
    Root,
    Limits,
    Bounding,
    User,
    Capabilities,
    Folder,
    Filter,
}

/// In the order in which they are taken: what needs privilege before it is given up, the filter last.
const STEPS: [Step; 9] = [
    Step::Session,
    Step::Cgroup,
    Step::Root,
    Step::Limits,
    Step::Bounding,
    Step::User,
    Step::Capabilities,
    Step::Folder,
    Step::Filter,
];

impl Step {
    /// What it does, for an error.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Session => "start a session",
            Self::Cgroup => "join the control group",
            Self::Root => "enter the machine's root",
            Self::Limits => "set resource limits",
            Self::Bounding => "empty the capability bounding set",
            Self::User => "become the server's user",
            Self::Capabilities => "empty the capability sets",
            Self::Folder => "enter the working folder",
            Self::Filter => "install the system call filter",
        }
    }

    /// The step that [`Wall::raise`] reported.
    pub fn from_byte(byte: u8) -> Option<Self> {
        STEPS.get(usize::from(byte)).copied()
    }
}

impl Wall {
    /// Takes all steps. On failure `report` gets the step's number, then the error is returned.
    pub fn raise(&self, report: &OwnedFd) -> io::Result<()> {
        for (number, &step) in STEPS.iter().enumerate() {
            if let Err(error) = self.take(step) {
                // Without the report the error still says what failed, though not where.
                let _ = rustix::io::write(report, &[number as u8]);
                return Err(error);
            }
        }
        Ok(())
    }

    fn take(&self, step: Step) -> io::Result<()> {
        match step {
            Step::Session => {
                rustix::process::setsid()?;
                sys::close_on_exec_from(3)
            }
            Step::Cgroup => self.join(),
            Step::Root => self.enter_root(),
            Step::Limits => self.limit(),
            Step::Bounding => self.empty_bounding_set(),
            Step::User => self.become_user(),
            Step::Capabilities => {
                let empty = CapabilitySet::empty();
                let sets = CapabilitySets { effective: empty, permitted: empty, inheritable: empty };
                Ok(rustix::thread::set_capabilities(None, sets)?)
            }
            Step::Folder => {
                rustix::process::chdir(&*self.cwd)?;
                rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
                Ok(())
            }
            Step::Filter => filter::install(),
        }
    }

    fn join(&self) -> io::Result<()> {
        if let Some(cgroup) = &self.cgroup {
            rustix::io::write(cgroup, b"0")?;
        }
        // Where the agent may not raise it (an agent whose /proc files are not its own, or no /proc), the
        // kernel still chooses by size, and the agent is small.
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, rustix::fs::Mode::empty()) {
            let _ = rustix::io::write(&file, OOM_SCORE);
        }
        Ok(())
    }

    fn enter_root(&self) -> io::Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        sys::leave_mount_namespace()?;
        rustix::process::chdir(&**root)?;
        // The agent's root is a kernel's first root, which `pivot_root` refuses to leave; it is covered
        // instead, so that no path leads to it even from outside of the new root.
        rustix::mount::mount_move(c".", c"/")?;
        Ok(rustix::process::chroot(c".")?)
    }

    fn limit(&self) -> io::Result<()> {
        let set = |resource, limit: u64| {
            // Where the agent's own limit is lower and it may not raise it, the lower one is in force.
            let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
            let wanted = Rlimit { current: Some(limit), maximum: Some(limit) };
            match rustix::process::setrlimit(resource, wanted) {
                Err(Errno::PERM) if most < limit => {
                    rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
                }
                result => result,
            }
        };
        set(Resource::Nproc, self.limits.processes)?;
        set(Resource::Nofile, self.limits.open_files)?;
        set(Resource::Core, 0)?;
        Ok(())
    }

    fn empty_bounding_set(&self) -> io::Result<()> {
        if self.identity == Identity::Agent {
            // Needs a capability; without one there is nothing that the set could give back, because
            // no-new-privileges makes `exec` add none.
            return Ok(());
        }
        for number in 0..64 {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // Past the last one that this kernel knows.
                Err(Errno::INVAL) => break,
                // A container may lack both this right and the capability in question.
                Err(Errno::PERM)
                    if rustix::thread::capability_is_in_bounding_set(capability) == Ok(false) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn become_user(&self) -> io::Result<()> {
        match rustix::thread::clear_ambient_capability_set() {
            // Kernels without ambient capabilities have none to clear.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        if self.identity == Identity::Server {
            let (user, group) = (Uid::from_raw(SERVER_ID), Gid::from_raw(SERVER_ID));
            rustix::thread::set_thread_groups(&[])?;
            rustix::thread::set_thread_res_gid(group, group, group)?;
            rustix::thread::set_thread_res_uid(user, user, user)?;
        }
        // Both are undone by a change of user, so they come after it.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    }
}
