//! Members of a tar archive in GNU's format, whose names are bytes of any kind and length.

use crate::volume::ext4::Inode;
use std::io::{self, Read, Write};
use tar::{Builder, EntryType, Header};

/// What stands in the place of a name that has a member of its own.
const LONG: &[u8] = b"././@LongLink";

/// How long a name the header itself holds, of a member and of what a link leads to.
const NAME_BYTES: usize = 100;

/// An archive that is written.
pub(super) struct Archive<W: Write>(Builder<W>);

/// Something that an archive holds.
pub(super) struct Member<'a> {
    /// Where: relative to wherever it is unpacked.
    pub(super) path: &'a [u8],
    pub(super) kind: EntryType,
    /// What is known about it.
    pub(super) inode: &'a Inode,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self(Builder::new(to))
    }

    /// Writes a folder.
    pub(super) fn empty(&mut self, member: &Member<'_>) -> io::Result<()> {
        let header = self.header(member)?;
        self.append(header, io::empty())
    }

    /// Writes a link of either kind, which leads where it leads, however odd.
    pub(super) fn link(&mut self, member: &Member<'_>, leads_to: &[u8]) -> io::Result<()> {
        self.long(EntryType::GNULongLink, leads_to, NAME_BYTES)?;
        let mut header = self.header(member)?;
        fill(&mut header.as_old_mut().linkname, leads_to);
        self.append(header, io::empty())
    }

    /// Writes a file, of whose contents there have to be as many as it says.
    pub(super) fn file(&mut self, member: &Member<'_>, contents: impl Read) -> io::Result<()> {
        let mut header = self.header(member)?;
        header.set_size(member.inode.bytes);
        self.append(header, contents)
    }

    /// Writes the end.
    pub(super) fn finish(self) -> io::Result<()> {
        self.0.into_inner()?.flush()
    }

    /// The header of a member, after the member that holds a long name of it.
    fn header(&mut self, member: &Member<'_>) -> io::Result<Header> {
        let Member { path, kind, inode } = member;
        self.long(EntryType::GNULongName, path, NAME_BYTES)?;
        let mut header = Header::new_gnu();
        fill(&mut header.as_old_mut().name, path);
        header.set_entry_type(*kind);
        header.set_mode(inode.mode & 0o777);
        header.set_uid(u64::from(inode.uid));
        header.set_gid(u64::from(inode.gid));
        header.set_mtime(u64::try_from(inode.modified).unwrap_or(0));
        header.set_size(0);
        Ok(header)
    }

    /// Writes a name that has no place in the header of what it names.
    fn long(&mut self, kind: EntryType, name: &[u8], place: usize) -> io::Result<()> {
        if name.len() <= place {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        fill(&mut header.as_old_mut().name, LONG);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        // With the zero at its end.
        header.set_size(name.len() as u64 + 1);
        self.append(header, name.chain(&[0][..]))
    }

    fn append(&mut self, mut header: Header, contents: impl Read) -> io::Result<()> {
        header.set_cksum();
        self.0.append(&header, contents)
    }
}

/// Puts as much of a name into a field as it has place for.
fn fill(field: &mut [u8], name: &[u8]) {
    let count = name.len().min(field.len());
    field[..count].copy_from_slice(&name[..count]);
}
