//! The first steps of the first process of a machine.

use crate::{log, modules, sys};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::DumpableBehavior;
use rustix::system::RebootCommand;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

/// Kernel settings that take from servers what none needs.
const SETTINGS: &[(&str, &str)] = &[
    ("/proc/sys/user/max_user_namespaces", "0"),
    ("/proc/sys/kernel/dmesg_restrict", "1"),
    ("/proc/sys/kernel/kptr_restrict", "2"),
    ("/proc/sys/kernel/sysrq", "0"),
    ("/proc/sys/fs/protected_symlinks", "1"),
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_fifos", "2"),
    ("/proc/sys/fs/protected_regular", "2"),
    ("/proc/sys/fs/suid_dumpable", "0"),
];

/// The last that the kernel would kill: without the agent nothing could say what happened.
const AGENT_OOM_SCORE: &str = "-1000";

/// Why a machine cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("mount {kind} on {target}")]
pub struct BootError {
    kind: &'static str,
    target: &'static str,
    source: io::Error,
}

/// Mounts what the agent itself needs and loads the modules that every machine needs.
pub fn boot() -> Result<(), BootError> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("proc", "/proc", flags)?;
    mount("sysfs", "/sys", flags)?;
    mount("devtmpfs", "/dev", MountFlags::NOSUID)?;
    log::to_kernel();
    write(("/proc/self/oom_score_adj", AGENT_OOM_SCORE));
    modules::load(modules::BOOT);
    Ok(())
}

/// What an agent does first that shares its kernel: orphans of its children become its own, nobody reads its
/// memory, and its sockets are for its own user.
pub fn join() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    // Only an agent with privilege may; another is as likely to be killed as it is large.
    let _ = fs::write("/proc/self/oom_score_adj", AGENT_OOM_SCORE);
    Ok(())
}

/// Ends the machine. Returns only if the kernel refuses.
pub fn end() {
    rustix::fs::sync();
    // A virtual machine without a power switch ends by its reset, which its VMM does not follow by a start.
    if let Err(error) = rustix::system::reboot(RebootCommand::Restart) {
        log::warn(format_args!("end the machine: {error}"));
    }
}

/// What can wait until the host has been answered: kernel settings, control groups, loopback.
pub fn settle() {
    SETTINGS.iter().copied().for_each(write);
    if let Err(error) = mount("cgroup2", "/sys/fs/cgroup", MountFlags::NOSUID | MountFlags::NOEXEC) {
        log::warn(format_args!("{}", log::chain(&error)));
    }
    if let Err(error) = loopback_up() {
        log::warn(format_args!("bring up the loopback interface: {error}"));
    }
}

/// Brings up `lo`: servers talk to themselves by 127.0.0.1.
pub fn loopback_up() -> io::Result<()> {
    // Of a family that needs no network itself.
    sys::loopback_up(UnixDatagram::unbound()?.as_fd())
}

fn mount(kind: &'static str, target: &'static str, flags: MountFlags) -> Result<(), BootError> {
    let failed = |source: io::Error| BootError { kind, target, source };
    match fs::create_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    match rustix::mount::mount(kind, target, kind, flags, None) {
        // The kernel may have mounted devtmpfs itself.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}

fn write((path, value): (&str, &str)) {
    match fs::write(path, value) {
        // A kernel without the setting is without the feature.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn(format_args!("write {path}: {error}"))
        }
        _ => {}
    }
}
