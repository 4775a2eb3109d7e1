//! What the forked child does before it becomes the installer: a list of steps, in order, each a system call.
//!
//! The child was forked from a process with threads, so nothing here allocates, locks or panics: everything
//! that needs memory was made by [`Plan::new`].

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::{Gid, Uid, UnshareFlags};

use super::plan::{PROXY_PORT, Plan, User};

const LISTEN_BACKLOG: i32 = 128;

/// Arranges that `command` runs inside the wall that `plan` describes, telling through `report`.
pub(super) fn confine(command: &mut Command, plan: Plan, report: OwnedFd) {
    let enter = move || {
        let mut step = "start";
        enter(&plan, &report, &mut step).inspect_err(|_| {
            // Without it the error loses its step, nothing else.
            let _ = rustix::net::send(&report, step.as_bytes(), SendFlags::NOSIGNAL);
        })
    };
    // SAFETY: `enter` only makes system calls on memory prepared before the fork; it neither allocates nor
    // takes locks nor unwinds.
    unsafe { command.pre_exec(enter) };
}

/// Has the kernel kill what `command` starts when the thread that starts it ends.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have died before that was asked for.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    };
    // SAFETY: `ask` makes two system calls on memory of its own; neither allocates, locks or unwinds.
    unsafe { command.pre_exec(ask) };
}

fn enter(plan: &Plan, report: &OwnedFd, step: &mut &'static str) -> io::Result<()> {
    *step = "leave the session";
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;

    *step = "make namespaces";
    let mut namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS;
    if matches!(plan.user, User::Mapped { .. }) {
        namespaces |= UnshareFlags::NEWUSER;
    }
    // SAFETY: the file table, which is what makes unsharing unsafe, is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }?;
    if let User::Mapped { uid_map, gid_map, .. } = &plan.user {
        *step = "map the user";
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", uid_map)?;
        write_file(c"/proc/self/gid_map", gid_map)?;
    }

    *step = "fork into the process namespace";
    become_first_process()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;

    mounts(plan, step)?;

    *step = "raise the loopback interface";
    raise_loopback()?;
    *step = "pass the proxy's socket";
    pass_listener(report)?;

    *step = "change the root";
    rustix::process::chdir(&*plan.root)?;
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(&*plan.cwd)?;

    *step = "name the host";
    rustix::system::sethostname(b"casemate-build")?;

    *step = "limit resources";
    limits(plan)?;
    *step = "drop privileges";
    drop_privileges(plan)?;
    // Changing the user has cleared it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    *step = "close the host's files";
    close_on_exec()
}

/// Forks: the parent stays outside, waits, and ends as the child ends; the child returns as process 1.
fn become_first_process() -> io::Result<()> {
    // SAFETY: this process has one thread, and both sides go on making plain system calls only.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        // SAFETY: every call is async-signal-safe and takes valid arguments. All files are closed, so that
        // the pipes of the installer end with it.
        pid => unsafe {
            libc::syscall(libc::SYS_close_range, 0_u32, u32::MAX, 0_u32);
            let mut status = 0;
            while libc::waitpid(pid, &raw mut status, 0) == -1 && *libc::__errno_location() == libc::EINTR {}
            let code = if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                128 + libc::WTERMSIG(status)
            };
            libc::_exit(code)
        },
    }
}

fn mounts(plan: &Plan, step: &mut &'static str) -> io::Result<()> {
    *step = "separate the mounts";
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", private)?;

    *step = "mount the build root";
    rustix::mount::mount_bind(&*plan.root, &*plan.root)?;
    set_attributes(&plan.root, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)?;

    *step = "mount the folders";
    for (host, inside) in &plan.folders {
        rustix::mount::mount_bind(&**host, &**inside)?;
        // A folder of the root itself has just become read-only with it.
        change_attributes(inside, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, libc::MOUNT_ATTR_RDONLY)?;
    }

    *step = "mount /tmp and the home folder";
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(c"tmpfs", &*plan.tmp, c"tmpfs", safe, Some(c"size=512m,mode=1777"))?;
    rustix::mount::mount(c"tmpfs", &*plan.home, c"tmpfs", safe, Some(&*plan.home_options))?;

    *step = "mount /dev";
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount(c"tmpfs", &*plan.dev, c"tmpfs", plain, Some(c"size=64k,mode=0755"))?;
    for (host, inside) in &plan.devices {
        rustix::fs::openat(CWD, &**inside, OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
        rustix::mount::mount_bind(&**host, &**inside)?;
        set_attributes(inside, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
    }
    rustix::fs::mkdirat(CWD, &*plan.shm, Mode::from_raw_mode(0o777))?;
    rustix::mount::mount(c"tmpfs", &*plan.shm, c"tmpfs", safe, Some(c"size=64m,mode=1777"))?;
    set_attributes(&plan.dev, libc::MOUNT_ATTR_RDONLY)?;

    *step = "mount /proc";
    let flags = safe | MountFlags::NOEXEC;
    rustix::mount::mount(c"proc", &*plan.proc, c"proc", flags, None)?;
    // Without a user namespace its settings are the host's, and file permissions alone would guard them.
    set_attributes(&plan.proc, libc::MOUNT_ATTR_RDONLY)
}

fn set_attributes(path: &CStr, attributes: u64) -> io::Result<()> {
    change_attributes(path, attributes, 0)
}

/// Changes attributes of one mount. A remount would have to repeat those that an outer namespace has locked.
fn change_attributes(path: &CStr, set: u64, clear: u64) -> io::Result<()> {
    let wanted = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: path and structure live through the call, and the size is the structure's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn raise_loopback() -> io::Result<()> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: zeroes are a valid `ifreq`; the interface's name is shorter than its field.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the socket that the proxy outside accepts on, the only thing that leads out of this network.
fn pass_listener(report: &OwnedFd) -> io::Result<()> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, PROXY_PORT))?;
    rustix::net::listen(&socket, LISTEN_BACKLOG)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [socket.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(report, &[IoSlice::new(b"socket")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn limits(plan: &Plan) -> io::Result<()> {
    let limits = &plan.limits;
    for (resource, wanted) in [
        (Resource::Core, 0),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Data, limits.data_bytes),
        (Resource::Nproc, limits.processes),
        (Resource::Nofile, limits.open_files),
        (Resource::Cpu, limits.time.as_secs().saturating_mul(4)),
    ] {
        let hard = rustix::process::getrlimit(resource).maximum;
        let value = Some(hard.map_or(wanted, |hard| hard.min(wanted)));
        rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })?;
    }
    Ok(())
}

fn drop_privileges(plan: &Plan) -> io::Result<()> {
    for capability in 0..=63 {
        // SAFETY: takes numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            match io::Error::last_os_error() {
                // Past the last capability that this kernel knows.
                error if error.raw_os_error() == Some(libc::EINVAL) => break,
                error => return Err(error),
            }
        }
    }
    if let User::Unassigned(_) = plan.user {
        rustix::thread::set_thread_groups(&[])?;
    }
    let (uid, gid) = (Uid::from_raw(plan.user.id()), Gid::from_raw(plan.user.id()));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::clear_ambient_capability_set()?;
    let none = rustix::thread::CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn close_on_exec() -> io::Result<()> {
    // SAFETY: takes numbers only; marking files changes nothing before the exec.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn write_file(path: &CStr, content: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::io::write(&file, content)? == content.len() {
        return Ok(());
    }
    Err(io::ErrorKind::WriteZero.into())
}
