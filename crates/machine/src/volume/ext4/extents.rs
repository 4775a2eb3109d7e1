//! Which blocks hold the contents of a file: a tree of runs, in the order of the file.

use super::{
    Ext4Error, FileSystem, Inode,
    bytes::{crc32c, le16, le32, wide},
    superblock::BEYOND,
};

const MAGIC: u16 = 0xf30a;

/// The size of a node's header and of each of its entries.
const ENTRY: usize = 12;

/// Trees are no deeper.
const DEPTH: u16 = 5;

/// A longer run is one of unwritten blocks, whose length is what is beyond this.
const LONGEST: u16 = 1 << 15;

/// A run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The number of its first block in the file.
    pub(super) first: u64,
    /// How many there are.
    pub(super) blocks: u64,
    /// Its first block in the file system; nothing if it was set aside and never written, and so holds zeros.
    pub(super) at: Option<u64>,
}

impl Extent {
    pub(super) fn end(&self) -> u64 {
        self.first + self.blocks
    }
}

/// The runs of a file, one after the other.
#[derive(Debug)]
pub(super) struct Extents<'a> {
    system: &'a FileSystem,
    seed: Option<u32>,
    /// From the root to where the walk is.
    way: Vec<Node>,
    /// The first block of the file that the next run may hold.
    next: u64,
    /// Whether this is the first walk.
    is_first: bool,
}

#[derive(Debug, Clone)]
struct Node {
    bytes: Vec<u8>,
    entries: usize,
    next: usize,
    /// Above the leaves.
    depth: u16,
}

impl<'a> Extents<'a> {
    pub(super) fn of(system: &'a FileSystem, inode: &'a Inode) -> Result<Self, Ext4Error> {
        let root = Node::read(inode.extents()?.to_vec())?;
        if root.depth > DEPTH {
            return Err(Ext4Error::Damaged("its extents are nested too deep"));
        }
        Ok(Self { system, seed: inode.seed, way: vec![root], next: 0, is_first: true })
    }

    /// Walks to the end, and begins again.
    pub(super) fn check(mut self) -> Result<Self, Ext4Error> {
        let way = self.way.clone();
        while self.advance()?.is_some() {}
        Ok(Self { way, next: 0, is_first: false, ..self })
    }

    /// The next run.
    ///
    /// Runs do not overlap and nodes are not empty, so that each step gets forward in the file: the walk ends.
    pub(super) fn advance(&mut self) -> Result<Option<Extent>, Ext4Error> {
        while let Some(node) = self.way.last_mut() {
            if node.next == node.entries {
                self.way.pop();
                continue;
            }
            node.next += 1;
            let entry = &node.bytes[ENTRY * node.next..ENTRY * (node.next + 1)];
            if node.depth > 0 {
                let (block, depth) = (wide(le16(entry, 8).into(), le32(entry, 4)), node.depth - 1);
                let child = self.child(block, depth)?;
                self.way.push(child);
                continue;
            }
            let length = le16(entry, 4);
            let is_written = length <= LONGEST;
            let blocks = u64::from(if is_written { length } else { length - LONGEST });
            let first = u64::from(le32(entry, 0));
            let at = wide(le16(entry, 6).into(), le32(entry, 8));
            if blocks == 0 || first < self.next || first + blocks > 1 << 32 {
                return Err(Ext4Error::Damaged("its extents contradict each other"));
            }
            if at == 0 || at + blocks > self.system.superblock.blocks {
                return Err(BEYOND);
            }
            self.next = first + blocks;
            return Ok(Some(Extent { first, blocks, at: is_written.then_some(at) }));
        }
        Ok(None)
    }

    fn child(&self, block: u64, depth: u16) -> Result<Node, Ext4Error> {
        let mut bytes = vec![0; self.system.superblock.block_bytes];
        if block == 0 {
            return Err(BEYOND);
        }
        // A second walk goes as far as the first one did.
        if self.is_first {
            let walks = &self.system.walks;
            let left = walks.get().checked_sub(1);
            walks.set(left.ok_or(Ext4Error::Damaged("the volume's files share their extents"))?);
        }
        self.system.read_block(block, &mut bytes)?;
        // Behind as many entries as there is space for.
        let sum = ENTRY * (1 + usize::from(le16(&bytes, 4)));
        if let Some(seed) = self.seed
            && (sum + 4 > bytes.len() || crc32c(seed, &bytes[..sum]) != le32(&bytes, sum))
        {
            return Err(Ext4Error::Damaged("the checksum of its extents is wrong"));
        }
        let node = Node::read(bytes)?;
        if node.depth != depth || node.entries == 0 {
            return Err(Ext4Error::Damaged("its extents are no tree"));
        }
        Ok(node)
    }
}

impl Node {
    fn read(bytes: Vec<u8>) -> Result<Self, Ext4Error> {
        let (entries, depth) = (usize::from(le16(&bytes, 2)), le16(&bytes, 6));
        if le16(&bytes, 0) != MAGIC || ENTRY * (1 + entries) > bytes.len() {
            return Err(Ext4Error::Damaged("its extents are no tree"));
        }
        Ok(Self { bytes, entries, next: 0, depth })
    }
}
