//! Programs in the memory of a guest, found and killed from outside.
//!
//! Nothing outside a guest can kill a process of it. What can be done is to overwrite that process's program
//! in the guest's memory: it dies of an illegal instruction or a wild jump as soon as it does anything. With
//! the agent, its process 1, the guest's kernel dies too.

use rustix::fs::SeekFrom;
use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
};

const PAGE: usize = 4096;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Process 1.
    Agent,
    /// The probe server.
    Probe,
}

/// Where a program lies in a guest's memory.
pub struct Found {
    memory: Memory,
    pages: Vec<u64>,
}

/// A guest's memory.
struct Memory {
    /// What it is, or what it began as.
    file: File,
    /// The VMM's own, where it maps the file for itself alone: its memory, and offset, length and address of
    /// each mapping.
    private: Option<(File, Vec<[u64; 3]>)>,
}

impl Program {
    /// Finds the program; nothing where the VMM is gone or its guest has not started it yet.
    pub fn find(self, vmm: u32) -> Option<Found> {
        let memory = Memory::of(vmm)?;
        let (path, share) = match self {
            // A part of it lies in the initramfs before it is started.
            Self::Agent => (env!("CASEMATE_EMBEDDED_AGENT"), 2),
            // What it does not need is not read from the image.
            Self::Probe => (env!("CASEMATE_EMBEDDED_PROBE"), 10),
        };
        let program = fs::read(path).unwrap();
        // Pages of one byte are everybody's.
        let own: HashSet<&[u8]> =
            program.chunks_exact(PAGE).filter(|page| page.iter().any(|b| *b != page[0])).collect();
        // Much is looked through: a page is compared only where its beginning fits.
        let mut heads: Vec<[u8; 8]> = own.iter().filter_map(|page| page.first_chunk().copied()).collect();
        heads.sort_unstable();
        let mut pages = Vec::new();
        memory.each_page(|offset, page| {
            let fits = page.first_chunk().is_some_and(|head| heads.binary_search(head).is_ok());
            if fits && own.contains(page) {
                pages.push(offset);
            }
        })?;
        (pages.len() > own.len() / share).then_some(Found { memory, pages })
    }
}

impl Found {
    /// Kills it; a VMM that is gone has taken it along.
    pub fn kill(self) {
        for offset in self.pages {
            self.memory.write(offset, &[0xff; PAGE]);
        }
    }
}

impl Memory {
    fn of(vmm: u32) -> Option<Self> {
        let descriptors = fs::read_dir(format!("/proc/{vmm}/fd")).ok()?.flatten();
        let is_memory = |path: &PathBuf| {
            fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:casemate-memory"))
        };
        if let Some(path) = descriptors.map(|entry| entry.path()).find(is_memory) {
            let file = File::options().read(true).write(true).open(path).ok()?;
            return Some(Self { file, private: None });
        }
        let maps = fs::read_to_string(format!("/proc/{vmm}/maps")).ok()?;
        let lines: Vec<&str> =
            maps.lines().filter(|line| line.contains("/templates/") && line.contains("/memory")).collect();
        let range = lines.first()?.split(' ').next()?;
        let file = File::open(format!("/proc/{vmm}/map_files/{range}")).ok()?;
        let memory = File::options().write(true).open(format!("/proc/{vmm}/mem")).ok()?;
        let mappings = lines.iter().filter_map(|line| {
            let number = |text: &str| u64::from_str_radix(text, 16).ok();
            let mut fields = line.split_ascii_whitespace();
            let (first, last) = fields.next()?.split_once('-')?;
            let (first, last) = (number(first)?, number(last)?);
            Some([number(fields.nth(1)?)?, last - first, first])
        });
        Some(Self { file, private: Some((memory, mappings.collect())) })
    }

    /// Visits what is no hole.
    fn each_page(&self, mut visit: impl FnMut(u64, &[u8])) -> Option<()> {
        let length = self.file.metadata().ok()?.len();
        let (mut offset, mut chunk) = (0, vec![0; 256 * PAGE]);
        while offset < length {
            match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
                Ok(data) => offset = data / PAGE as u64 * PAGE as u64,
                Err(_) => break,
            }
            let part = chunk.len().min((length - offset) as usize);
            self.file.read_exact_at(&mut chunk[..part], offset).ok()?;
            for (number, page) in chunk[..part].chunks_exact(PAGE).enumerate() {
                visit(offset + (number * PAGE) as u64, page);
            }
            offset += part as u64;
        }
        Some(())
    }

    fn write(&self, offset: u64, page: &[u8]) {
        let _ = match &self.private {
            None => self.file.write_all_at(page, offset),
            Some((memory, mappings)) => {
                let within = |[from, bytes, _]: &&[u64; 3]| (*from..from + bytes).contains(&offset);
                let Some([from, _, address]) = mappings.iter().find(within) else { return };
                memory.write_all_at(page, address + offset - from)
            }
        };
    }
}
