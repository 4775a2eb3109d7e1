//! An initramfs of one file, in the kernel's "newc" format (Documentation/driver-api/early-userspace/
//! buffer-format.rst).

const REGULAR_EXECUTABLE: u32 = 0o100_755;

/// An archive that holds `/init` and nothing else.
pub fn with_init(program: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, 1, REGULAR_EXECUTABLE, "init", program);
    entry(&mut archive, 0, 0, "TRAILER!!!", &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, inode: u32, mode: u32, name: &str, content: &[u8]) {
    let name_length = name.len() as u32 + 1;
    archive.extend_from_slice(b"070701");
    // inode, mode, user, group, links, time, size, device (2), device node (2), name length, checksum
    for field in [inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name_length, 0] {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_as_the_format_says() {
        let archive = with_init(b"hello");
        assert_eq!(archive.len() % 4, 0);
        // A header of 110 bytes, the name with its end, filled up to 116.
        assert_eq!(&archive[110..115], b"init\0");
        assert_eq!(&archive[54..62], b"00000005", "the size");
        assert_eq!(&archive[116..121], b"hello");
        assert_eq!(&archive[124..130], b"070701");
        assert!(archive.windows(11).any(|part| part == b"TRAILER!!!\0"));
    }
}
