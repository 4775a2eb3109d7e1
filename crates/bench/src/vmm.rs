//! A VMM with casemate's own options and nothing of casemate around it.
//!
//! The command line is read from a VMM that casemate runs. Each descriptor that it names is replaced by one
//! of the same kind: the same files, fresh memory of the same size, and sockets whose other ends are here.

mod arguments;

use crate::{
    casemate::Machine,
    failure::Failure,
    process::{self, Running},
};
use arguments::{console_of, descriptors_in, drop_unused_sets, renumber, set_of};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::{FdFlags, fcntl_setfd},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a guest may take to get to userspace, and then to its end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a descriptor on the command line is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A file, and whether it is opened for writing too.
    File { path: PathBuf, writable: bool },
    /// Anonymous memory of that many bytes.
    Memory { bytes: u64 },
    /// A socket.
    Socket,
}

/// A VMM's command line.
#[derive(Debug)]
pub struct Blueprint {
    program: PathBuf,
    arguments: Vec<String>,
    descriptors: BTreeMap<i32, Kind>,
}

impl Blueprint {
    /// Of the VMM of a machine that runs.
    pub fn of(machine: &Machine) -> Result<Self, Failure> {
        let pid = machine.pid.ok_or_else(|| Failure::Unavailable("the machine has no VMM".to_owned()))?;
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(proc.join("cmdline")).map_err(Failure::file("read", proc.join("cmdline")))?;
        let mut words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let program = PathBuf::from(words.next().unwrap_or_default());
        let mut arguments: Vec<String> = words.collect();
        // The list ends with a zero byte, not with an empty argument.
        arguments.pop();
        drop_unused_sets(&mut arguments);
        let mut descriptors = BTreeMap::new();
        for argument in &arguments {
            for number in descriptors_in(argument) {
                // QEMU has moved what it was given for a set, and the number is something else by now.
                let kind = if set_of(argument).is_some() { kvm() } else { kind(&proc, number)? };
                descriptors.insert(number, kind);
            }
        }
        Ok(Self { program, arguments, descriptors })
    }

    /// Boots a guest with another initramfs; gives the time from the spawn to the first byte of `marker` on
    /// its console, and to the end of the VMM.
    pub fn boot(&self, initramfs: &Path, marker: &[u8]) -> Result<(Duration, Duration), Failure> {
        let (mut numbers, mut kept, mut sockets) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        for (number, kind) in &self.descriptors {
            let fd = match kind {
                Kind::File { path, writable } => {
                    let opened = File::options().read(true).write(*writable).open(path);
                    OwnedFd::from(opened.map_err(Failure::file("open", path))?)
                }
                Kind::Memory { bytes } => {
                    let memory = memfd_create("casemate-bench", MemfdFlags::CLOEXEC)
                        .map_err(Failure::system("make the guest's memory"))?;
                    ftruncate(&memory, *bytes).map_err(Failure::system("size the guest's memory"))?;
                    memory
                }
                Kind::Socket => {
                    let (here, there) =
                        UnixStream::pair().map_err(Failure::system("make a socket of the VMM"))?;
                    sockets.insert(*number, here);
                    there.into()
                }
            };
            // Inherited by the VMM, which is the only process that starts while this is open.
            fcntl_setfd(&fd, FdFlags::empty()).map_err(Failure::system("hand on a descriptor"))?;
            numbers.insert(*number, fd.as_raw_fd());
            kept.push(fd);
        }
        let mut console = console_of(&self.arguments)
            .and_then(|number| sockets.remove(&number))
            .ok_or_else(|| Failure::Unavailable("the VMM's console is not a socket".to_owned()))?;
        console
            .set_read_timeout(Some(PATIENCE))
            .map_err(Failure::system("limit the wait for the console"))?;
        let mut command = Command::new(&self.program);
        command.args(self.arguments(initramfs, &numbers));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let spawned = Instant::now();
        let child = command
            .spawn()
            .map_err(|source| Failure::Start { program: self.program.display().to_string(), source })?;
        let mut vmm = Vmm { _running: Running::note(child.id()), child };
        drop(kept);
        let userspace = wait_for(&mut console, marker, spawned).map_err(|failure| vmm.explain(failure))?;
        console.read_to_end(&mut Vec::new()).map_err(Failure::system("read the console to its end"))?;
        vmm.child.wait().map_err(Failure::system("wait for the VMM"))?;
        Ok((userspace, spawned.elapsed()))
    }

