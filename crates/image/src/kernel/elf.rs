//! Checks that a `vmlinux` can be booted directly, and reads its version.

use object::LittleEndian as LE;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, NoteType, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader as _, NoteIterator, ProgramHeader as _};

use super::ImageError;

/// The note that holds the kernel's PVH entry point (Xen, `public/elfnote.h`).
const XEN_ELFNOTE_PHYS32_ENTRY: NoteType = NoteType(18);
/// How the kernel's banner begins.
const BANNER: &[u8] = b"Linux version ";
/// The longest version that is believed.
const LONGEST_VERSION: usize = 64;

/// A kernel that QEMU and Firecracker boot directly.
#[derive(Debug)]
pub(super) struct Vmlinux<'a> {
    bytes: &'a [u8],
    segments: &'a [ProgramHeader64<LE>],
}

impl<'a> Vmlinux<'a> {
    /// Checks `bytes`: ELF for x86-64, segments within the file, a PVH entry point.
    pub fn parse(bytes: &'a [u8]) -> Result<Vmlinux<'a>, ImageError> {
        let malformed = |problem| ImageError::Malformed { part: "the kernel", problem };
        let header = FileHeader64::<LE>::parse(bytes).map_err(|_| malformed("it is no 64-bit ELF file"))?;
        if header.e_machine.get(LE) != EM_X86_64 || header.e_type.get(LE) != ET_EXEC {
            return Err(malformed("it is no executable for x86-64"));
        }
        let segments =
            header.program_headers(LE, bytes).map_err(|_| malformed("its program headers are cut off"))?;
        let kernel = Vmlinux { bytes, segments };
        let mut loaded = segments.iter().filter(|segment| segment.p_type(LE) == PT_LOAD).peekable();
        if loaded.peek().is_none() {
            return Err(malformed("it has nothing to load"));
        }
        if loaded.any(|segment| segment.data(LE, bytes).is_err()) {
            return Err(malformed("its segments lie beyond the end of the file"));
        }
        if kernel.has_pvh_entry() { Ok(kernel) } else { Err(ImageError::NoPvh) }
    }

    /// The version that the kernel's banner states, such as `6.1.0-1-amd64`.
    pub fn version(&self) -> Option<String> {
        let loaded = self.segments.iter().filter(|segment| segment.p_type(LE) == PT_LOAD);
        loaded.filter_map(|segment| segment.data(LE, self.bytes).ok()).find_map(version_in)
    }

    /// The kernel without what follows its segments: section headers, symbols, debug information.
    pub fn boot_part(&self) -> Vec<u8> {
        let end = |segment: &ProgramHeader64<LE>| segment.p_offset(LE).saturating_add(segment.p_filesz(LE));
        let table = FileHeader64::<LE>::parse(self.bytes).map_or(0, |header| {
            let size = u64::from(header.e_phentsize(LE)) * u64::from(header.e_phnum(LE));
            header.e_phoff(LE).saturating_add(size)
        });
        let end = self.segments.iter().map(end).max().unwrap_or(0).max(table);
        let mut part = self.bytes[..self.bytes.len().min(end as usize)].to_vec();
        // e_shoff, then e_shnum and e_shstrndx: there are no sections.
        for range in [0x28..0x30, 0x3c..0x40] {
            if let Some(field) = part.get_mut(range) {
                field.fill(0);
            }
        }
        part
    }

    fn has_pvh_entry(&self) -> bool {
        let notes = self.segments.iter().filter(|segment| segment.p_type(LE) == PT_NOTE);
        notes.into_iter().any(|segment| {
            let Ok(data) = segment.data(LE, self.bytes) else { return false };
            let align = segment.p_align(LE);
            let Ok(mut notes) = NoteIterator::<FileHeader64<LE>>::new(LE, align, data) else { return false };
            while let Ok(Some(note)) = notes.next() {
                if note.name() == b"Xen" && note.n_type(LE) == XEN_ELFNOTE_PHYS32_ENTRY {
                    return true;
                }
            }
            false
        })
    }
}

fn version_in(segment: &[u8]) -> Option<String> {
    let mut rest = segment;
    while let Some(at) = find(rest, BANNER) {
        rest = &rest[at + BANNER.len()..];
        let length = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let version = &rest[..length.min(LONGEST_VERSION)];
        // The format string of the banner comes first in some kernels: `Linux version %s`.
        let plausible = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+_~".contains(byte);
        if version.first().is_some_and(u8::is_ascii_digit) && version.iter().all(plausible) {
            return Some(String::from_utf8_lossy(version).into_owned());
        }
    }
    None
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut start = 0;
    // Looking for one byte first is vectorised; comparing windows of 50 MB is slow.
    while let Some(at) = bytes.get(start..)?.iter().position(|&byte| byte == first) {
        if bytes[start + at..].starts_with(wanted) {
            return Some(start + at);
        }
        start += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A kernel of one loaded segment with the text `contents`, and a segment of notes.
    fn kernel(contents: &[u8], note_owner: &[u8; 4], note_type: u32) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for wide in [0x1000000u64, 64, 0x7777] {
            elf.extend(wide.to_le_bytes());
        }
        elf.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 2, 64, 0, 0] {
            elf.extend(half.to_le_bytes());
        }
        let notes_at = 64 + 2 * 56;
        let text_at = notes_at + 20;
        for (kind, offset, size) in [(1u32, text_at, contents.len()), (4, notes_at, 20)] {
            elf.extend(kind.to_le_bytes());
            elf.extend(7u32.to_le_bytes());
            for wide in [offset as u64, 0, 0, size as u64, size as u64, 4] {
                elf.extend(wide.to_le_bytes());
            }
        }
        for word in [4u32, 4, note_type] {
            elf.extend(word.to_le_bytes());
        }
        elf.extend(note_owner);
        elf.extend(0x100u32.to_le_bytes());
        elf.extend(contents);
        elf
    }

