//! Everything about a confined start that needs memory or can be refused, made before the fork.

use std::ffi::{CString, NulError};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use super::{Confinement, Limits};

/// Where the proxy listens inside; the network namespace is the program's own.
pub(super) const PROXY_PORT: u16 = 3128;

/// The user of confined programs where casemate is root: unassigned on Debian and by systemd's table.
pub(super) const BUILD_UID: u32 = 65533;

/// The only devices that a confined program has.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// The longest name of a step.
const STEP_BYTES: usize = 128;

/// What the forked child does, ready as system calls take it.
pub(super) struct Plan {
    pub(super) root: CString,
    /// Folders of the host and where they are bound, below `root`.
    pub(super) folders: Vec<(CString, CString)>,
    /// Devices of the host and where they are bound, below `root`.
    pub(super) devices: Vec<(CString, CString)>,
    pub(super) proc: CString,
    pub(super) dev: CString,
    pub(super) shm: CString,
    pub(super) tmp: CString,
    pub(super) home: CString,
    pub(super) home_options: CString,
    pub(super) cwd: CString,
    pub(super) user: User,
    pub(super) limits: Limits,
    argv: Vec<String>,
    env: Vec<(String, String)>,
}

/// Who the confined program is.
pub(super) enum User {
    /// Casemate is root: an unassigned user of the host.
    Unassigned(u32),
    /// Casemate is an ordinary user: itself, under the only id that exists in a user namespace.
    Mapped { inside: u32, uid_map: Vec<u8>, gid_map: Vec<u8> },
}

impl User {
    pub(super) fn current() -> User {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() {
            return User::Unassigned(BUILD_UID);
        }
        let map = |outside: u32| format!("{BUILD_UID} {outside} 1\n").into_bytes();
        User::Mapped { inside: BUILD_UID, uid_map: map(uid.as_raw()), gid_map: map(gid.as_raw()) }
    }

    pub(super) fn id(&self) -> u32 {
        match self {
            User::Unassigned(id) | User::Mapped { inside: id, .. } => *id,
        }
    }
}

impl Plan {
    pub(super) fn new(confinement: &Confinement<'_>) -> Result<Plan, NulError> {
        let user = User::current();
        let below = |inside: &str| c_path(&confinement.root.join(inside.trim_start_matches('/')));
        let mut folders = Vec::new();
        for (host, inside) in confinement.folders {
            folders.push((c_path(host)?, below(inside)?));
        }
        let mut devices = Vec::new();
        for name in DEVICES {
            devices.push((CString::new(format!("/dev/{name}"))?, below(&format!("dev/{name}"))?));
        }
        let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
        let fixed = [
            ("HOME", "/home/casemate"),
            ("PATH", "/usr/bin:/bin"),
            ("LANG", "C.UTF-8"),
            ("TMPDIR", "/tmp"),
            ("HTTP_PROXY", &proxy),
            ("HTTPS_PROXY", &proxy),
            ("http_proxy", &proxy),
            ("https_proxy", &proxy),
        ];
        let mut env: Vec<_> = fixed.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        env.extend_from_slice(confinement.env);
        Ok(Plan {
            root: c_path(confinement.root)?,
            folders,
            devices,
            proc: below("proc")?,
            dev: below("dev")?,
            shm: below("dev/shm")?,
            tmp: below("tmp")?,
            home: below("home/casemate")?,
            home_options: CString::new(format!("size=16m,mode=0700,uid={0},gid={0}", user.id()))?,
            cwd: CString::new(confinement.cwd)?,
            user,
            limits: confinement.limits,
            argv: confinement.argv.to_vec(),
            env,
        })
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).env_clear().envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }
}

fn c_path(path: &Path) -> Result<CString, NulError> {
    CString::new(path.as_os_str().as_bytes())
}

/// Our end of the channel on which the child says which step failed, or passes the proxy's socket.
pub(super) struct Report(OwnedFd);

/// Makes the channel: our end, and the child's.
pub(super) fn channel() -> io::Result<(Report, OwnedFd)> {
    let (ours, childs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Report(ours), childs))
}

impl Report {
    /// The step that failed, if one did. To be asked when the child has ended.
    pub(super) fn failed_step(&self) -> Option<String> {
        while let Ok((text, socket)) = self.receive() {
            match (socket, text.is_empty()) {
                (Some(_), _) => {}
                (None, false) => return Some(text),
                (None, true) => return None,
            }
        }
        None
    }

    /// The socket that the proxy accepts on. To be asked when the child has executed its program.
    pub(super) fn listener(&self) -> io::Result<OwnedFd> {
        self.receive()?.1.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn receive(&self) -> io::Result<(String, Option<OwnedFd>)> {
        let mut text = [0; STEP_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut control, flags)?;
        let socket = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((String::from_utf8_lossy(&text[..received.bytes]).into_owned(), socket))
    }
}
