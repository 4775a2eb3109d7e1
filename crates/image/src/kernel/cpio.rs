//! Writes the archive that an initramfs is: cpio in the "newc" format
//! (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Owners and times are zero and inodes are numbered in order, so that the same entries give the same bytes.

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Cpio {
    bytes: Vec<u8>,
    inodes: u32,
}

impl Cpio {
    /// Adds a folder. Parents have to come first.
    pub fn folder(&mut self, name: &str, mode: u32) {
        self.entry(name, FOLDER | mode, (0, 0), &[]);
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entry(name, FILE | mode, (0, 0), contents);
    }

    /// Adds a character device with its major and minor number.
    pub fn character_device(&mut self, name: &str, mode: u32, device: (u32, u32)) {
        self.entry(name, CHARACTER_DEVICE | mode, device, &[]);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inodes = 0;
        self.header(TRAILER, 0, (0, 0), 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.inodes += 1;
        self.header(name, mode, device, contents.len());
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn header(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), size: usize) {
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        let name_size = name.len() as u32 + 1;
        let (uid, gid, time, check) = (0, 0, 0, 0);
        // The format has no room for more than 4 GiB, and no agent or module comes near it.
        let size = size as u32;
        let fields = [self.inodes, mode, uid, gid, links, time, size, 0, 0, major, minor, name_size, check];
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_bytes_of_the_format() {
        let mut cpio = Cpio::default();
        cpio.folder("dev", 0o755);
        cpio.character_device("dev/console", 0o600, (5, 1));
        cpio.file("init", 0o755, b"hello");
        let expected = concat!(
            "070701",
            "00000001",
            "000041ed",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000004",
            "00000000",
            "dev\0\0\0",
            "070701",
            "00000002",
            "00002180",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000001",
            "0000000c",
            "00000000",
            "dev/console\0\0\0",
            "070701",
            "00000003",
            "000081ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000005",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000000",
            "init\0\0",
            "hello\0\0\0",
            "070701",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0\0\0\0",
        );
        assert_eq!(String::from_utf8(cpio.finish()).unwrap(), expected);
    }
}
