//! The configuration: what was asked for, and whether the source's rules gave it.
//!
//! The kernel's configuration program drops what depends on something that is off, without a word. A kernel
//! without EROFS would be found out by nobody until a machine fails to start, so each line is checked.

use std::collections::HashMap;

use crate::registry::digest::Hasher;

/// A line of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line<'a> {
    /// `NAME=VALUE`
    On(&'a str, &'a str),
    /// `# NAME is not set`
    Off(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Line<'a>> {
        if let Some(rest) = line.strip_prefix("# ") {
            return rest.strip_suffix(" is not set").filter(|name| is_name(name)).map(Line::Off);
        }
        let (name, value) = line.split_once('=')?;
        is_name(name).then_some(Line::On(name, value))
    }
}

fn is_name(name: &str) -> bool {
    name.strip_prefix("CONFIG_").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(|line| Line::parse(line.trim_end()))
}

/// What names a configuration: comments do not count.
pub(super) fn digest(wanted: &str) -> String {
    let mut hasher = Hasher::sha256();
    for line in lines(wanted) {
        match line {
            Line::On(name, value) => hasher.update(format!("{name}={value}\n").as_bytes()),
            Line::Off(name) => hasher.update(format!("{name}=n\n").as_bytes()),
        }
    }
    hasher.finish().to_hex()
}

/// Compares a finished `.config` with what was asked for; the error lists each difference.
pub(super) fn check(wanted: &str, finished: &[u8]) -> Result<(), Vec<String>> {
    let finished = String::from_utf8_lossy(finished);
    let set: HashMap<&str, &str> = lines(&finished)
        .filter_map(|line| match line {
            Line::On(name, value) => Some((name, value)),
            Line::Off(_) => None,
        })
        .collect();
    let differences: Vec<String> = lines(wanted)
        .filter_map(|line| match line {
            Line::On(name, value) if set.get(name) == Some(&value) => None,
            Line::On(name, value) => {
                Some(format!("{name} is {}, not {value}", set.get(name).unwrap_or(&"off")))
            }
            Line::Off(name) => set.get(name).map(|value| format!("{name} is {value}, not off")),
        })
        .collect();
    if differences.is_empty() { Ok(()) } else { Err(differences) }
}

#[cfg(test)]
mod tests {
    use super::super::CONFIG;
    use super::*;

    const WANTED: &str = "# Devices.\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S=\"-x\"\nCONFIG_N=32\n";

    #[test]
    fn what_was_given_passes() {
        assert_eq!(
            check(WANTED, b"CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S=\"-x\"\nCONFIG_N=32\n"),
            Ok(())
        );
        // An option that the source does not know is as good as off.
        assert_eq!(check(WANTED, b"CONFIG_N=32\nCONFIG_Z=y\nCONFIG_A=y\nCONFIG_S=\"-x\"\n"), Ok(()));
    }

    #[test]
    fn what_was_dropped_or_added_is_listed() {
        let differences = check(WANTED, b"# CONFIG_A is not set\nCONFIG_B=m\nCONFIG_S=\"-x\"\nCONFIG_N=64\n");
        let expected =
            ["CONFIG_A is off, not y", "CONFIG_B is m, not off", "CONFIG_N is 64, not 32"].map(str::to_owned);
        assert_eq!(differences, Err(expected.to_vec()));
    }

    #[test]
    fn the_digest_is_of_the_options_alone() {
        let same = "CONFIG_A=y\n\n# Another comment.\n# CONFIG_B is not set\nCONFIG_S=\"-x\"\nCONFIG_N=32";
        assert_eq!(digest(WANTED), digest(same));
        for other in ["CONFIG_A=m", "# CONFIG_A is not set", "CONFIG_A=y\nCONFIG_C=y"] {
            assert_ne!(digest(WANTED), digest(&WANTED.replace("CONFIG_A=y", other)), "{other}");
        }
    }

    #[test]
    fn the_kernels_own_configuration_is_well_formed() {
        let mut names = Vec::new();
        for line in CONFIG.lines().filter(|line| !line.is_empty()) {
            match Line::parse(line) {
                Some(Line::On(name, _) | Line::Off(name)) => names.push(name),
                None => assert!(line.starts_with('#') && !line.starts_with("# CONFIG_"), "{line}"),
            }
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "each option once");
        // Without these no machine starts, or a wall of the agent's is missing.
        let needed = "PVH VIRTIO_MMIO VIRTIO_BLK VIRTIO_CONSOLE VIRTIO_BALLOON VIRTIO_VSOCKETS \
            EROFS_FS EXT4_FS OVERLAY_FS NET_SCH_NETEM SECCOMP_FILTER MEMCG CGROUP_PIDS";
        for name in needed.split_whitespace() {
            assert!(CONFIG.contains(&format!("\nCONFIG_{name}=y\n")), "{name}");
        }
    }
}
