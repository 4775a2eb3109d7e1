//! What a killed machine had written to its journal and not to its place.
//!
//! ```text
//! superblock | ... start: descriptor, blocks ..., revocation, commit | descriptor, blocks ..., commit | end
//! ```
//!
//! Each transaction counts as a whole, with its commit, or not at all. A block that was revoked by a transaction is
//! not taken from it or from an earlier one: it holds something else by now. The log goes round; it ends where the
//! next block is not that of the next transaction. Everything is big-endian.

use super::{
    Ext4Error, FileSystem, Kind,
    bytes::{be16, be32, crc32c, wide},
    extents::Extents,
};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::unix::fs::FileExt,
};

const MAGIC: u32 = 0xc03b_3998;

/// Kinds of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_1: u32 = 3;
const SUPERBLOCK_2: u32 = 4;
const REVOCATION: u32 = 5;

/// What every block of the journal's own begins with: magic number, kind, sequence number.
const HEAD: usize = 12;

/// Features: `s_feature_incompat`.
const REVOKE: u32 = 0x1;
const WIDE: u32 = 0x2;
const ASYNC_COMMIT: u32 = 0x4;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
const UNDERSTOOD: u32 = REVOKE | WIDE | ASYNC_COMMIT | CSUM_V2 | CSUM_V3;

/// Flags of a tag.
const ESCAPED: u32 = 0x1;
const SAME_UUID: u32 = 0x2;
const LAST: u32 = 0x8;

const UUID_BYTES: usize = 16;

/// The most blocks of a journal, in how many pieces, and the most that they revoke: mke2fs makes none of more than
/// 4 GiB, in a few pieces.
const BLOCKS: u64 = 1 << 20;
const PIECES: usize = 1 << 12;
const REVOCATIONS: usize = 1 << 22;

/// Where the later version of a block is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replacement {
    /// An address of the image.
    at: u64,
    /// The block begins with the journal's magic number, which is written as zeros.
    escaped: bool,
}

impl Replacement {
    pub(super) fn read(&self, image: &File, block_bytes: u64) -> Result<Vec<u8>, Ext4Error> {
        let mut block = vec![0; block_bytes as usize];
        image.read_exact_at(&mut block, self.at)?;
        if self.escaped {
            block[..4].copy_from_slice(&MAGIC.to_be_bytes());
        }
        Ok(block)
    }
}

/// The blocks that the journal in this inode replaces.
pub(super) fn replay(system: &FileSystem, inode: u32) -> Result<BTreeMap<u64, Replacement>, Ext4Error> {
    let journal = Journal::open(system, inode)?;
    let mut log = match journal.start {
        0 => return Ok(BTreeMap::new()),
        start => Log { journal: &journal, system, next: start, read: 0 },
    };
    let (mut sequence, mut replaced, mut revoked) = (journal.sequence, Vec::new(), HashMap::new());
    while let Some(transaction) = log.transaction(sequence)? {
        replaced.extend(transaction.replaced.into_iter().map(|(block, to)| (block, to, sequence)));
        // Later transactions come later: what is remembered is the last one that revoked a block.
        revoked.extend(transaction.revoked.into_iter().map(|block| (block, sequence)));
        if revoked.len() > REVOCATIONS {
            return Err(Ext4Error::Damaged("its journal revokes more than any journal"));
        }
        sequence = sequence.wrapping_add(1);
    }
    let is_valid = |block: &u64, by: u32| {
        // Sequence numbers go round, too.
        let is_revoked = revoked.get(block).is_some_and(|last| last.wrapping_sub(by) as i32 >= 0);
        *block < system.superblock.blocks && !is_revoked
    };
    let replaced = replaced.into_iter().filter(|(block, _, by)| is_valid(block, *by));
    Ok(replaced.map(|(block, to, _)| (block, to)).collect())
}

