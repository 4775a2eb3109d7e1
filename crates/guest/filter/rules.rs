//! The system calls that a server may not make, compiled while the agent is built: in emulation compiling them
//! in every machine took 5 ms.
//!
//! A list of what is denied rather than of what is allowed: servers are arbitrary programs of arbitrary
//! runtimes, and the wall around them is the machine. The list keeps them from the parts of the kernel that
//! no MCP server needs and most exploits of the kernel begin with.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use std::collections::BTreeMap;

/// Denied whatever the arguments, with `EPERM`.
const DENIED: &[libc::c_long] = &[
    // File systems and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_fanotify_init,
    // Other processes, namespaces.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The clock.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
];

#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[libc::c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[libc::c_long] = &[];

/// Said not to exist (`ENOSYS`), so that runtimes take their older way: the C library tries `clone3`, whose
/// flags no filter can read, before `clone`; libuv tries io_uring before its threads.
const ABSENT: &[libc::c_long] =
    &[libc::SYS_clone3, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Flags of `clone` that make a namespace. (A new time namespace can be asked of `clone3` and `unshare` only.)
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// What `personality` is called with to ask rather than to change.
const PERSONALITY_QUERY: u64 = 0xffff_ffff;

/// The programs, the one that the kernel is to run first last. System calls of another architecture, such as
/// 32-bit calls on a 64-bit kernel, kill the caller.
pub fn programs() -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let denied = program(denials()?, libc::EPERM)?;
    let absent = program(ABSENT.iter().map(|&call| (call, Vec::new())).collect(), libc::ENOSYS)?;
    Ok([no_x32(), absent, denied])
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn denials() -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let mut rules: Rules = DENIED.iter().chain(DENIED_HERE).map(|&call| (call, Vec::new())).collect();
    let namespaces = NAMESPACES.iter().map(|&flag| rule(&[(0, MaskedEq(flag as u64), flag as u64)]));
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_personality, vec![rule(&[(0, Ne, PERSONALITY_QUERY)])?]);
    let local = libc::AF_UNIX as u64;
    let netlink = libc::AF_NETLINK as u64;
    rules.insert(
        libc::SYS_socket,
        vec![
            rule(&[
                (0, Ne, local),
                (0, Ne, libc::AF_INET as u64),
                (0, Ne, libc::AF_INET6 as u64),
                (0, Ne, netlink),
            ])?,
            // Runtimes list the network interfaces by it; the other protocols are for administration.
            rule(&[(0, Eq, netlink), (2, Ne, libc::NETLINK_ROUTE as u64)])?,
        ],
    );
    rules.insert(libc::SYS_socketpair, vec![rule(&[(0, Ne, local)])?]);
    Ok(rules)
}

/// All conditions on (argument, comparison, value) must hold; the kernel reads these arguments as 32 bits.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions.iter().map(|(argument, comparison, value)| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, comparison.clone(), *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

fn program(rules: Rules, errno: libc::c_int) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)?.try_into()
}

/// The x32 calls of an x86-64 kernel are the same calls under other numbers, which the lists do not name.
fn no_x32() -> BpfProgram {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const X32_BIT: u32 = 0x4000_0000;
    vec![
        sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32_BIT },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ]
}
