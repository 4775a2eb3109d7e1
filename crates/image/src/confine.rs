//! Where installers run: programs that came from a registry a moment ago and that handle what strangers
//! uploaded.
//!
//! ```text
//! casemate ──fork──> outer ──fork──> inner = pid 1 of its own namespaces ──exec──> npm, uv
//!     │    death signals, a wall-clock limit     │ empty home, a read-only tree, folders that are handed in
//!     └──── proxy <──listening socket, passed────┘ no network but this socket
//! ```
//!
//! | attack | barrier | test |
//! | --- | --- | --- |
//! | read the host's files, keys, home | mount namespace, `pivot_root` into the build's tree | `sees_only_its_tree` |
//! | reach a host that is no registry | network namespace; the proxy knows the registries by host and port | `reaches_the_registries_only` |
//! | see or signal other processes | process namespace with its own `/proc` | `sees_only_its_tree` |
//! | gain rights by a setuid file or a capability | `no_new_privs`, `nosuid`, no capabilities, not root | `has_no_privileges` |
//! | stay behind | death signals down the chain, the namespace ends with its first process | `nothing_outlives_it` |
//! | run for ever, fill the disk or memory | wall clock, file, data, process and output limits, a tree limit | `is_stopped_in_time` |
//!
//! It needs root or unprivileged user namespaces. It does not limit what an installer may tell the
//! registries.

mod child;
mod plan;
mod proxy;
mod request;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub(crate) use child::die_with_parent;
pub use proxy::Endpoint;

use crate::files::{self, FilesError};

/// How much of a confined program's output is kept in memory for diagnosis.
const TAIL_BYTES: usize = 64 << 10;

/// How often the size of what it wrote is looked at.
const TREE_CHECK: Duration = Duration::from_secs(2);

/// A program to run confined, and what it may see.
#[derive(Debug, Clone)]
pub struct Confinement<'a> {
    /// The tree that becomes its read-only root. It has the folders `/proc`, `/dev`, `/tmp`,
    /// `/home/casemate` and those of `folders`.
    pub root: &'a Path,
    /// Folders of the host that it may write, and where they appear inside. Where casemate is root, they
    /// become the property of the unassigned user that it runs as.
    pub folders: &'a [(&'a Path, &'a str)],
    /// The program by its path inside, and its arguments.
    pub argv: &'a [String],
    /// Its environment beyond `HOME`, `PATH` and the proxy's.
    pub env: &'a [(String, String)],
    /// The folder it starts in.
    pub cwd: &'a str,
    /// What it may reach through the proxy.
    pub endpoints: &'a [Endpoint],
    /// When it is stopped.
    pub limits: Limits,
}

/// Bounds on a confined program.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall-clock time.
    pub time: Duration,
    /// Bytes of all writable folders together.
    pub tree_bytes: u64,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of private writable memory of one process.
    pub data_bytes: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Open files of one process.
    pub open_files: u64,
    /// Bytes of output that go to the log; the rest is read and dropped.
    pub output_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(600),
            tree_bytes: 4 << 30,
            file_bytes: 1 << 30,
            data_bytes: 4 << 30,
            processes: 2048,
            open_files: 8192,
            output_bytes: 4 << 20,
        }
    }
}

/// What a confined program left behind.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// The last of its output, both streams together.
    pub tail: String,
    /// Addresses that it asked the proxy for and was refused.
    pub refused: BTreeSet<String>,
}

/// Why a program could not be run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfineError {
    /// The wall could not be built.
    #[error(
        "cannot confine the installer: {step} failed; run as root, or allow unprivileged user namespaces"
    )]
    Wall {
        /// What was being done.
        step: String,
        #[source]
        /// The cause.
        source: io::Error,
    },
    /// The program is not in the tree, or not executable.
    #[error("cannot start {program} in the build root")]
    Start {
        /// Its path inside.
        program: String,
        #[source]
        /// The cause.
        source: io::Error,
    },
    /// A folder could not be handed over to the confined user.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A path or argument holds a NUL byte.
    #[error("an argument or path of the installer holds a NUL byte")]
    Nul(#[from] std::ffi::NulError),
    /// It took too long.
    #[error("the installer was stopped after {} s", limit.as_secs())]
    Time {
        /// The limit.
        limit: Duration,
    },
    /// It wrote too much.
    #[error("the installer was stopped: it wrote more than {limit} bytes")]
    Size {
        /// The limit in bytes.
        limit: u64,
    },
    /// Whoever asked for it wants it no longer.
    #[error("the installer was stopped")]
    Stopped,
    /// A resource of the host was missing.
    #[error("cannot {operation} for the installer")]
    Host {
        /// What was being done.
        operation: &'static str,
        #[source]
        /// The cause.
        source: io::Error,
    },
}

