//! System calls that have no safe wrapper. Everything `unsafe` of this crate is here.
#![allow(unsafe_code)]

use rustix::thread::UnshareFlags;
use std::io;
use std::net::Ipv4Addr;
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

/// Brings the loopback interface up, if it is not; `socket` is any socket.
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

/// Gives the loopback interface a further address, and with it the network that such an address has by its
/// class; `socket` is one of IPv4.
pub fn loopback_address(socket: BorrowedFd<'_>, address: Ipv4Addr) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo:1") {
        *to = *from as libc::c_char;
    }
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of one size, and this is what the one is made for.
    request.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    // SAFETY: `request` is an `ifreq` with a terminated name, alive over the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, &request) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::process::Stdio;

    /// Calls with arguments that do no harm if they pass, with the error that the filter gives; the flag says
    /// that an unprivileged caller gets another answer, or none, from a kernel without the filter.
    const CALLS: &[(&str, libc::c_long, [i64; 3], i32, bool)] = &[
        ("ptrace", libc::SYS_ptrace, [libc::PTRACE_TRACEME as i64, 0, 0], libc::EPERM, true),
        ("unshare of nothing", libc::SYS_unshare, [0, 0, 0], libc::EPERM, true),
        ("process_vm_readv", libc::SYS_process_vm_readv, [0, 0, 0], libc::EPERM, true),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [-1, 0, 0], libc::EPERM, true),
        ("setns", libc::SYS_setns, [-1, 0, 0], libc::EPERM, true),
        ("keyctl", libc::SYS_keyctl, [-1, 0, 0], libc::EPERM, true),
        ("add_key", libc::SYS_add_key, [0, 0, 0], libc::EPERM, true),
        ("move_mount", libc::SYS_move_mount, [-1, 0, -1], libc::EPERM, false),
        ("mount", libc::SYS_mount, [1, 1, 1], libc::EPERM, false),
        ("umount2", libc::SYS_umount2, [1, 0, 0], libc::EPERM, false),
        ("bpf", libc::SYS_bpf, [-1, 0, 0], libc::EPERM, false),
        ("reboot", libc::SYS_reboot, [0, 0, 0], libc::EPERM, false),
        ("finit_module", libc::SYS_finit_module, [-1, 0, 0], libc::EPERM, false),
        ("settimeofday", libc::SYS_settimeofday, [1, 1, 0], libc::EPERM, false),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0], libc::EPERM, false),
        ("personality", libc::SYS_personality, [0x004_0000, 0, 0], libc::EPERM, true),
        ("socket of AF_VSOCK", libc::SYS_socket, [libc::AF_VSOCK as i64, -1, 0], libc::EPERM, true),
        ("socket of AF_PACKET", libc::SYS_socket, [libc::AF_PACKET as i64, -1, 0], libc::EPERM, true),
        ("netlink of audit", libc::SYS_socket, [libc::AF_NETLINK as i64, -1, 9], libc::EPERM, true),
        (
            "clone into a namespace",
            libc::SYS_clone,
            [CLONE_NONSENSE | libc::CLONE_NEWUSER as i64, 0, 0],
            libc::EPERM,
            true,
        ),
        ("clone3", libc::SYS_clone3, [0, 0, 0], libc::ENOSYS, true),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0], libc::ENOSYS, false),
        ("io_uring_enter", libc::SYS_io_uring_enter, [-1, 0, 0], libc::ENOSYS, false),
    ];

    /// Flags that the kernel always refuses together, so that no process is made.
    const CLONE_NONSENSE: i64 = (libc::CLONE_SIGHAND | libc::CLONE_THREAD) as i64;

    /// Calls that have to pass the filter.
    const PASS: &[(&str, libc::c_long, [i64; 3])] = &[
        ("personality, asked", libc::SYS_personality, [0xffff_ffff, 0, 0]),
        ("netlink of routes", libc::SYS_socket, [libc::AF_NETLINK as i64, libc::SOCK_RAW as i64, 0]),
        ("unix socket", libc::SYS_socket, [libc::AF_UNIX as i64, libc::SOCK_STREAM as i64, 0]),
        ("internet socket", libc::SYS_socket, [libc::AF_INET6 as i64, libc::SOCK_STREAM as i64, 0]),
        ("eventfd", libc::SYS_eventfd2, [0, 0, 0]),
    ];

    /// The error of each call in a child, 0 if it succeeded.
    fn errors(calls: Vec<(libc::c_long, [i64; 3])>, filtered: bool) -> Vec<i32> {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("true");
        command.stdin(Stdio::null());
        let writer = OwnedFd::from(writer);
        before_exec(&mut command, move || {
            if filtered {
                filter::install()?;
            }
            for (number, arguments) in &calls {
                let [a, b, c] = *arguments;
                // SAFETY: every call of the tables fails on its arguments or changes this child alone.
                let result = unsafe { libc::syscall(*number, a, b, c, 0i64, 0i64, 0i64) };
                let error =
                    if result == -1 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 };
                rustix::io::write(writer.as_fd(), &error.to_ne_bytes())?;
            }
            Ok(())
        });
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        child.wait().unwrap();
        bytes.chunks_exact(4).map(|error| i32::from_ne_bytes(error.try_into().unwrap())).collect()
    }

    #[test]
    fn forbidden_calls_reach_the_kernel_without_the_filter_and_not_with_it() {
        let calls: Vec<_> = CALLS.iter().map(|&(_, number, arguments, ..)| (number, arguments)).collect();
        let without = errors(calls.clone(), false);
        let with = errors(calls, true);
        assert_eq!((without.len(), with.len()), (CALLS.len(), CALLS.len()));
        let privileged = rustix::process::geteuid().is_root();
        for (&(name, _, _, expected, anybody), (without, with)) in
            CALLS.iter().zip(without.into_iter().zip(with))
        {
            assert_eq!(with, expected, "{name} with the filter");
            if anybody || privileged {
                assert_ne!(without, expected, "{name} without the filter");
            }
        }
    }

    #[test]
    fn other_calls_pass_the_filter() {
        let calls = PASS.iter().map(|&(_, number, arguments)| (number, arguments)).collect();
        let errors = errors(calls, true);
        assert_eq!(errors.len(), PASS.len());
        for (&(name, ..), error) in PASS.iter().zip(errors) {
            assert_eq!(error, 0, "{name}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn calls_by_their_x32_numbers_do_not_exist() {
        const X32: libc::c_long = 0x4000_0000;
        let calls = vec![(X32 | libc::SYS_getpid, [0; 3])];
        assert_eq!(errors(calls, true), [libc::ENOSYS]);
    }
}