    const BANNERS: &[u8] = b"..Linux version %s..Linux version 6.1.0-56-cloud-amd64 (x@y) gcc\0";

    #[test]
    fn a_bootable_kernel_is_recognised() {
        let mut bytes = kernel(BANNERS, b"Xen\0", 18);
        let length = bytes.len();
        bytes.extend(b"debug information");
        let kernel = Vmlinux::parse(&bytes).unwrap();
        assert_eq!(kernel.version().as_deref(), Some("6.1.0-56-cloud-amd64"));
        let part = kernel.boot_part();
        assert_eq!(part.len(), length);
        assert_eq!(part[0x28..0x30], [0; 8]);
        assert!(Vmlinux::parse(&part).is_ok());
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        assert!(matches!(Vmlinux::parse(&kernel(BANNERS, b"Xen\0", 17)), Err(ImageError::NoPvh)));
        assert!(matches!(Vmlinux::parse(&kernel(BANNERS, b"GNU\0", 18)), Err(ImageError::NoPvh)));
        assert!(matches!(Vmlinux::parse(b"MZ"), Err(ImageError::Malformed { .. })));
        let mut arm = kernel(BANNERS, b"Xen\0", 18);
        arm[18] = 183;
        assert!(matches!(Vmlinux::parse(&arm), Err(ImageError::Malformed { .. })));
        let whole = kernel(BANNERS, b"Xen\0", 18);
        for length in 0..whole.len() {
            assert!(Vmlinux::parse(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_version_that_is_no_file_name_is_not_believed() {
        for banner in [
            &b"Linux version 6/../../x "[..],
            b"Linux version ..",
            b"Linux version ",
            b"Linux version 6.1\0 ",
        ] {
            let bytes = kernel(banner, b"Xen\0", 18);
            assert_eq!(Vmlinux::parse(&bytes).unwrap().version(), None);
        }
    }

    proptest! {
        #[test]
        fn a_damaged_kernel_is_survived(position in 0usize..200, value: u8, second in 0usize..200, other: u8) {
            let mut bytes = kernel(BANNERS, b"Xen\0", 18);
            bytes[position] = value;
            bytes[second] = other;
            if let Ok(kernel) = Vmlinux::parse(&bytes) {
                let _ = (kernel.version(), kernel.boot_part());
            }
        }
    }
}
