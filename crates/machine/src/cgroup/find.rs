//! Where this process is in the control group hierarchies: `/proc/self/cgroup` joined with
//! `/proc/self/mountinfo`.
//!
//! ```text
//! cgroup:     4:memory:/user/x                      0::/user.slice/session-1.scope
//! mountinfo:  35 31 0:32 ROOT POINT rw … - cgroup cgroup rw,memory     … - cgroup2 cgroup2 rw
//! ```
//!
//! A group is visible beneath a mount whose root is above it. In a cgroup namespace both paths begin at the
//! namespace's root; what lies outside of it begins with `/..`. See cgroups(7), cgroup_namespaces(7) and
//! proc_pid_mountinfo(5).

use super::{Controller, Unavailable};
use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

/// The interface of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// This process's own group in a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) version: Version,
    /// The uppermost group that can be seen.
    pub(super) top: PathBuf,
    /// The group itself, `top` or beneath it.
    pub(super) dir: PathBuf,
}

/// What the kernel says about this process's groups.
#[derive(Debug)]
pub(super) struct System {
    memberships: Vec<Membership>,
    mounts: Vec<Mount>,
}

#[derive(Debug)]
struct Membership {
    /// Empty for version 2.
    controllers: Vec<String>,
    path: PathBuf,
}

#[derive(Debug)]
struct Mount {
    version: Version,
    root: PathBuf,
    point: PathBuf,
    /// With the controllers, for version 1.
    options: Vec<String>,
}

impl System {
    /// Asks the kernel.
    pub(super) fn read() -> Result<Self, Unavailable> {
        let read = |path: &str| fs::read(path).map_err(Unavailable::io("read", Path::new(path)));
        Ok(Self::parse(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?))
    }

    /// Reads the texts of the two files; lines that are not understood are left out.
    pub(super) fn parse(cgroup: &[u8], mountinfo: &[u8]) -> Self {
        Self {
            memberships: cgroup.split(|&byte| byte == b'\n').filter_map(Membership::parse).collect(),
            mounts: mountinfo.split(|&byte| byte == b'\n').filter_map(Mount::parse).collect(),
        }
    }

    /// This process's group for a controller: of version 1 where that has it, else of version 2.
    pub(super) fn locate(&self, controller: Controller) -> Result<Place, Unavailable> {
        let name = controller.as_str();
        let old = self.memberships.iter().find(|member| member.controllers.iter().any(|c| c == name));
        let (member, version) = match old {
            Some(member) => (member, Version::V1),
            None => {
                let unified = self.memberships.iter().find(|member| member.controllers.is_empty());
                (unified.ok_or(Unavailable::NoHierarchy(controller))?, Version::V2)
            }
        };
        let mut fitting = self.mounts.iter().filter(|mount| match version {
            Version::V1 => mount.version == version && mount.options.iter().any(|option| option == name),
            Version::V2 => mount.version == version,
        });
        // What is mounted later may cover what was mounted before.
        if let Some(place) = fitting.clone().rev().find_map(|mount| mount.place(&member.path)) {
            return Ok(place);
        }
        Err(match fitting.next() {
            Some(_) => Unavailable::OutOfSight { controller, path: member.path.clone() },
            None => Unavailable::NoHierarchy(controller),
        })
    }
}

impl Membership {
    /// `4:memory:/path`, `0::/path`, `9:name=systemd:/path`.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let _number = fields.next()?;
        let controllers = std::str::from_utf8(fields.next()?).ok()?;
        let path = fields.next()?;
        Some(Self {
            controllers: controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            path: PathBuf::from(OsString::from_vec(path.to_vec())),
        })
    }
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let root = unescape(fields.nth(3)?);
        let point = unescape(fields.next()?);
        // Options and any number of tags, up to a dash.
        fields.find(|field| *field == b"-")?;
        let version = match fields.next()? {
            b"cgroup" => Version::V1,
            b"cgroup2" => Version::V2,
            _ => return None,
        };
        let options = std::str::from_utf8(fields.nth(1)?).ok()?;
        Some(Self { version, root, point, options: options.split(',').map(str::to_owned).collect() })
    }

    /// Where the group of that path is seen beneath this mount.
    fn place(&self, group: &Path) -> Option<Place> {
        let beneath = group.strip_prefix(&self.root).ok()?;
        let climbs = |path: &Path| path.components().any(|part| part == Component::ParentDir);
        if climbs(group) || climbs(&self.root) {
            return None;
        }
        let dir = if beneath.as_os_str().is_empty() { self.point.clone() } else { self.point.join(beneath) };
        Some(Place { version: self.version, top: self.point.clone(), dir })
    }
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(value as u8);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}
