//! Reads a volume without mounting it, and writes what is in it as a tar archive.
//!
//! Links stay links, a file of several names stays one, and nothing is made on the host but the archive. Symbolic
//! links come last: nothing is unpacked through one, whatever names are the same to whoever unpacks. What
//! cannot be read, or claims more than a volume holds, is left out and named: the rest is exported all the same.

mod archive;

use super::{
    Access, VolumeError, Volumes,
    ext4::{Ext4Error, FileSystem, Folder, Inode, Kind, ROOT},
};
use archive::{Archive, Member};
use casemate_proto::ids::Name;
use serde::Serialize;
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Write},
    ops::ControlFlow,
};
use tar::EntryType;

/// Folders that are nested deeper are left out.
const DEPTH: usize = 128;

/// How much more than its size a volume's files may claim together: those with holes have contents that take no
/// space.
const HOLES: u64 = 16;

/// The most bytes of names and paths that are remembered at one time, and what remembering one takes beside them.
const PATH_BYTES: usize = 512 << 20;
const REMEMBERED: usize = 48;

/// How many of those that were not read are named.
const NAMED: usize = 100;

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
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

impl Volumes {
    /// Writes what is in a volume to `to`, as a tar archive. No machine may use it meanwhile.
    pub fn export(&self, name: &Name, to: impl Write) -> Result<Exported, ExportError> {
        let volume = self.get(name)?;
        let image = self.open_image(name, Access::Shared)?;
        let mut archive = Archive::new(to);
        let exported = write_archive(name, &image, volume.size_bytes, &mut archive)?;
        archive.finish().map_err(ExportError::Write)?;
        Ok(exported)
    }
}

/// Writes what is in the image of a volume of so many bytes.
fn write_archive<W: Write>(
    name: &Name,
    image: &File,
    bytes: u64,
    archive: &mut Archive<W>,
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
        names_left: system.inodes(),
        linked: HashSet::new(),
        links: Vec::new(),
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
    archive: &'a mut Archive<W>,
    exported: Exported,
    /// The folders that were met: one that is met again would hold itself.
    folders: HashSet<u32>,
    /// What is left for folders, which share no blocks.
    folder_bytes: u64,
    /// How many names there can still be: one for each inode, and the further ones of those with several.
    names_left: u64,
    /// What was met of several names, folders aside.
    linked: HashSet<u32>,
    /// Symbolic links, which come last.
    links: Vec<(Vec<u8>, u32)>,
    /// The first name of each file that has several.
    first_names: HashMap<u32, Vec<u8>>,
    path_bytes: usize,
}

/// Why something is not exported.
enum Trouble {
    /// It alone.
    Entry(String),
    /// It, and what was not looked at yet.
    Rest(String),
    /// It and all that comes after it.
    All(ExportError),
}

