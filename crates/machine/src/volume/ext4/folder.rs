//! The names in a folder.

use super::{
    Contents, Ext4Error, FileSystem, Inode,
    bytes::{crc32c, le16, le32},
};

/// What stands before a name: inode, length of the entry, length of the name, kind.
const HEAD: usize = 8;

/// What stands at the end of a block that has a checksum, looking like an entry without a name.
const TAIL: usize = 12;
const TAIL_KIND: u8 = 0xde;

/// What is in a folder, block by block.
#[derive(Debug)]
pub struct Folder<'a> {
    contents: Contents<'a>,
    seed: Option<u32>,
    block: Vec<u8>,
    /// Where the next entry begins.
    at: usize,
    blocks_left: u64,
}

impl<'a> Folder<'a> {
    /// What is in a folder.
    pub fn of(system: &'a FileSystem, inode: &'a Inode) -> Result<Self, Ext4Error> {
        let size = system.superblock.block_bytes;
        if !inode.bytes.is_multiple_of(size as u64) {
            return Err(Ext4Error::Damaged("the folder has an impossible size"));
        }
        let contents = Contents::of(system, inode)?;
        let blocks_left = inode.bytes / size as u64;
        Ok(Self { contents, seed: inode.seed, block: vec![0; size], at: size, blocks_left })
    }

    /// The next name and its inode; `.` and `..` are left out.
    pub fn advance(&mut self) -> Result<Option<(Vec<u8>, u32)>, Ext4Error> {
        loop {
            if self.at == self.block.len() {
                if self.blocks_left == 0 {
                    return Ok(None);
                }
                self.load()?;
            }
            let rest = &self.block[self.at..];
            let damaged = Ext4Error::Damaged("the folder cannot be read to its end");
            if rest.len() < HEAD {
                return Err(damaged);
            }
            let (inode, length, name_bytes) =
                (le32(rest, 0), usize::from(le16(rest, 4)), usize::from(rest[6]));
            let least = HEAD + if inode == 0 { 0 } else { name_bytes };
            if !length.is_multiple_of(4) || !(least..=rest.len()).contains(&length) {
                return Err(damaged);
            }
            self.at += length;
            if inode == 0 {
                continue;
            }
            let name = &rest[HEAD..HEAD + name_bytes];
            match name {
                b"." | b".." => {}
                _ if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) => {
                    return Err(Ext4Error::Damaged("the folder holds a name that no file can have"));
                }
                _ => return Ok(Some((name.to_vec(), inode))),
            }
        }
    }

    fn load(&mut self) -> Result<(), Ext4Error> {
        // Its size is one of whole blocks: it does not end before.
        self.contents.fill(&mut self.block)?;
        (self.at, self.blocks_left) = (0, self.blocks_left - 1);
        let (entries, tail) = self.block.split_at(self.block.len() - TAIL);
        // The blocks of its index have theirs elsewhere, and hold no names but the first two.
        let has_sum = le32(tail, 0) == 0 && usize::from(le16(tail, 4)) == TAIL && tail[7] == TAIL_KIND;
        match self.seed {
            Some(seed) if has_sum && crc32c(seed, entries) != le32(tail, 8) => {
                Err(Ext4Error::Damaged("the checksum of the folder is wrong"))
            }
            _ => Ok(()),
        }
    }
}
