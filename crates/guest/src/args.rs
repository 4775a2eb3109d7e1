//! The command line: empty in a machine with a kernel of its own, else where the link is.

use std::ffi::OsString;
use std::path::PathBuf;

/// Where the host comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Whatever devices the machine has: a vsock device, a virtio-serial port.
    Devices,
    /// A Unix socket for each port, in a folder.
    Unix(PathBuf),
    /// The multiplexer on a character device or a Unix socket.
    Serial(PathBuf),
}

/// The command line cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("usage: casemate-guest [--unix FOLDER | --serial PATH]")]
pub struct Usage;

/// Reads the arguments, without the program's name. The first process of a kernel gets whatever words of the
/// kernel's command line nobody else knew, so `first_process` ignores all but its own options.
pub fn parse(mut arguments: impl Iterator<Item = OsString>, first_process: bool) -> Result<Link, Usage> {
    loop {
        let Some(option) = arguments.next() else {
            return if first_process { Ok(Link::Devices) } else { Err(Usage) };
        };
        let link = match option.to_str() {
            Some("--unix") => Link::Unix,
            Some("--serial") => Link::Serial,
            _ if first_process => continue,
            _ => return Err(Usage),
        };
        return arguments.next().map(PathBuf::from).map(link).ok_or(Usage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str], first_process: bool) -> Result<Link, Usage> {
        parse(words.iter().map(OsString::from), first_process)
    }

    #[test]
    fn only_a_first_process_may_go_without_a_link() {
        assert_eq!(of(&[], true), Ok(Link::Devices));
        assert_eq!(of(&["splash", "quiet"], true), Ok(Link::Devices));
        assert_eq!(of(&[], false), Err(Usage));
        assert_eq!(of(&["--unix"], false), Err(Usage));
        assert_eq!(of(&["--unix", "/x"], true), Ok(Link::Unix("/x".into())));
        assert_eq!(of(&["--serial", "/x"], false), Ok(Link::Serial("/x".into())));
        assert_eq!(of(&["--tcp", "/x"], false), Err(Usage));
    }
}
