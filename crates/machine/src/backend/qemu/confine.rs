//! The wall around the VMM: what a guest that takes it over finds.
//!
//! | attack | barrier |
//! | --- | --- |
//! | read the home, other users' files | a user id of its own (root), Landlock (everybody) |
//! | write the image, kernel, initramfs | descriptors opened for reading; Landlock; owner is another user |
//! | reach another machine's socket, or signal or trace another VMM | user ids differ; folders are 0700 |
//! | reach the network | a network namespace without devices (root), Landlock (everybody) |
//! | start programs, gain privileges | QEMU's own seccomp filter, no-new-privileges |
//! | use up the host's memory, processors, threads | a control group of its own, see [`cgroup`](crate::cgroup) |
//! | fill the host's disk through a volume | no file grows beyond the largest that it is given |
//! | let go of a volume that it still writes to | the system call that would is refused |
//! | outlive its supervisor | a death signal, set after the user changed |

use super::BackendError;
use crate::{home::Home, sys};
use casemate_proto::ids::Cid;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};
use rustix::{
    fs::{FileType, Gid, Uid, fstat},
    process::{Resource, Rlimit, Signal},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    process::Command,
};

/// The first user id for VMMs: above what distributions, containers and directory services assign
/// (systemd's "Users, Groups, UIDs and GIDs" lists 1879048192 to 2147483647 as unused).
const FIRST_UID: u32 = 0x7000_0000;

/// What every dynamically linked VMM reads.
const READABLE: [&str; 6] = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/ld.so.preload"];

/// How large each of its files may become, however small they are: the state of devices is written behind the last
/// one, which is never longer than 1 MiB.
const LEAST_FILE_BYTES: u64 = 64 << 20;

/// Devices that the VMM may open.
const DEVICES: [&str; 1] = ["/dev/null"];

/// The user id of a machine's VMM, if casemate is root and can give it one: distinct for every live machine
/// of a home, and almost certainly for those of different homes.
pub fn vmm_uid(home: &Home, cid: Cid) -> Option<u32> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    // FNV-1a; which hash it is does not matter, that it is stable does.
    let hash = home.path().as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let sixteen = ((hash ^ (hash >> 32)) & 0xffff) as u32;
    Some(FIRST_UID + (sixteen << 12 | cid.0 & 0xfff))
}

/// The confinement of one VMM.
#[derive(Debug)]
pub struct Confinement {
    /// The user to become, where casemate is root.
    pub uid: Option<u32>,
    /// Whether it is to do without the huge pages that QEMU asks for: of translated code, and of what the host
    /// keeps of it, they take 3 MiB more in each of many machines, and make its start a hundredth faster.
    pub without_huge_pages: bool,
    /// Opened files that the VMM may open again, read-only, by their `/proc/self/fd` path.
    pub readable: Vec<File>,
    /// Descriptors that the VMM inherits under the same numbers, `readable` among them.
    pub inherit: Vec<OwnedFd>,
}

impl Confinement {
    /// Confines what `command` will execute.
    pub fn apply(self, command: &mut Command) -> Result<(), BackendError> {
        let mut rules = Some(self.rules().map_err(|error| BackendError::System {
            action: "confine the VMM with Landlock (run casemate as root, or on a kernel with Landlock: 5.13 or later)",
            source: io::Error::other(error),
        })?);
        let file_bytes = self.file_bytes().map_err(BackendError::system("look at the VMM's files"))?;
        let filter =
            filter().map_err(BackendError::system("confine the VMM with a filter of system calls"))?;
        let parent = rustix::process::getpid();
        // One heap for all threads of the VMM, mallopt(3): each of its own would stay half empty.
        command.env_clear().env("MALLOC_ARENA_MAX", "1").current_dir("/");
        sys::before_exec(command, move || {
            for fd in &self.inherit {
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            for file in &self.readable {
                rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())?;
            }
            if self.without_huge_pages {
                // A kernel that has none has none to give.
                let _ = rustix::thread::disable_transparent_huge_pages(true);
            }
            for (resource, most) in [(Resource::Core, 0), (Resource::Fsize, file_bytes)] {
                rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
            }
            if let Some(uid) = self.uid {
                sys::leave_namespaces()?;
                become_user(uid)?;
            }
            rustix::thread::set_no_new_privs(true)?;
            if let Some(rules) = rules.take() {
                rules.restrict_self().map_err(io::Error::other)?;
            }
            seccompiler::apply_filter(&filter).map_err(refused)?;
            // After the change of user, which clears it.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::other("supervisor is gone"));
            }
            Ok(())
        });
        Ok(())
    }

    /// The size of the largest file that the VMM may write: none of them ever becomes larger. Memory that it maps is
    /// not meant by the limit.
    fn file_bytes(&self) -> io::Result<u64> {
        let mut most = LEAST_FILE_BYTES;
        for fd in &self.inherit {
            let stat = fstat(fd)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                most = most.max(stat.st_size.unsigned_abs());
            }
        }
        // Only root can give it more than this process has.
        let own = rustix::process::getrlimit(Resource::Fsize).maximum;
        Ok(own.map_or(most, |own| own.min(most)))
    }

    fn rules(&self) -> Result<RulesetCreated, landlock::RulesetError> {
        // Older kernels know fewer of these rights; what they know is enforced.
        let abi = ABI::V6;
        let mut rules = Ruleset::default();
        if self.uid.is_none() {
            // Without a user of its own the VMM has no other wall around the user's files.
            rules = rules
                .set_compatibility(CompatLevel::HardRequirement)
                .handle_access(AccessFs::from_all(ABI::V1))?;
        }
        let mut rules = rules
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?;
        let read = AccessFs::from_read(abi);
        for path in READABLE.iter().filter(|path| Path::new(path).exists()) {
            if let Ok(fd) = PathFd::new(path) {
                rules = rules.add_rule(PathBeneath::new(fd, read))?;
            }
        }
        for device in DEVICES {
            if let Ok(fd) = PathFd::new(device) {
                rules = rules.add_rule(PathBeneath::new(fd, AccessFs::from_file(abi)))?;
            }
        }
        for file in &self.readable {
            rules = rules.add_rule(PathBeneath::new(file, AccessFs::ReadFile))?;
        }
        Ok(rules)
    }
}

/// The system calls that QEMU never needs and its own filter lets through.
///
/// A volume's lock is that of the opened file, which the VMM shares with its supervisor: it is free when both have
/// closed it, or when either says so.
fn filter() -> io::Result<BpfProgram> {
    let denied = BTreeMap::from([(libc::SYS_flock, Vec::new())]);
    let deny = SeccompAction::Errno(libc::EPERM as u32);
    let compiled = || {
        let arch = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(denied, SeccompAction::Allow, deny, arch)?.try_into()
    };
    compiled().map_err(|error: seccompiler::BackendError| io::Error::other(error))
}

fn refused(error: seccompiler::Error) -> io::Error {
    match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        error => io::Error::other(error),
    }
}

/// Gives up root for good. Only for a child before exec: it changes this thread alone.
fn become_user(uid: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_one_home_get_distinct_users() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let uids: std::collections::BTreeSet<_> =
            Cid::candidates().take(1000).filter_map(|cid| vmm_uid(&home, cid)).collect();
        let expected = if rustix::process::geteuid().is_root() { 1000 } else { 0 };
        assert_eq!(uids.len(), expected);
        assert!(uids.iter().all(|uid| (FIRST_UID..=0x7fff_ffff).contains(uid)));
    }
}
