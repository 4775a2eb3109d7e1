//! Reads a volume without mounting it, and writes what is in it as a tar archive.
//!
//! What a server wrote is read by a library in safe Rust that changes nothing: links stay links, and nothing is
//! made on the host but the archive.

use super::{Access, VolumeError, Volumes};
use casemate_proto::ids::Name;
use ext4_view::{Ext4, Ext4Error, FileType, Metadata};
use serde::Serialize;
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};
use tar::{Builder, EntryType, Header};

/// A volume whose folders are nested deeper is damaged, or made to harm.
const DEPTH: usize = 128;

/// The most files and folders of one archive.
const ENTRIES: u64 = 4_000_000;

/// What was exported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Files, folders and links.
    pub entries: u64,
    /// The files' contents, in bytes.
    pub bytes: u64,
    /// Sockets, named pipes and devices, which are left out.
    pub left_out: u64,
}

/// Why a volume could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Its file system cannot be read.
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
        let held = self.open_image(name, Access::Shared)?;
        let mut export = Export {
            name,
            limit: volume.size_bytes,
            archive: Builder::new(to),
            exported: Exported::default(),
        };
        // Its journal is that of no machine yet.
        if self.was_used(name) {
            let opened = held.try_clone().map_err(|source| super::failed("open", name)(source))?;
            export.everything(opened)?;
        }
        export.archive.into_inner().and_then(|mut to| to.flush()).map_err(ExportError::Write)?;
        Ok(export.exported)
    }
}

struct Export<'a, W: Write> {
    name: &'a Name,
    /// The most bytes of contents.
    limit: u64,
    archive: Builder<W>,
    exported: Exported,
}

impl<W: Write> Export<'_, W> {
    fn everything(&mut self, image: File) -> Result<(), ExportError> {
        let volume = Ext4::load(Box::new(image)).map_err(self.unreadable(b"/"))?;
        let mut open: Vec<Vec<u8>> = vec![b"/".to_vec()];
        while let Some(folder) = open.pop() {
            let mut folders = Vec::new();
            for entry in volume.read_dir(&*folder).map_err(self.unreadable(&folder))? {
                let entry = entry.map_err(self.unreadable(&folder))?;
                let name = entry.file_name();
                let name: &[u8] = name.as_ref();
                if name == b"." || name == b".." {
                    continue;
                }
                let between: &[u8] = if folder.ends_with(b"/") { b"" } else { b"/" };
                let path = [&folder[..], between, name].concat();
                let meta = volume.symlink_metadata(&*path).map_err(self.unreadable(&path))?;
                self.one(&volume, &path, &meta)?;
                if meta.is_dir() {
                    folders.push(path);
                }
            }
            if folder.iter().filter(|&&byte| byte == b'/').count() > DEPTH && !folders.is_empty() {
                return Err(self.excessive(format!("its folders are nested deeper than {DEPTH}")));
            }
            open.extend(folders.into_iter().rev());
        }
        Ok(())
    }

    fn one(&mut self, volume: &Ext4, path: &[u8], meta: &Metadata) -> Result<(), ExportError> {
        let mut header = Header::new_gnu();
        header.set_mode(u32::from(meta.mode()) & 0o777);
        header.set_uid(u64::from(meta.uid()));
        header.set_gid(u64::from(meta.gid()));
        header.set_mtime(u64::try_from(meta.modified().seconds()).unwrap_or(0));
        header.set_size(0);
        // Relative to wherever it is unpacked.
        let inside = Path::new(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
        let written = match meta.file_type() {
            FileType::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.archive.append_data(&mut header, inside, io::empty())
            }
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let leads_to = volume.read_link(path).map_err(self.unreadable(path))?;
                let leads_to: &[u8] = leads_to.as_ref();
                self.archive.append_link(&mut header, inside, OsStr::from_bytes(leads_to))
            }
            FileType::Regular => {
                // Files with holes can claim any size.
                let left = self.limit.saturating_sub(self.exported.bytes);
                if meta.len() > left {
                    let path = String::from_utf8_lossy(path);
                    return Err(self
                        .excessive(format!("{path:?} and what is before it claim more bytes than it has")));
                }
                header.set_entry_type(EntryType::Regular);
                header.set_size(meta.len());
                self.exported.bytes += meta.len();
                let file = volume.open(path).map_err(self.unreadable(path))?;
                self.archive.append_data(&mut header, inside, file.take(meta.len()))
            }
            _ => {
                self.exported.left_out += 1;
                return Ok(());
            }
        };
        written.map_err(ExportError::Write)?;
        self.exported.entries += 1;
        if self.exported.entries > ENTRIES {
            return Err(self.excessive(format!("it holds more than {ENTRIES} files and folders")));
        }
        Ok(())
    }

    fn unreadable(&self, path: &[u8]) -> impl FnOnce(Ext4Error) -> ExportError + use<W> {
        let (name, path) = (self.name.clone(), String::from_utf8_lossy(path).into_owned());
        move |source| ExportError::Read { name, path, source }
    }

    fn excessive(&self, what: String) -> ExportError {
        ExportError::Excessive { name: self.name.clone(), what }
    }
}
