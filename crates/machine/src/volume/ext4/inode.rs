//! What is known about one file, folder or link.

use super::{
    Ext4Error,
    bytes::{crc32c, le16, le32, wide},
    superblock::Superblock,
};

/// Where an inode says what its contents are, and how much space it has for that.
const BLOCK: usize = 0x28;
const BLOCK_BYTES: usize = 60;

/// The part that all inodes have.
const OLD_BYTES: usize = 128;

const SUM_LOW: usize = 0x7c;
const SUM_HIGH: usize = 0x82;

/// A flag of `i_flags`: its contents are found by extents.
const EXTENTS: u32 = 0x8_0000;

/// A file has no more blocks.
const MOST_BLOCKS: u64 = 1 << 32;

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A socket, named pipe or device.
    Special,
}

/// A file, folder or link.
#[derive(Debug)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// What it is.
    pub kind: Kind,
    /// Its permissions: the lowest twelve bits of its mode.
    pub mode: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was written last, in seconds since 1970.
    pub modified: i64,
    /// How many names it has.
    pub links: u16,
    /// The size of its contents.
    pub bytes: u64,
    flags: u32,
    block: [u8; BLOCK_BYTES],
    /// What the checksums of its blocks begin with.
    pub(super) seed: Option<u32>,
}

impl Inode {
    pub(super) fn read(number: u32, written: &[u8], superblock: &Superblock) -> Result<Self, Ext4Error> {
        let extra = if written.len() > OLD_BYTES { usize::from(le16(written, OLD_BYTES)) } else { 0 };
        let reaches = |end: usize| written.len() >= end && OLD_BYTES + extra >= end;
        let seed = superblock.seed.map(|seed| {
            let sum = crc32c(seed, &number.to_le_bytes());
            crc32c(sum, &written[0x64..0x68])
        });
        if let Some(seed) = seed {
            let mut zeroed = written.to_vec();
            zeroed[SUM_LOW..SUM_LOW + 2].fill(0);
            let mut said = u32::from(le16(written, SUM_LOW));
            let mut mask = 0xffff;
            if reaches(SUM_HIGH + 2) {
                zeroed[SUM_HIGH..SUM_HIGH + 2].fill(0);
                said |= u32::from(le16(written, SUM_HIGH)) << 16;
                mask = !0;
            }
            if crc32c(seed, &zeroed) & mask != said {
                return Err(Ext4Error::Damaged("the checksum of its inode is wrong"));
            }
        }
        let mode = le16(written, 0);
        let kind = match mode & 0xf000 {
            0x4000 => Kind::Folder,
            0x8000 => Kind::File,
            0xa000 => Kind::Link,
            0x1000 | 0x2000 | 0x6000 | 0xc000 => Kind::Special,
            _ => return Err(Ext4Error::Damaged("its inode is of no kind")),
        };
        // The kernel looks at the upper half of a file's size alone.
        let high = if kind == Kind::File { le32(written, 0x6c) } else { 0 };
        let bytes = wide(high, le32(written, 0x4));
        if bytes.div_ceil(superblock.block_bytes as u64) > MOST_BLOCKS {
            return Err(Ext4Error::Damaged("it is larger than any file"));
        }
        let epoch = if reaches(0x8c) { i64::from(le32(written, 0x88) & 3) << 32 } else { 0 };
        let mut block = [0; BLOCK_BYTES];
        block.copy_from_slice(&written[BLOCK..BLOCK + BLOCK_BYTES]);
        Ok(Self {
            number,
            kind,
            mode: u32::from(mode & 0o7777),
            uid: u32::from(le16(written, 0x2)) | u32::from(le16(written, 0x78)) << 16,
            gid: u32::from(le16(written, 0x18)) | u32::from(le16(written, 0x7a)) << 16,
            modified: i64::from(le32(written, 0x10) as i32) + epoch,
            links: le16(written, 0x1a),
            bytes,
            flags: le32(written, 0x20),
            block,
            seed,
        })
    }

    /// Its first so many bytes, if it holds them itself instead of in blocks: short links do.
    pub(super) fn inline(&self, bytes: u64) -> Option<&[u8]> {
        let short = usize::try_from(bytes).ok().filter(|bytes| *bytes < BLOCK_BYTES);
        short.filter(|_| self.flags & EXTENTS == 0).map(|bytes| &self.block[..bytes])
    }

    /// The root of the tree of its extents.
    pub(super) fn extents(&self) -> Result<&[u8], Ext4Error> {
        if self.flags & EXTENTS == 0 {
            return Err(Ext4Error::Unknown("its contents are kept in a way that is not understood"));
        }
        Ok(&self.block)
    }
}
