//! System calls that have no safe wrapper. Everything `unsafe` of this crate is here.
#![allow(unsafe_code)]

use rustix::thread::UnshareFlags;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `_IOW('R', 0x03, int[2])` of `linux/random.h`.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `_IO('R', 0x07)` of `linux/random.h`.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Mixes 32 bytes into the kernel's pool, credits them as random, and has its generator use them at once.
pub fn add_entropy(random: BorrowedFd<'_>, bytes: [u8; 32]) -> io::Result<()> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        bytes: libc::c_int,
        buffer: [u8; 32],
    }
    let info = PoolInfo { entropy_bits: 256, bytes: 32, buffer: bytes };
    // SAFETY: `info` is a `struct rand_pool_info` with as many bytes of buffer as it says, alive over the call.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &info) })?;
    // SAFETY: this request takes no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })
}

/// Brings the loopback interface up, if it is not; `socket` is any socket of the internet family.
pub fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    // SAFETY: `request` is an `ifreq` with a terminated name, alive over the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = flags | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    if up == flags {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = up;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })
}

/// Sends a signal, by number, to a process group.
pub fn signal_group(leader: i32, signal: i32) -> io::Result<()> {
    debug_assert!(leader > 1, "0 and 1 would name the agent's own group and everybody");
    // SAFETY: `kill` touches no memory of this process.
    check(unsafe { libc::kill(-leader, signal) })
}

/// Sends a signal, by number, to one process.
pub fn signal_process(pid: i32, signal: i32) -> io::Result<()> {
    debug_assert!(pid > 1);
    // SAFETY: `kill` touches no memory of this process.
    check(unsafe { libc::kill(pid, signal) })
}

/// Kills everything but the caller; only for the first process of a process namespace.
pub fn kill_everything_else() {
    debug_assert_eq!(std::process::id(), 1);
    // SAFETY: `kill` touches no memory of this process. It fails only if nothing else exists.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Marks every descriptor from `first` up to be closed by the next `exec`.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call changes flags of descriptors and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result as libc::c_int)
}

/// Runs `steps` in the child, after `fork` and before `exec`.
///
/// The agent has one thread, so nobody else can hold a lock in the child; `steps` still should not allocate
/// more than it must.
pub fn before_exec(command: &mut Command, steps: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: the process has one thread, so the child's copy of every lock is free or held by the forking
    // thread itself; `steps` makes system calls and owns everything that it uses.
    unsafe { command.pre_exec(steps) };
}

/// Gives the calling thread a copy of its mount namespace.
pub fn leave_mount_namespace() -> io::Result<()> {
    // SAFETY: a new mount namespace closes no descriptor and shares no memory less.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?)
}

/// The size of a page of memory.
pub fn page_bytes() -> u64 {
    // SAFETY: the call reads a constant of the system. It cannot fail for this name.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// Waits for a descriptor to become readable, by the runtime.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is valid and names the same file until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