struct Journal {
    /// Where its pieces are: the first block in the journal, the number of blocks, the first in the file system.
    pieces: Vec<(u64, u64, u64)>,
    /// The first block of the log, and the one behind its last.
    first: u64,
    end: u64,
    /// Where the first transaction is, and its number; 0 if there is none.
    start: u64,
    sequence: u32,
    features: u32,
    /// What checksums begin with, if there are any.
    seed: Option<u32>,
}

impl Journal {
    fn open(system: &FileSystem, inode: u32) -> Result<Self, Ext4Error> {
        let damaged = || Ext4Error::Damaged("its journal is damaged");
        let inode = system.inode(inode)?;
        if inode.kind != Kind::File {
            return Err(damaged());
        }
        let (mut pieces, mut extents) = (Vec::new(), Extents::of(system, &inode)?);
        while let Some(extent) = extents.advance()? {
            pieces.push((extent.first, extent.blocks, extent.at.ok_or_else(damaged)?));
            if pieces.len() > PIECES {
                return Err(damaged());
            }
        }
        let mut journal = Self { pieces, first: 0, end: 1, start: 0, sequence: 0, features: 0, seed: None };
        let mut block = vec![0; system.superblock.block_bytes];
        journal.read(system, 0, &mut block)?;
        let kind = be32(&block, 4);
        if be32(&block, 0) != MAGIC || !matches!(kind, SUPERBLOCK_1 | SUPERBLOCK_2) {
            return Err(damaged());
        }
        journal.features = if kind == SUPERBLOCK_2 { be32(&block, 0x28) } else { 0 };
        if journal.features & !UNDERSTOOD != 0 {
            return Err(Ext4Error::Unknown("its journal has features that are not understood"));
        }
        if journal.features & (CSUM_V2 | CSUM_V3) != 0 {
            if sum_without(!0, &block[..1024], 0xfc) != be32(&block, 0xfc) {
                return Err(damaged());
            }
            journal.seed = Some(crc32c(!0, &block[0x30..0x30 + UUID_BYTES]));
        }
        (journal.first, journal.end) = (be32(&block, 0x14).into(), be32(&block, 0x10).into());
        (journal.start, journal.sequence) = (be32(&block, 0x1c).into(), be32(&block, 0x18));
        let log = journal.first..journal.end;
        let is_whole = be32(&block, 0xc) as usize == block.len()
            && (1..=BLOCKS).contains(&journal.end)
            && journal.first > 0
            && (journal.start == 0 || log.contains(&journal.start));
        if is_whole { Ok(journal) } else { Err(damaged()) }
    }

    /// The address of a block of the journal.
    fn address(&self, system: &FileSystem, block: u64) -> Result<u64, Ext4Error> {
        let behind = self.pieces.partition_point(|(first, ..)| *first <= block);
        let piece = behind.checked_sub(1).map(|index| self.pieces[index]);
        match piece {
            Some((first, blocks, at)) if block - first < blocks => {
                Ok((at + (block - first)) * system.block_bytes())
            }
            _ => Err(Ext4Error::Damaged("its journal has holes")),
        }
    }

    fn read(&self, system: &FileSystem, block: u64, to: &mut [u8]) -> Result<(), Ext4Error> {
        system.read_at(self.address(system, block)?, to)
    }
}

/// A walk along the log.
struct Log<'a> {
    journal: &'a Journal,
    system: &'a FileSystem,
    next: u64,
    /// How many blocks were read.
    read: u64,
}

#[derive(Default)]
struct Transaction {
    replaced: Vec<(u64, Replacement)>,
    revoked: Vec<u64>,
}

/// What a descriptor says about one of the blocks that follow it.
struct Tag {
    block: u64,
    flags: u32,
    sum: u32,
}

