//! What holds for the whole file system, and where its inodes are.

use super::{
    Ext4Error,
    bytes::{crc32c, le16, le32, wide},
};

/// Where the superblock is, and its size, in bytes.
pub(super) const AT: u64 = 1024;
pub(super) const BYTES: usize = 1024;

/// Where a group descriptor has its checksum.
pub(super) const DESCRIPTOR_SUM: usize = 0x1e;

/// Something lies behind the end of the image.
pub(super) const BEYOND: Ext4Error = Ext4Error::Damaged("it refers to a block that does not exist");

const MAGIC: u16 = 0xef53;

/// Features without which nothing can be read as it is meant: `s_feature_incompat`.
mod incompatible {
    pub(super) const FILETYPE: u32 = 0x2;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const EXTENTS: u32 = 0x40;
    pub(super) const WIDE: u32 = 0x80;
    pub(super) const FLEX_BG: u32 = 0x200;
    pub(super) const CSUM_SEED: u32 = 0x2000;
    pub(super) const UNDERSTOOD: u32 = FILETYPE | RECOVER | EXTENTS | WIDE | FLEX_BG | CSUM_SEED;
}

const HAS_JOURNAL: u32 = 0x4;
const METADATA_CSUM: u32 = 0x400;

/// What is used of the superblock.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) block_bytes: usize,
    /// No block of this number, or a higher one, exists.
    pub(super) blocks: u64,
    pub(super) inode_bytes: usize,
    pub(super) descriptor_bytes: usize,
    /// What checksums begin with; nothing if there are none.
    pub(super) seed: Option<u32>,
    /// The inode of a journal that has to be recovered.
    pub(super) journal: Option<u32>,
    first_block: u64,
    inodes: u32,
    inodes_per_group: u32,
    is_wide: bool,
}

/// Where an inode is.
pub(super) struct Place {
    pub(super) group: u32,
    /// The address of the group's descriptor.
    pub(super) descriptor: u64,
    /// Its number among the group's inodes.
    index: u32,
}

impl Superblock {
    /// Reads the superblock of an image of so many bytes.
    pub(super) fn read(written: &[u8; BYTES], bytes: u64) -> Result<Self, Ext4Error> {
        let damaged = |what| Err(Ext4Error::Damaged(what));
        if le16(written, 0x38) != MAGIC {
            return damaged("it holds no ext4 file system");
        }
        let features = le32(written, 0x60);
        if features & !incompatible::UNDERSTOOD != 0 || features & incompatible::FILETYPE == 0 {
            return Err(Ext4Error::Unknown("its file system has features that are not understood"));
        }
        let has_sums = le32(written, 0x64) & METADATA_CSUM != 0;
        if has_sums && crc32c(!0, &written[..0x3fc]) != le32(written, 0x3fc) {
            return damaged("the checksum of its superblock is wrong");
        }
        let is_wide = features & incompatible::WIDE != 0;
        let logarithm = le32(written, 0x18);
        // No guest can mount larger ones: they are larger than its pages.
        if logarithm > 2 {
            return damaged("its blocks have a size that no guest can use");
        }
        let block_bytes = 1024_usize << logarithm;
        let blocks = wide(if is_wide { le32(written, 0x150) } else { 0 }, le32(written, 0x4));
        let first_block = u64::from(le32(written, 0x14));
        let (size, inodes_per_group) = (block_bytes as u64, le32(written, 0x28));
        if blocks.checked_mul(size).is_none_or(|claimed| claimed > bytes) || first_block >= blocks {
            return damaged("its file system is larger than its image");
        }
        // One block of a group says which of the others are used.
        if u64::from(le32(written, 0x20)) != 8 * size || !(1..=8 * size).contains(&inodes_per_group.into()) {
            return damaged("its block groups have an impossible size");
        }
        let inode_bytes = usize::from(le16(written, 0x58));
        let descriptor_bytes = if is_wide { usize::from(le16(written, 0xfe)) } else { 32 };
        let fits = |bytes: usize, least| bytes.is_power_of_two() && (least..=block_bytes).contains(&bytes);
        // The checksum of an inode continues behind the first 128 bytes.
        if !fits(inode_bytes, if has_sums { 256 } else { 128 }) {
            return damaged("its inodes have an impossible size");
        }
        if !fits(descriptor_bytes, if is_wide { 64 } else { 32 }) {
            return damaged("its group descriptors have an impossible size");
        }
        let has_journal = le32(written, 0x5c) & HAS_JOURNAL != 0;
        let seed = match features & incompatible::CSUM_SEED {
            0 => crc32c(!0, &written[0x68..0x78]),
            _ => le32(written, 0x270),
        };
        Ok(Self {
            block_bytes,
            blocks,
            inode_bytes,
            descriptor_bytes,
            seed: has_sums.then_some(seed),
            journal: (has_journal && features & incompatible::RECOVER != 0).then(|| le32(written, 0xe0)),
            first_block,
            inodes: le32(written, 0),
            inodes_per_group,
            is_wide,
        })
    }

    /// How many inodes there are, or would fill all blocks.
    pub(super) fn inodes_within(&self) -> u64 {
        let places = self.blocks * (self.block_bytes / self.inode_bytes) as u64;
        u64::from(self.inodes).min(places)
    }

    /// Where an inode is.
    pub(super) fn place(&self, number: u32) -> Result<Place, Ext4Error> {
        if number == 0 || number > self.inodes {
            return Err(Ext4Error::Damaged("it refers to an inode that does not exist"));
        }
        let (group, index) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        // An address that is too large is found out when it is read.
        let table = (self.first_block + 1) * self.block_bytes as u64;
        let descriptor = table + u64::from(group) * self.descriptor_bytes as u64;
        Ok(Place { group, descriptor, index })
    }

    /// The address of an inode whose group has this descriptor.
    pub(super) fn address(&self, descriptor: &[u8], place: &Place) -> Result<u64, Ext4Error> {
        let high = if self.is_wide { le32(descriptor, 0x28) } else { 0 };
        let table = wide(high, le32(descriptor, 0x8));
        if table == 0 || table >= self.blocks {
            return Err(BEYOND);
        }
        Ok(table * self.block_bytes as u64 + u64::from(place.index) * self.inode_bytes as u64)
    }
}
