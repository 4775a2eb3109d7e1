//! Kernel modules of the initramfs.
//!
//! `/modules/order` names one a line, in the order in which they can be loaded: `boot PATH` for those that
//! every machine needs, `lazy:FEATURE PATH` for those that wait until FEATURE is wanted.

use crate::log;
use rustix::io::Errno;
use std::fs::File;
use std::path::Path;

/// The list, written by whoever built the initramfs.
pub const ORDER: &str = "/modules/order";

/// Modules that every machine needs.
pub const BOOT: &str = "boot";
/// The tag of modules for AF_VSOCK.
pub const VSOCK: &str = "lazy:vsock";
/// The tag of modules for a writable overlay: overlayfs and ext4.
pub const OVERLAY: &str = "lazy:overlay";

/// Loads all modules of one tag. One that cannot be loaded is told: what needs it will fail and say so.
pub fn load(tag: &str) {
    let order = match std::fs::read_to_string(ORDER) {
        Ok(order) => order,
        // A kernel with everything built in needs no list.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => return log::warn(format_args!("read {ORDER}: {error}")),
    };
    for path in tagged(&order, tag) {
        if let Err(error) = insert(Path::new(path)) {
            log::warn(format_args!("load module {path}: {error}"));
        }
    }
}

fn tagged<'a>(order: &'a str, tag: &'a str) -> impl Iterator<Item = &'a str> {
    order.lines().filter_map(move |line| match line.trim().split_once(' ') {
        Some((found, path)) => (found == tag).then(|| path.trim()),
        None => (tag == BOOT && !line.trim().is_empty()).then(|| line.trim()),
    })
}

fn insert(path: &Path) -> std::io::Result<()> {
    match rustix::system::finit_module(File::open(path)?, c"", 0) {
        // Built in, or loaded for another feature.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_a_tag_is_loaded_at_boot() {
        let order = "/a.ko\nboot /b.ko\nlazy:vsock /c.ko\n\nlazy:overlay /d.ko\n";
        assert_eq!(tagged(order, BOOT).collect::<Vec<_>>(), ["/a.ko", "/b.ko"]);
        assert_eq!(tagged(order, VSOCK).collect::<Vec<_>>(), ["/c.ko"]);
    }
}