impl Log<'_> {
    /// The transaction of that number, if it is there with its end.
    fn transaction(&mut self, sequence: u32) -> Result<Option<Transaction>, Ext4Error> {
        let mut transaction = Transaction::default();
        while let Some((_, block)) = self.block()? {
            let kind = be32(&block, 4);
            if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
                break;
            }
            let is_sound = match self.journal.seed {
                None => true,
                Some(seed) if kind == COMMIT => sum_without(seed, &block, 0x10) == be32(&block, 0x10),
                Some(seed) => {
                    let tail = block.len() - 4;
                    sum_without(seed, &block, tail) == be32(&block, tail)
                }
            };
            match kind {
                _ if !is_sound => break,
                DESCRIPTOR => {
                    for tag in self.tags(&block) {
                        let Some((at, data)) = self.block()? else { return Ok(None) };
                        if !self.is_sound(&tag, sequence, &data) {
                            return Ok(None);
                        }
                        let escaped = tag.flags & ESCAPED != 0;
                        transaction.replaced.push((tag.block, Replacement { at, escaped }));
                    }
                }
                REVOCATION => {
                    self.revocations(&block, &mut transaction.revoked);
                    if transaction.revoked.len() > REVOCATIONS {
                        break;
                    }
                }
                COMMIT => return Ok(Some(transaction)),
                _ => break,
            }
        }
        Ok(None)
    }

    /// The next block and its address, until the log has gone round.
    fn block(&mut self) -> Result<Option<(u64, Vec<u8>)>, Ext4Error> {
        let Journal { first, end, .. } = *self.journal;
        if self.read == end - first {
            return Ok(None);
        }
        let at = self.journal.address(self.system, self.next)?;
        let mut block = vec![0; self.system.superblock.block_bytes];
        self.system.read_at(at, &mut block)?;
        self.read += 1;
        self.next = if self.next + 1 == end { first } else { self.next + 1 };
        Ok(Some((at, block)))
    }

    fn tags(&self, block: &[u8]) -> Vec<Tag> {
        let features = self.journal.features;
        let (is_third, is_wide) = (features & CSUM_V3 != 0, features & WIDE != 0);
        let size = match is_third {
            true => 16,
            false => 8 + if is_wide { 4 } else { 0 } + if features & CSUM_V2 != 0 { 2 } else { 0 },
        };
        let end = block.len() - if self.journal.seed.is_some() { 4 } else { 0 };
        let (mut tags, mut at) = (Vec::new(), HEAD);
        while at + size <= end {
            let tag = &block[at..at + size];
            let (flags, sum) = match is_third {
                true => (be32(tag, 4), be32(tag, 12)),
                false => (be16(tag, 6).into(), be16(tag, 4).into()),
            };
            let high = if is_wide { be32(tag, 8) } else { 0 };
            tags.push(Tag { block: wide(high, be32(tag, 0)), flags, sum });
            at += size + if flags & SAME_UUID == 0 { UUID_BYTES } else { 0 };
            if flags & LAST != 0 {
                break;
            }
        }
        tags
    }

    fn is_sound(&self, tag: &Tag, sequence: u32, data: &[u8]) -> bool {
        let Some(seed) = self.journal.seed else { return true };
        let sum = crc32c(crc32c(seed, &sequence.to_be_bytes()), data);
        tag.sum == if self.journal.features & CSUM_V3 != 0 { sum } else { sum & 0xffff }
    }

    fn revocations(&self, block: &[u8], revoked: &mut Vec<u64>) {
        let size = if self.journal.features & WIDE != 0 { 8 } else { 4 };
        let end = (be32(block, HEAD) as usize).min(block.len());
        let numbers = block.get(HEAD + 4..end).unwrap_or_default().chunks_exact(size);
        revoked.extend(numbers.map(|number| match size {
            8 => wide(be32(number, 0), be32(number, 4)),
            _ => be32(number, 0).into(),
        }));
    }
}

/// The checksum of a block in which the checksum itself is zero.
fn sum_without(seed: u32, block: &[u8], at: usize) -> u32 {
    crc32c(crc32c(crc32c(seed, &block[..at]), &[0; 4]), &block[at + 4..])
}
