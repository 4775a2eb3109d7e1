//! Builds the initramfs that boots a machine: the agent as `/init`, and the modules that it loads.

use super::cpio::Cpio;
use super::modules::Module;

/// What changes when the layout below does, so that an older initramfs is not taken for a current one.
pub(super) const LAYOUT: u32 = 3;

const PAGE: usize = 4096;

/// The folders that the agent mounts on.
const MOUNT_POINTS: &[&str] = &["dev", "newroot", "proc", "run", "sys", "tmp"];

/// The archive, uncompressed: in emulation the kernel takes 30 ms to decompress it. The same arguments give the
/// same bytes.
pub(super) fn build(agent: &[u8], modules: &[Module], order: &str) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for name in MOUNT_POINTS {
        cpio.folder(name, 0o755);
    }
    // The kernel opens it for the agent's standard streams before the agent can mount anything.
    cpio.character_device("dev/console", 0o600, (5, 1));
    cpio.folder("modules", 0o755);
    cpio.file("modules/order", 0o644, order.as_bytes());
    for module in modules {
        cpio.file(&format!("modules/{}", module.file), 0o644, &module.bytes);
    }
    cpio.file("init", 0o755, agent);
    cpio.finish()
}
/// Fills the last page with zeros, which the kernel passes over.
///
/// QEMU's microvm puts the initramfs below the last byte of memory, beginning at a page; its firmware puts
/// the ACPI tables into the last page. An archive that ends in that page overwrites them, and the guest
/// finds no devices, or hangs. One of whole pages ends before it.
pub(super) fn pad(mut archive: Vec<u8>) -> Vec<u8> {
    archive.resize(archive.len().next_multiple_of(PAGE), 0);
    archive
}
