//! Reads a volume without mounting it, and writes what is in it as a tar archive.
//!
//! Links stay links, a file of several names stays one, and nothing is made on the host but the archive. What
//! cannot be read, or claims more than a volume holds, is left out and named: the rest is exported all the same.

use super::{
    Access, VolumeError, Volumes,
    ext4::{Ext4Error, FileSystem, Folder, Inode, Kind, ROOT},
};
use casemate_proto::ids::Name;
use serde::Serialize;
use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};
use tar::{Builder, EntryType, Header};

/// Folders that are nested deeper are left out.
const DEPTH: usize = 128;

/// The most files and folders of one archive.
const ENTRIES: u64 = 4_000_000;

/// How much more than its size a volume's files may claim together: those with holes have contents that take no
/// space.
const HOLES: u64 = 16;

/// The most bytes of paths that are remembered at one time.
const PATH_BYTES: usize = 256 << 20;

/// How many of those that were not read are named.
const NAMED: usize = 100;

/// How long a link the archive holds beside its name.
const SHORT_LINK: usize = 100;

/// What was exported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Files, folders and links.
    pub entries: u64,
    /// The files' contents, in bytes.
    pub bytes: u64,
    /// Sockets, named pipes and devices, which are left out.
    pub left_out: u64,
    /// How many files and folders could not be exported.
    pub unread: u64,
    /// The first of those.
    pub errors: Vec<Unread>,
}

/// Something that could not be exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// Where it is in the volume.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// Why a volume could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Its file system, or the image that holds it, cannot be read.
    #[error("cannot read {path:?} of volume {name}")]
    Read {
        /// Which volume.
        name: Name,
        /// Where in it.
        path: String,
        /// Why.
        #[source]
        source: Ext4Error,
    },
    /// It claims more than it can hold.
    #[error("volume {name} cannot be exported: {what}")]
    Excessive {
        /// Which volume.
        name: Name,
        /// What is too much.
        what: String,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

impl Volumes {
    /// Writes what is in a volume to `to`, as a tar archive. No machine may use it meanwhile.
    pub fn export(&self, name: &Name, to: impl Write) -> Result<Exported, ExportError> {
        let volume = self.get(name)?;
        let image = self.open_image(name, Access::Shared)?;
        let mut archive = Builder::new(to);
        let exported = write_archive(name, &image, volume.size_bytes, &mut archive)?;
        archive.into_inner().and_then(|mut to| to.flush()).map_err(ExportError::Write)?;
        Ok(exported)
    }
}

/// Writes what is in the image of a volume of so many bytes.
fn write_archive<W: Write>(
    name: &Name,
    image: &File,
    bytes: u64,
    archive: &mut Builder<W>,
) -> Result<Exported, ExportError> {
    // The lock is that of the opened file: it is held as long as either is open.
    let image = image.try_clone().map_err(|source| super::failed("open", name)(source))?;
    let unreadable = |source| ExportError::Read { name: name.clone(), path: "/".to_owned(), source };
    let system = FileSystem::open(image, bytes).map_err(unreadable)?;
    let mut export = Export {
        name,
        system: &system,
        limit: bytes.saturating_mul(HOLES),
        archive,
        exported: Exported::default(),
        folders: HashSet::from([ROOT]),
        folder_bytes: bytes,
        first_names: HashMap::new(),
        path_bytes: 0,
    };
    export.everything()?;
    Ok(export.exported)
}

struct Export<'a, W: Write> {
    name: &'a Name,
    system: &'a FileSystem,
    /// The most bytes of contents.
    limit: u64,
    archive: &'a mut Builder<W>,
    exported: Exported,
    /// The folders that were met: one that is met again would hold itself.
    folders: HashSet<u32>,
    /// What is left for folders, which share no blocks.
    folder_bytes: u64,
    /// The first name of each file that has several.
    first_names: HashMap<u32, Vec<u8>>,
    path_bytes: usize,
}

/// Why something is not exported.
enum Trouble {
    /// It alone.
    Entry(String),
    /// It and all that comes after it.
    All(ExportError),
}

