//! The room for system calls that Rust cannot check.
#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    time::Instant,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Has `setup` run in the child between fork and exec.
///
/// In a child of a program with threads `setup` may only make system calls; in a child of a supervisor,
/// which has one thread, it may also allocate: no lock can have been left behind by another thread.
pub(crate) fn before_exec(
    command: &mut Command,
    setup: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: `setup` owns what it uses, and keeps to what the documentation above demands of it.
    unsafe { command.pre_exec(setup) };
}

/// Takes a descriptor that the parent process left open under a known number.
///
/// Fails where that number is not open. To be called once for each number, at the start of the program.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a number that is not open fails and touches nothing.
    let probe = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(probe, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: the number is open, and nothing else in this program owns it: it was passed by the parent
    // for this purpose and this function is called once for it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has the runtime watch what can be read from a descriptor, and its hang-up.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is valid and names the same file until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Closes every descriptor from 3 up but those in `keep`: what the program that started this one left open is
/// not for a machine. To be called at the start of the program, before anything else is opened.
pub(crate) fn close_foreign(keep: &[RawFd]) -> io::Result<()> {
    let listed: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2 && !keep.contains(number))
        .collect();
    // The folder itself is listed and closed already.
    listed.into_iter().filter_map(|number| inherited(number).ok()).for_each(drop);
    Ok(())
}

/// Keeps every descriptor from 3 up from the programs that this one starts: what the caller of a command left
/// open is neither for an installer nor for a machine.
pub fn seal_descriptors() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if number > 2 {
            // SAFETY: a number that is not open any more fails and touches nothing.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
        }
    }
    Ok(())
}

/// Gives back the memory of this program's own code and constants; what is needed again comes from the file.
/// For a process that will wait for long.
pub(crate) fn page_out_program() -> io::Result<()> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for line in maps.lines().filter(|line| line.ends_with(&*program.to_string_lossy())) {
        let number = |text: &str| usize::from_str_radix(text, 16).ok();
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let Some((Some(first), Some(last))) = range.map(|(a, b)| (number(a), number(b))) else { continue };
        // SAFETY: this advice changes no content: a page is read again from its file, or from swap.
        let advised = unsafe {
            rustix::mm::madvise(
                std::ptr::with_exposed_provenance_mut(first),
                last.saturating_sub(first),
                rustix::mm::Advice::LinuxPageOut,
            )
        };
        advised?;
    }
    Ok(())
}

/// Leaves the host's network, IPC and host name namespaces.
pub(crate) fn leave_namespaces() -> io::Result<()> {
    use rustix::thread::UnshareFlags;
    let flags = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: none of these namespaces concerns descriptors or memory of this process.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// The processor's time stamp counter and the clock, read as close to each other as can be had.
pub(crate) fn tsc_and_clock() -> (u64, Instant) {
    let mut best: Option<(u64, u64, Instant)> = None;
    for _ in 0..16 {
        // SAFETY: every x86-64 processor has the instruction, and a process may use it unless it asked
        // not to (PR_SET_TSC), which this one does not.
        let read = || unsafe { core::arch::x86_64::_rdtsc() };
        let before = read();
        let clock = Instant::now();
        let after = read();
        let width = after.saturating_sub(before);
        if best.is_none_or(|(narrowest, ..)| width < narrowest) {
            best = Some((width, before + width / 2, clock));
        }
    }
    best.map_or_else(|| (0, Instant::now()), |(_, tsc, clock)| (tsc, clock))
}
