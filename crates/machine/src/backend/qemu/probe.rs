//! Which QEMU is installed, and whether it is new enough.

use super::super::BackendError;
use casemate_image::helper::{self, Bounds};
use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::Command,
    time::Duration,
};

const PROGRAM: &str = "qemu-system-x86_64";
const REMEDY: &str =
    "install QEMU 8.2 or later (Debian 12: apt-get install -t bookworm-backports qemu-system-x86)";

/// The first version whose memory files can be kept unwritable for the VMM.
pub const OLDEST: Version = Version { major: 8, minor: 2 };

/// What asking QEMU for its version may take, on a host that is busy.
const VERSION_BOUNDS: Bounds = Bounds { time: Duration::from_secs(10), output: 64 << 10 };

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl Version {
    /// Refuses a version that is too old.
    pub(crate) fn check(self) -> Result<(), BackendError> {
        if self >= OLDEST {
            return Ok(());
        }
        let found = format!("{}.{}", self.major, self.minor);
        Err(BackendError::TooOld { program: "QEMU", found, needed: "8.2", remedy: REMEDY })
    }

    /// Reads `QEMU emulator version 10.0.2 (Debian …)`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_once(" version ")?.1.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

/// Finds QEMU on `PATH`.
pub fn find() -> Result<PathBuf, BackendError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(PROGRAM))
        .find(|program| {
            std::fs::metadata(program)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
        .ok_or(BackendError::Missing { program: PROGRAM, remedy: REMEDY })
}

/// Which build of QEMU is installed: asking it for its version would take as long as a restore.
pub(crate) fn build() -> Result<String, BackendError> {
    let path = find()?;
    let meta = std::fs::metadata(&path);
    let meta = meta.map_err(|source| BackendError::Open { what: "QEMU", path: path.clone(), source })?;
    Ok(format!(
        "{} of {} bytes, changed at {}.{}",
        path.display(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    ))
}

/// The processor of this host, as far as a guest under KVM sees it.
pub(crate) fn host_cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // Of the first processor; its speed changes all the time.
    let told = ["vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"];
    let first = text.lines().take_while(|line| !line.is_empty());
    let lines = first.filter(|line| told.iter().any(|name| line.split('\t').next() == Some(name)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Asks QEMU for its version: the numbers, and its package's words for it. Blocks, for some 0.1 s as a rule.
pub fn version() -> Result<(Version, String), BackendError> {
    let unreadable = |reason: &str| BackendError::Monitor { command: "--version", reason: reason.to_owned() };
    let output = helper::run(Command::new(find()?).arg("--version"), VERSION_BOUNDS)
        .map_err(BackendError::system("ask QEMU for its version"))?;
    if !output.status.success() {
        return Err(unreadable("QEMU does not tell its version"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    let version = Version::parse(line).ok_or_else(|| unreadable(line))?;
    Ok((version, line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let parse = |text: &str| Version::parse(&format!("QEMU emulator version {text}")).unwrap();
        assert!(parse("10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)").check().is_ok());
        assert!(parse("8.2.0").check().is_ok());
        assert!(matches!(parse("7.2.22").check(), Err(BackendError::TooOld { .. })));
        assert_eq!(Version::parse("nonsense"), None);
    }
}
