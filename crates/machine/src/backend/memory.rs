//! A guest's memory, seen from the host.

use crate::template::pages::{PAGE, each_page};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
};

/// The memory of one machine.
#[derive(Debug)]
pub struct GuestMemory {
    /// In bytes.
    bytes: u64,
    /// All of it, where the machine booted here.
    file: File,
    /// The VMM that maps `file` for itself alone and has pages of its own instead of those that were written.
    private_to: Option<u32>,
}

/// Where a VMM maps a part of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    address: u64,
    bytes: u64,
    /// Of the guest's memory.
    offset: u64,
}

/// Bits of an entry of `/proc/PID/pagemap`, Linux's admin-guide/mm/pagemap.rst.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;

/// How much of it is read at once.
const PAGEMAP_BYTES: usize = 32 << 10;

impl GuestMemory {
    /// Memory that is this file.
    pub(crate) fn shared(file: File, bytes: u64) -> Self {
        Self { bytes, file, private_to: None }
    }

    /// Memory that began as this file, which the VMM maps privately.
    pub(crate) fn private(file: File, bytes: u64, vmm: u32) -> Self {
        Self { bytes, file, private_to: Some(vmm) }
    }

    /// The file that is all of the memory; nothing for a machine that was restored.
    pub(crate) fn whole(&self) -> Option<&File> {
        self.private_to.is_none().then_some(&self.file)
    }

    /// What the memory began as; nothing for a machine that booted.
    pub(crate) fn base(&self) -> Option<&File> {
        self.private_to.is_some().then_some(&self.file)
    }

    /// Calls `visit` with the index and the bytes of every page that is not as in the template, or not zeros
    /// where there is none. The guest has to be stopped.
    pub(crate) fn each_own_page(
        &self,
        mut visit: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(vmm) = self.private_to else { return each_page(&self.file, self.bytes, visit) };
        let mut pagemap = File::open(format!("/proc/{vmm}/pagemap"))?;
        let memory = File::open(format!("/proc/{vmm}/mem"))?;
        let mut page = [0; PAGE];
        for mapping in self.mappings(vmm)? {
            let mut pagemap = BufReader::with_capacity(PAGEMAP_BYTES, &mut pagemap);
            pagemap.seek(SeekFrom::Start(mapping.address / PAGE as u64 * 8))?;
            let mut entry = [0; 8];
            for at in 0..mapping.bytes / PAGE as u64 {
                pagemap.read_exact(&mut entry)?;
                let entry = u64::from_le_bytes(entry);
                if entry & (PRESENT | SWAPPED) == 0 || entry & FILE_OR_SHARED != 0 {
                    continue;
                }
                let offset = at * PAGE as u64;
                memory.read_exact_at(&mut page, mapping.address + offset)?;
                visit((mapping.offset + offset) / PAGE as u64, &page)?;
            }
        }
        Ok(())
    }

    /// Writes a page of a guest that does not run yet.
    pub(crate) fn writer(&self) -> io::Result<Writer<'_>> {
        let Some(vmm) = self.private_to else { return Ok(Writer { memory: self, target: None }) };
        let target = File::options().write(true).open(format!("/proc/{vmm}/mem"))?;
        Ok(Writer { memory: self, target: Some((target, self.mappings(vmm)?)) })
    }

    /// Where the VMM maps the file. It may be in the guest's hands: what it maps beyond is passed over.
    fn mappings(&self, vmm: u32) -> io::Result<Vec<Mapping>> {
        let meta = self.file.metadata()?;
        let maps = BufReader::new(File::open(format!("/proc/{vmm}/maps"))?);
        let mut mappings = Vec::new();
        // As many as QEMU could make of one region by cutting it.
        const MOST: usize = 64;
        for line in maps.lines() {
            let line = line?;
            if let Some(mapping) = parse(&line, meta.ino())
                && mapping.offset.checked_add(mapping.bytes).is_some_and(|end| end <= self.bytes)
                && mappings.len() < MOST
            {
                mappings.push(mapping);
            }
        }
        if mappings.iter().map(|mapping| mapping.bytes).sum::<u64>() != self.bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the VMM does not map the guest's memory once",
            ));
        }
        Ok(mappings)
    }
}

/// Writes pages into a guest's memory.
pub(crate) struct Writer<'a> {
    memory: &'a GuestMemory,
    target: Option<(File, Vec<Mapping>)>,
}

impl Writer<'_> {
    /// Writes one page.
    pub(crate) fn write(&self, index: u64, page: &[u8]) -> io::Result<()> {
        let offset = index.checked_mul(PAGE as u64).filter(|offset| *offset < self.memory.bytes);
        let offset = offset.ok_or(io::ErrorKind::InvalidData)?;
        let Some((target, mappings)) = &self.target else {
            return self.memory.file.write_all_at(page, offset);
        };
        let within = |mapping: &&Mapping| (mapping.offset..mapping.offset + mapping.bytes).contains(&offset);
        let mapping = mappings.iter().find(within).ok_or(io::ErrorKind::InvalidData)?;
        target.write_all_at(page, mapping.address + (offset - mapping.offset))
    }
}

/// Reads a line of `/proc/PID/maps` if it is a mapping of this inode, proc_pid_maps(5):
/// `address perms offset device inode path`.
fn parse(line: &str, inode: u64) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (first, last) = fields.next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (first, last) = (number(first)?, number(last)?);
    let offset = number(fields.nth(1)?)?;
    let found: u64 = fields.nth(1)?.parse().ok()?;
    (found == inode).then_some(Mapping { address: first, bytes: last.checked_sub(first)?, offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read_by_its_places() {
        let line = "7f5a00000000-7f5a10000000 rw-p 00001000 fe:00 1234    /home/x y/memory (deleted)";
        let mapping = Mapping { address: 0x7f5a_0000_0000, bytes: 0x1000_0000, offset: 0x1000 };
        assert_eq!(parse(line, 1234), Some(mapping));
        assert_eq!(parse(line, 1235), None);
        assert_eq!(parse("nonsense", 0), None);
    }

    #[test]
    fn pages_of_shared_memory_are_written_and_found() {
        let bytes = 16 * PAGE as u64;
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let memory = GuestMemory::shared(file, bytes);
        let writer = memory.writer().unwrap();
        writer.write(3, &[7; PAGE]).unwrap();
        assert!(writer.write(16, &[7; PAGE]).is_err());
        let mut found = Vec::new();
        memory
            .each_own_page(|index, page| {
                found.push((index, page[0]));
                Ok(())
            })
            .unwrap();
        assert_eq!(found, [(3, 7)]);
    }
}
