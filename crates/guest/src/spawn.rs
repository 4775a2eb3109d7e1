//! Starts programs behind the wall.

use crate::group::{Group, Groups};
use crate::reaper::Reaper;
use crate::sys;
use crate::wall::{Step, Wall};
use rustix::fs::OFlags;
use rustix::process::WaitStatus;
use std::collections::BTreeMap;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// Messages of 16 MiB go through in steps of this size; the kernel takes memory only for what is in a pipe.
const PIPE_BYTES: usize = 256 << 10;

/// A program that runs, and the agent's ends of its pipes.
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: i32,
    /// Its stdin.
    pub stdin: pipe::Sender,
    /// Its stdout.
    pub stdout: pipe::Receiver,
    /// Its stderr.
    pub stderr: pipe::Receiver,
    /// How it ended.
    pub status: oneshot::Receiver<WaitStatus>,
    /// It and everything that it started.
    pub group: Group,
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The command has no first word.
    #[error("start a program: the command is empty")]
    Empty,
    /// A pipe or a control group could not be made, or the process table is full.
    #[error("start {program}")]
    System {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The child could not be walled in.
    #[error("start {program}: {}", step.describe())]
    Wall {
        /// The program.
        program: String,
        /// What failed.
        step: Step,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No such program, or it cannot be executed.
    #[error("execute {program}")]
    Execute {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Starts `command` with exactly the environment `env` behind `wall`, whose control group is set here.
pub fn spawn(
    command: &[String],
    env: &BTreeMap<String, String>,
    mut wall: Wall,
    groups: &Arc<Groups>,
    reaper: &Reaper,
) -> Result<Child, SpawnError> {
    let (program, arguments) = command.split_first().ok_or(SpawnError::Empty)?;
    let failed = |source| SpawnError::System { program: program.clone(), source };
    let (group, join) = groups.prepare().map_err(failed)?;
    wall.cgroup = join;
    let (child_stdin, stdin) = io::pipe().map_err(failed)?;
    let (stdout, child_stdout) = io::pipe().map_err(failed)?;
    let (stderr, child_stderr) = io::pipe().map_err(failed)?;
    for written in [&stdin, &child_stdout] {
        // Where it is refused, pipes are smaller and slower and nothing else.
        let _ = rustix::pipe::fcntl_setpipe_size(written, PIPE_BYTES);
    }
    let (mut report, report_in_child) = io::pipe().map_err(failed)?;
    let report_in_child = OwnedFd::from(report_in_child);

    let mut starting = Command::new(program);
    starting.args(arguments).env_clear().envs(env);
    starting.stdin(Stdio::from(child_stdin)).stdout(child_stdout).stderr(child_stderr);
    sys::before_exec(&mut starting, move || wall.raise(&report_in_child));
    let started = starting.spawn();
    // Closes the agent's copies of the child's ends; the report ends when the child has executed or failed.
    drop(starting);

    let child = started.map_err(|source| {
        let mut number = [0];
        let step = match report.read(&mut number) {
            Ok(1) => Step::from_byte(number[0]),
            _ => None,
        };
        let program = program.clone();
        match step {
            Some(step) => SpawnError::Wall { program, step, source },
            None if source.raw_os_error() == Some(libc::EAGAIN) => SpawnError::System { program, source },
            None => SpawnError::Execute { program, source },
        }
    })?;
    let pid = child.id() as i32;
    let status = reaper.expect(pid);
    let group = group.lead(pid);
    let pipes = (|| Ok((sender(stdin)?, receiver(stdout)?, receiver(stderr)?)))();
    let (stdin, stdout, stderr) = pipes.map_err(|source| {
        // Nothing will ever read from it.
        let _ = group.signal(libc::SIGKILL);
        failed(source)
    })?;
    Ok(Child { pid, stdin, stdout, stderr, status, group })
}

fn sender(end: PipeWriter) -> io::Result<pipe::Sender> {
    rustix::fs::fcntl_setfl(&end, OFlags::NONBLOCK)?;
    pipe::Sender::from_owned_fd(end.into())
}

fn receiver(end: PipeReader) -> io::Result<pipe::Receiver> {
    rustix::fs::fcntl_setfl(&end, OFlags::NONBLOCK)?;
    pipe::Receiver::from_owned_fd(end.into())
}
