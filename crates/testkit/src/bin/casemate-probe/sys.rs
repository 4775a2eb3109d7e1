//! The two things that safe Rust cannot do: fork without exec, and fault.
#![allow(unsafe_code)]

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use std::io;

/// Starts a copy of this process that does nothing until it is killed, or until the calling thread ends.
pub fn fork_idle() -> io::Result<Pid> {
    let parent = getpid();
    // SAFETY: in the child, which is a copy of a process with several threads, only system calls follow: no
    // allocation, no lock, no destructor.
    match unsafe { libc::fork() } {
        0 => {
            let bound = set_parent_process_death_signal(Some(Signal::KILL));
            // If the parent ended before the signal was set, nobody would ever send it.
            if bound.is_ok() && getppid() == Some(parent) {
                loop {
                    rustix::event::pause();
                }
            }
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(1) }
        }
        child => Pid::from_raw(child).filter(|_| child > 0).ok_or_else(io::Error::last_os_error),
    }
}

/// Ends the process by SIGSEGV, if the system lets it have a page that nobody may write.
pub fn fault() {
    // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of this program.
    let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::empty(), MapFlags::PRIVATE) };
    if let Ok(page) = mapped {
        // SAFETY: the page belongs to no Rust object; the write is meant to fault, and does.
        unsafe { page.cast::<u8>().write_volatile(1) };
    }
}
