//! The contents of a file. Where there is no block, and where one was never written, there are zeros.

use super::{
    Ext4Error, FileSystem, Inode,
    extents::{Extent, Extents},
};
use std::io::{self, Read};

/// The contents of a file, from its beginning to its end.
#[derive(Debug)]
pub struct Contents<'a> {
    system: &'a FileSystem,
    extents: Extents<'a>,
    /// The run that holds what is read next, or begins behind it.
    run: Option<Extent>,
    position: u64,
    end: u64,
    failure: Option<Ext4Error>,
}

impl<'a> Contents<'a> {
    pub(super) fn of(system: &'a FileSystem, inode: &'a Inode) -> Result<Self, Ext4Error> {
        Self::with(system, inode, Extents::of(system, inode)?)
    }

    pub(super) fn with(
        system: &'a FileSystem,
        inode: &'a Inode,
        mut extents: Extents<'a>,
    ) -> Result<Self, Ext4Error> {
        let run = extents.advance()?;
        Ok(Self { system, extents, run, position: 0, end: inode.bytes, failure: None })
    }

    /// Why reading failed, which the error of [`Read`] does not say.
    pub fn failure(&mut self) -> Option<Ext4Error> {
        self.failure.take()
    }

    /// Reads as many bytes as are asked for, which may not be more than there are.
    pub(super) fn fill(&mut self, to: &mut [u8]) -> Result<(), Ext4Error> {
        let mut filled = 0;
        while filled < to.len() {
            filled += self.next(&mut to[filled..])?;
        }
        Ok(())
    }

    /// Reads some bytes; none at the end.
    fn next(&mut self, to: &mut [u8]) -> Result<usize, Ext4Error> {
        let size = self.system.block_bytes();
        let block = self.position / size;
        while self.run.is_some_and(|run| run.end() <= block) {
            self.run = self.extents.advance()?;
        }
        let (until, at) = match self.run {
            Some(run) if run.first <= block => (run.end() * size, run.at.map(|at| at + (block - run.first))),
            Some(run) => (run.first * size, None),
            None => (self.end, None),
        };
        let most = until.min(self.end) - self.position;
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(to.len());
        let to = &mut to[..count];
        match at {
            Some(at) => self.system.read_at(at * size + self.position % size, to)?,
            None => to.fill(0),
        }
        self.position += count as u64;
        Ok(count)
    }
}

impl Read for Contents<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.next(to).map_err(|error| {
            let shown = io::Error::other(error.to_string());
            self.failure = Some(error);
            shown
        })
    }
}
