//! Reads an ext4 file system from its image: in safe Rust, writing nothing, believing nothing.
//!
//! ```text
//! superblock -> group descriptor -> inode -> extents -> blocks -> contents, names
//!                   journal: later versions of blocks that a killed machine did not put in their places
//! ```
//!
//! What a volume of ours can hold is understood, every other feature refused. Whoever wrote to the image may have
//! made it to harm its reader: numbers are checked against the image before they are used, nothing is allocated
//! that is larger than a block because the image says so, and no walk goes on without getting forward. Layouts are
//! those of the Linux kernel's "ext4 Data Structures and Algorithms" (Documentation/filesystems/ext4); those of the
//! journal are in its section 3.6.

mod bytes;
mod contents;
mod extents;
mod folder;
mod inode;
mod journal;
mod superblock;

pub use contents::Contents;
pub use folder::Folder;
pub use inode::{Inode, Kind};

use bytes::le16;
use journal::Replacement;
use std::{cell::Cell, collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};
use superblock::Superblock;

/// The inode of the root folder.
pub const ROOT: u32 = 2;

/// The longest text of a symbolic link, in bytes: the kernel follows none that is longer.
pub const LINK_BYTES: u64 = 4095;

/// How often, on average, a block may be looked at because it is part of the extents of some file. No two files have
/// one in common; those of a damaged file are looked at again for each of its names.
const WALKS: u64 = 4;

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// It contradicts itself.
    #[error("{0}")]
    Damaged(&'static str),
    /// It is made in a way that is not understood.
    #[error("{0}")]
    Unknown(&'static str),
    /// The image itself cannot be read.
    #[error("the image cannot be read")]
    Io(#[from] io::Error),
}

/// A file system as it would be after its journal was recovered.
#[derive(Debug)]
pub struct FileSystem {
    image: File,
    superblock: Superblock,
    /// By the number of the block that is replaced.
    replaced: BTreeMap<u64, Replacement>,
    /// How many blocks of extents may still be read.
    walks: Cell<u64>,
}

impl FileSystem {
    /// Opens the file system in an image of so many bytes.
    pub fn open(image: File, bytes: u64) -> Result<Self, Ext4Error> {
        let mut written = [0; superblock::BYTES];
        image.read_exact_at(&mut written, superblock::AT)?;
        let superblock = Superblock::read(&written, bytes)?;
        // The blocks are within the image: this does not overflow.
        let walks = Cell::new(superblock.blocks * WALKS);
        let mut system = Self { image, superblock, replaced: BTreeMap::new(), walks };
        if let Some(journal) = system.superblock.journal {
            system.replaced = journal::replay(&system, journal)?;
        }
        Ok(system)
    }

    /// How many files, folders and links there can be at most.
    pub fn inodes(&self) -> u64 {
        self.superblock.inodes_within()
    }

    /// What is known about a file, folder or link.
    pub fn inode(&self, number: u32) -> Result<Inode, Ext4Error> {
        let place = self.superblock.place(number)?;
        let mut descriptor = vec![0; self.superblock.descriptor_bytes];
        self.read_at(place.descriptor, &mut descriptor)?;
        if let Some(seed) = self.superblock.seed {
            let mut sum = bytes::crc32c(seed, &place.group.to_le_bytes());
            sum = bytes::crc32c(sum, &descriptor[..superblock::DESCRIPTOR_SUM]);
            sum = bytes::crc32c(sum, &[0; 2]);
            sum = bytes::crc32c(sum, &descriptor[superblock::DESCRIPTOR_SUM + 2..]);
            if le16(&descriptor, superblock::DESCRIPTOR_SUM) != sum as u16 {
                return Err(Ext4Error::Damaged("the checksum of its block group is wrong"));
            }
        }
        let mut written = vec![0; self.superblock.inode_bytes];
        self.read_at(self.superblock.address(&descriptor, &place)?, &mut written)?;
        Inode::read(number, &written, &self.superblock)
    }

    /// The contents of a file, whose extents are looked at first: only the image itself can fail later.
    pub fn contents<'a>(&'a self, file: &'a Inode) -> Result<Contents<'a>, Ext4Error> {
        Contents::with(self, file, extents::Extents::of(self, file)?.check()?)
    }

    /// The text of a symbolic link.
    pub fn link(&self, link: &Inode) -> Result<Vec<u8>, Ext4Error> {
        let text = match link.bytes {
            0 => return Err(Ext4Error::Damaged("the link leads nowhere")),
            bytes if bytes > LINK_BYTES => {
                return Err(Ext4Error::Damaged("the link is longer than any path"));
            }
            bytes => match link.inline(bytes) {
                Some(text) => text.to_vec(),
                None => {
                    let mut text = vec![0; bytes as usize];
                    self.contents(link)?.fill(&mut text)?;
                    text
                }
            },
        };
        if text.contains(&0) { Err(Ext4Error::Damaged("the link is no path")) } else { Ok(text) }
    }

    /// Bytes of a block, as the journal leaves it.
    fn read_block(&self, block: u64, to: &mut [u8]) -> Result<(), Ext4Error> {
        let address = block.checked_mul(self.block_bytes());
        self.read_at(address.ok_or(superblock::BEYOND)?, to)
    }

    /// Bytes at an address of the image, as the journal leaves them.
    fn read_at(&self, at: u64, to: &mut [u8]) -> Result<(), Ext4Error> {
        let size = self.block_bytes();
        let end = at.checked_add(to.len() as u64).filter(|end| *end <= self.superblock.blocks * size);
        let end = end.ok_or(superblock::BEYOND)?;
        self.image.read_exact_at(to, at)?;
        for (&block, replacement) in self.replaced.range(at / size..end.div_ceil(size)) {
            let version = replacement.read(&self.image, size)?;
            let (from, until) = ((block * size).max(at), ((block + 1) * size).min(end));
            let version = &version[(from - block * size) as usize..(until - block * size) as usize];
            to[(from - at) as usize..(until - at) as usize].copy_from_slice(version);
        }
        Ok(())
    }

    fn block_bytes(&self) -> u64 {
        self.superblock.block_bytes as u64
    }
}