impl<W: Write> Export<'_, W> {
    fn everything(&mut self) -> Result<(), ExportError> {
        let mut open: Vec<(Vec<u8>, u32)> = vec![(Vec::new(), ROOT)];
        while let Some((path, number)) = open.pop() {
            self.path_bytes = self.path_bytes.saturating_sub(path.len());
            let below = open.len();
            let listed = self.folder(&path, number, &mut open);
            self.settle(&path, listed)?;
            // Taken from the end: the first one is next.
            open[below..].reverse();
        }
        Ok(())
    }

    fn folder(&mut self, path: &[u8], number: u32, open: &mut Vec<(Vec<u8>, u32)>) -> Result<(), Trouble> {
        let failed = self.failed(path);
        let folder = self.system.inode(number).map_err(&failed)?;
        if folder.kind != Kind::Folder {
            return Err(Trouble::Entry("it is no folder".to_owned()));
        }
        let left = self.folder_bytes.checked_sub(folder.bytes);
        self.folder_bytes = left
            .ok_or_else(|| Trouble::Entry("the volume's folders claim more bytes than it has".to_owned()))?;
        let mut names = Folder::of(self.system, &folder).map_err(&failed)?;
        while let Some((name, number)) = names.advance().map_err(&failed)? {
            let between: &[u8] = if path.is_empty() { b"" } else { b"/" };
            let path = [path, between, &name].concat();
            let written = self.entry(&path, number, open);
            self.settle(&path, written).map_err(Trouble::All)?;
        }
        Ok(())
    }

    /// Writes one file, folder or link; what is in a folder comes later.
    fn entry(&mut self, path: &[u8], number: u32, open: &mut Vec<(Vec<u8>, u32)>) -> Result<(), Trouble> {
        if self.exported.entries + self.exported.left_out + self.exported.unread >= ENTRIES {
            let what = format!("it holds more than {ENTRIES} files and folders");
            return Err(Trouble::All(ExportError::Excessive { name: self.name.clone(), what }));
        }
        let inode = self.system.inode(number).map_err(self.failed(path))?;
        let mut header = Header::new_gnu();
        header.set_mode(inode.mode & 0o777);
        header.set_uid(u64::from(inode.uid));
        header.set_gid(u64::from(inode.gid));
        header.set_mtime(u64::try_from(inode.modified).unwrap_or(0));
        header.set_size(0);
        match inode.kind {
            Kind::Folder => {
                if path.iter().filter(|&&byte| byte == b'/').count() >= DEPTH {
                    return Err(Trouble::Entry(format!("it is nested deeper than {DEPTH} folders")));
                }
                if !self.folders.insert(number) {
                    return Err(Trouble::Entry("it is a folder with two names".to_owned()));
                }
                self.remember(path)?;
                open.push((path.to_vec(), number));
                header.set_entry_type(EntryType::Directory);
                self.archive.append_data(&mut header, inside(path), io::empty()).map_err(unwritten)?;
            }
            Kind::Link => {
                let leads_to = self.system.link(&inode).map_err(self.failed(path))?;
                header.set_entry_type(EntryType::Symlink);
                self.link(header, path, &leads_to)?;
            }
            Kind::File => self.file(header, path, &inode)?,
            Kind::Special => {
                self.exported.left_out += 1;
                return Ok(());
            }
        }
        self.exported.entries += 1;
        Ok(())
    }

    fn file(&mut self, mut header: Header, path: &[u8], inode: &Inode) -> Result<(), Trouble> {
        if let Some(first) = self.first_names.get(&inode.number).cloned() {
            header.set_entry_type(EntryType::Link);
            return self.link(header, path, &first);
        }
        if inode.bytes > self.limit.saturating_sub(self.exported.bytes) {
            let what = format!("it and what is before it claim more than {HOLES} times the volume's size");
            return Err(Trouble::Entry(what));
        }
        // The header is written before the contents, and says how many there are.
        let mut contents = self.system.contents(inode).map_err(self.failed(path))?;
        if inode.links > 1 {
            self.remember(path)?;
            self.first_names.insert(inode.number, path.to_vec());
        }
        header.set_entry_type(EntryType::Regular);
        header.set_size(inode.bytes);
        let copied = self.archive.append_data(&mut header, inside(path), &mut contents);
        if let Some(source) = contents.failure() {
            return Err(Trouble::All(self.unreadable(path, source)));
        }
        copied.map_err(unwritten)?;
        self.exported.bytes += inode.bytes;
        Ok(())
    }

    fn link(&mut self, mut header: Header, path: &[u8], leads_to: &[u8]) -> Result<(), Trouble> {
        let written = match leads_to.len() {
            // As it is, however odd.
            ..=SHORT_LINK => header
                .set_link_name_literal(leads_to)
                .and_then(|()| self.archive.append_data(&mut header, inside(path), io::empty())),
            _ => self.archive.append_link(&mut header, inside(path), OsStr::from_bytes(leads_to)),
        };
        written.map_err(unwritten)
    }

    fn remember(&mut self, path: &[u8]) -> Result<(), Trouble> {
        if self.path_bytes + path.len() > PATH_BYTES {
            return Err(Trouble::Entry("too many long paths are to be remembered before it".to_owned()));
        }
        self.path_bytes += path.len();
        Ok(())
    }

    /// Writes down what could not be exported, if the rest can.
    fn settle(&mut self, path: &[u8], done: Result<(), Trouble>) -> Result<(), ExportError> {
        match done {
            Ok(()) => {}
            Err(Trouble::All(error)) => return Err(error),
            Err(Trouble::Entry(reason)) => {
                self.exported.unread += 1;
                if self.exported.errors.len() < NAMED {
                    self.exported.errors.push(Unread { path: shown(path), reason });
                }
            }
        }
        Ok(())
    }

    fn failed(&self, path: &[u8]) -> impl Fn(Ext4Error) -> Trouble + use<W> {
        let (name, path) = (self.name.clone(), shown(path));
        move |source| match source {
            Ext4Error::Damaged(what) | Ext4Error::Unknown(what) => Trouble::Entry(what.to_owned()),
            source @ Ext4Error::Io(_) => {
                Trouble::All(ExportError::Read { name: name.clone(), path: path.clone(), source })
            }
        }
    }

    fn unreadable(&self, path: &[u8], source: Ext4Error) -> ExportError {
        ExportError::Read { name: self.name.clone(), path: shown(path), source }
    }
}

fn unwritten(error: io::Error) -> Trouble {
    Trouble::All(ExportError::Write(error))
}

/// A path of the archive: relative to wherever it is unpacked.
fn inside(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// A path of the volume, as people read it.
fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}