    fn arguments(&self, initramfs: &Path, numbers: &BTreeMap<i32, i32>) -> Vec<String> {
        let mut arguments: Vec<String> =
            self.arguments.iter().map(|argument| renumber(argument, numbers)).collect();
        if let Some(at) = arguments.iter().position(|argument| argument == "-initrd")
            && let Some(value) = arguments.get_mut(at + 1)
        {
            *value = initramfs.display().to_string();
        }
        arguments
    }
}

/// A VMM that does not outlive its measurement.
struct Vmm {
    child: Child,
    _running: Running,
}

impl Vmm {
    /// What the VMM printed says more than what did not come of it.
    fn explain(&mut self, failure: Failure) -> Failure {
        let _ = self.child.kill();
        let mut said = Vec::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_end(&mut said);
        }
        if said.is_empty() {
            return failure;
        }
        Failure::Command {
            command: "bare QEMU".to_owned(),
            status: crate::failure::chain(&failure),
            said: process::tail(&said),
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail only if it was reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The only thing that is opened by the name of a set at the start of a machine.
fn kvm() -> Kind {
    Kind::File { path: PathBuf::from("/dev/kvm"), writable: true }
}

fn kind(proc: &Path, number: i32) -> Result<Kind, Failure> {
    let link = proc.join("fd").join(number.to_string());
    let target = fs::read_link(&link).map_err(Failure::file("read the link", &link))?;
    let text = target.to_string_lossy();
    if text.starts_with("socket:") {
        return Ok(Kind::Socket);
    }
    if text.starts_with("/memfd:") {
        let bytes = fs::metadata(&link).map_err(Failure::file("size", &link))?.len();
        return Ok(Kind::Memory { bytes });
    }
    let info = proc.join("fdinfo").join(number.to_string());
    let info = fs::read_to_string(&info).map_err(Failure::file("read", info))?;
    Ok(Kind::File { writable: is_writable(&info), path: target })
}

/// Whether `fdinfo` shows an access mode other than reading (the lowest octal digit of the flags).
fn is_writable(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default();
    !flags.trim().ends_with(['0', '4'])
}

/// Reads until the first byte of `marker` has come; when, counted from `spawned`.
fn wait_for(console: &mut impl Read, marker: &[u8], spawned: Instant) -> Result<Duration, Failure> {
    // The serial port gives a few bytes at a time: how many had come, and when.
    let (mut seen, mut part, mut arrivals) = (Vec::new(), [0; 4096], Vec::new());
    while spawned.elapsed() < PATIENCE {
        let read = match console.read(&mut part) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(source) => return Err(Failure::System { action: "read the console", source }),
        };
        seen.extend_from_slice(&part[..read]);
        arrivals.push((seen.len(), spawned.elapsed()));
        if let Some(at) = seen.windows(marker.len()).position(|window| window == marker) {
            let arrival = arrivals.iter().find(|(come, _)| *come > at);
            return Ok(arrival.map_or_else(|| spawned.elapsed(), |(_, when)| *when));
        }
    }
    Err(Failure::Guest { after: spawned.elapsed(), said: process::tail(&seen) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_tell_reading_from_writing() {
        assert!(!is_writable("pos:\t0\nflags:\t0100000\n"));
        assert!(is_writable("pos:\t0\nflags:\t0100002\n"));
        assert!(is_writable("flags:\t02000001\n"));
    }

    /// Gives one part at a time, and notes when it is asked for the last.
    struct Parts {
        left: Vec<&'static [u8]>,
        last_asked: Option<Instant>,
    }

    impl Read for Parts {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Some(part) = self.left.pop() else { return Ok(0) };
            if self.left.is_empty() {
                self.last_asked = Some(Instant::now());
            }
            buffer[..part.len()].copy_from_slice(part);
            Ok(part.len())
        }
    }

    #[test]
    fn the_clock_stops_at_the_first_byte_of_the_marker() {
        let spawned = Instant::now();
        let mut console = Parts { left: vec![b"space\n", b"a kernel's warning\nuser"], last_asked: None };
        let first = wait_for(&mut console, b"userspace\n", spawned).unwrap();
        assert!(spawned + first <= console.last_asked.unwrap());
    }

    #[test]
    fn what_only_begins_like_the_marker_does_not_stop_the_clock() {
        let spawned = Instant::now();
        let mut console = Parts { left: vec![b"userspace\n", b"useless us"], last_asked: None };
        let first = wait_for(&mut console, b"userspace\n", spawned).unwrap();
        assert!(spawned + first >= console.last_asked.unwrap());
    }

    #[test]
    fn a_console_that_ends_early_is_a_failure() {
        let mut console = Parts { left: vec![b"panic"], last_asked: None };
        assert!(matches!(wait_for(&mut console, b"userspace", Instant::now()), Err(Failure::Guest { .. })));
    }
}