impl<W: Write> Export<'_, W> {
    fn everything(&mut self) -> Result<(), ExportError> {
        let mut open: Vec<(Vec<u8>, u32)> = vec![(Vec::new(), ROOT)];
        while let Some((path, number)) = open.pop() {
            // That it was met stays remembered.
            self.path_bytes = self.path_bytes.saturating_sub(path.len());
            let below = open.len();
            let listed = self.folder(&path, number, &mut open);
            if self.settle(&path, listed)?.is_break() {
                break;
            }
            // Taken from the end: the first one is next.
            open[below..].reverse();
        }
        for (path, number) in std::mem::take(&mut self.links) {
            let written = self.link(&path, number);
            self.settle(&path, written).map(drop)?;
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
        let mut entries = Folder::of(self.system, &folder).map_err(&failed)?;
        let mut names = HashSet::new();
        let mut listed = Ok(());
        while listed.is_ok() {
            listed = match entries.advance() {
                Ok(None) => break,
                Ok(Some(_)) if self.names_left == 0 => Err(Trouble::Rest(
                    "the volume names more files than it has, and the rest is left out".to_owned(),
                )),
                Ok(Some((name, number))) => self.named(path, name, number, &mut names, open),
                Err(error) => Err(failed(error)),
            };
        }
        let remembered: usize = names.iter().map(|name| name.len() + REMEMBERED).sum();
        self.path_bytes -= remembered;
        listed
    }

    /// Writes one entry of a folder, unless the folder had that name before: whoever unpacks a link and then a
    /// folder of the same name follows the link.
    fn named(
        &mut self,
        folder: &[u8],
        name: Vec<u8>,
        number: u32,
        names: &mut HashSet<Vec<u8>>,
        open: &mut Vec<(Vec<u8>, u32)>,
    ) -> Result<(), Trouble> {
        let between: &[u8] = if folder.is_empty() { b"" } else { b"/" };
        let path = [folder, between, &name].concat();
        let written = match names.contains(&name) {
            true => Err(Trouble::Entry("its folder holds this name twice".to_owned())),
            false => self.remember(&name).and_then(|()| {
                names.insert(name);
                self.entry(&path, number, open)
            }),
        };
        self.names_left -= 1;
        // What ends all of it is found out between two names.
        self.settle(&path, written).map(drop).map_err(Trouble::All)
    }

    /// Writes one file or folder; what is in a folder, and symbolic links, come later.
    fn entry(&mut self, path: &[u8], number: u32, open: &mut Vec<(Vec<u8>, u32)>) -> Result<(), Trouble> {
        let inode = self.system.inode(number).map_err(self.failed(path))?;
        if inode.kind != Kind::Folder && inode.links > 1 && !self.linked.contains(&number) {
            self.remember(&[])?;
            self.linked.insert(number);
            self.names_left += u64::from(inode.links) - 1;
        }
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
                let folder = Member { path, kind: EntryType::Directory, inode: &inode };
                self.archive.empty(&folder).map_err(unwritten)?;
            }
            Kind::Link => {
                self.remember(path)?;
                self.links.push((path.to_vec(), number));
                return Ok(());
            }
            Kind::File => self.file(path, &inode)?,
            Kind::Special => {
                self.exported.left_out += 1;
                return Ok(());
            }
        }
        self.exported.entries += 1;
        Ok(())
    }

    fn file(&mut self, path: &[u8], inode: &Inode) -> Result<(), Trouble> {
        if let Some(first) = self.first_names.get(&inode.number) {
            let link = Member { path, kind: EntryType::Link, inode };
            return self.archive.link(&link, first).map_err(unwritten);
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
        let copied = self.archive.file(&Member { path, kind: EntryType::Regular, inode }, &mut contents);
        if let Some(source) = contents.failure() {
            return Err(Trouble::All(self.unreadable(path, source)));
        }
        copied.map_err(unwritten)?;
        self.exported.bytes += inode.bytes;
        Ok(())
    }

    fn link(&mut self, path: &[u8], number: u32) -> Result<(), Trouble> {
        let inode = self.system.inode(number).map_err(self.failed(path))?;
        let leads_to = self.system.link(&inode).map_err(self.failed(path))?;
        let link = Member { path, kind: EntryType::Symlink, inode: &inode };
        self.archive.link(&link, &leads_to).map_err(unwritten)?;
        self.exported.entries += 1;
        Ok(())
    }

    fn remember(&mut self, path: &[u8]) -> Result<(), Trouble> {
        let bytes = path.len() + REMEMBERED;
        if self.path_bytes + bytes > PATH_BYTES {
            return Err(Trouble::Entry("too many paths are to be remembered before it".to_owned()));
        }
        self.path_bytes += bytes;
        Ok(())
    }

    /// Writes down what could not be exported, and says whether there is more to be done.
    fn settle(&mut self, path: &[u8], done: Result<(), Trouble>) -> Result<ControlFlow<()>, ExportError> {
        let (reason, next) = match done {
            Ok(()) => return Ok(ControlFlow::Continue(())),
            Err(Trouble::All(error)) => return Err(error),
            Err(Trouble::Entry(reason)) => (reason, ControlFlow::Continue(())),
            Err(Trouble::Rest(reason)) => (reason, ControlFlow::Break(())),
        };
        self.exported.unread += 1;
        if next.is_break() && self.exported.errors.len() == NAMED {
            // Of what is missing, this is the most.
            self.exported.errors.pop();
        }
        if self.exported.errors.len() < NAMED {
            self.exported.errors.push(Unread { path: shown(path), reason });
        }
        Ok(next)
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

/// A path of the volume, as people read it.
fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}