impl Confinement<'_> {
    /// Runs the program to its end, its output going to `log`.
    ///
    /// The calling thread must live until this returns: the death signal follows it.
    pub fn run(&self, log: &mut (dyn Write + Send)) -> Result<Outcome, ConfineError> {
        self.run_until(log, &|| false)
    }

    /// As [`Self::run`], but ends it when `is_stopped` says so, which is asked every other second.
    pub fn run_until(
        &self,
        log: &mut (dyn Write + Send),
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Outcome, ConfineError> {
        let plan = plan::Plan::new(self)?;
        if let plan::User::Unassigned(id) = plan.user {
            for (folder, _) in self.folders {
                files::give(folder, id)?;
            }
        }
        let (report, child_end) = plan::channel().map_err(host("open a channel"))?;
        let (output, child_output) = io::pipe().map_err(host("open a pipe"))?;
        let mut command = plan.command();
        command.stdin(Stdio::null());
        command.stdout(child_output.try_clone().map_err(host("share a pipe"))?);
        command.stderr(child_output);
        child::confine(&mut command, plan, child_end);
        let spawned = command.spawn();
        // Our copies of the child's ends must go, or their readers never see an end.
        drop(command);
        let mut child = match spawned {
            Ok(child) => Guard(child),
            Err(source) => {
                return Err(match report.failed_step() {
                    Some(step) => ConfineError::Wall { step, source },
                    None => ConfineError::Start { program: self.argv[0].clone(), source },
                });
            }
        };
        let listener = report.listener().map_err(host("receive the proxy's socket"))?;
        self.attend(&mut child.0, listener, output, log, is_stopped)
    }

    fn attend(
        &self,
        child: &mut Child,
        listener: OwnedFd,
        output: io::PipeReader,
        log: &mut (dyn Write + Send),
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Outcome, ConfineError> {
        let proxy = proxy::Proxy::new(listener, self.endpoints);
        let tail = Mutex::new(String::new());
        let status = std::thread::scope(|scope| {
            scope.spawn(|| proxy.serve());
            scope.spawn(|| {
                *tail.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = self.drain(output, log)
            });
            let status = self.wait(child, is_stopped);
            proxy.close();
            status
        })?;
        let tail = tail.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        Ok(Outcome { status, tail, refused: proxy.refused() })
    }

    /// Waits for the end, or makes it at a limit.
    fn wait(&self, child: &mut Child, is_stopped: &dyn Fn() -> bool) -> Result<ExitStatus, ConfineError> {
        let deadline = Instant::now() + self.limits.time;
        let pid = rustix::process::Pid::from_child(child);
        let ended = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .map_err(|errno| host("watch a process")(errno.into()))?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let over = if is_stopped() {
                Some(ConfineError::Stopped)
            } else if left.is_zero() {
                Some(ConfineError::Time { limit: self.limits.time })
            } else if self.written() > self.limits.tree_bytes {
                Some(ConfineError::Size { limit: self.limits.tree_bytes })
            } else {
                None
            };
            if let Some(error) = over {
                end(child).map_err(host("end a process"))?;
                return Err(error);
            }
            let timeout = rustix::time::Timespec::try_from(left.min(TREE_CHECK)).ok();
            let mut fds = [rustix::event::PollFd::new(&ended, rustix::event::PollFlags::IN)];
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return child.wait().map_err(host("wait for a process")),
                Err(errno) => return Err(host("wait for a process")(errno.into())),
            }
        }
    }

    fn written(&self) -> u64 {
        self.folders.iter().map(|(folder, _)| files::size(folder)).sum()
    }

    /// Reads everything the program says, so that it never blocks; keeps what the limits allow.
    fn drain(&self, mut output: io::PipeReader, log: &mut (dyn Write + Send)) -> String {
        let mut tail: Vec<u8> = Vec::new();
        let mut room = self.limits.output_bytes;
        let mut buffer = [0; 8192];
        // A read error means that the other side is gone, as the end does.
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            let kept = room.min(count as u64) as usize;
            room -= kept as u64;
            // A log that cannot be written must not end the build; its end is reported by the status.
            let _ = log.write_all(&buffer[..kept]);
            tail.extend_from_slice(&buffer[..count]);
            if tail.len() > 2 * TAIL_BYTES {
                tail.drain(..tail.len() - TAIL_BYTES);
            }
        }
        String::from_utf8_lossy(&tail).into_owned()
    }
}

impl Outcome {
    /// How the program ended, in words.
    pub fn ending(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown status".to_owned(),
        }
    }
}

/// Ends the child when dropped, so that an error on the way leaves no process.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Already reaped after a normal end; then this does nothing.
        let _ = end(&mut self.0);
    }
}

fn end(child: &mut Child) -> io::Result<()> {
    if child.try_wait()?.is_none() {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

fn host(operation: &'static str) -> impl FnOnce(io::Error) -> ConfineError {
    move |source| ConfineError::Host { operation, source }
}
