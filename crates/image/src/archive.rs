//! Archives from outside, unpacked without trusting them.
//!
//! An archive may name any path, link anywhere, and claim any size. [`Tree`] is the only way in which this
//! crate turns its entries into files:
//!
//! | attack | barrier |
//! | --- | --- |
//! | absolute paths, `..`, empty or NUL-holding names | [`UnpackError::Path`], before anything is touched |
//! | writing through a symbolic link that came earlier | every parent is opened without following links |
//! | links that lead outside | targets are checked; absolute ones are made relative to the root |
//! | device nodes, FIFOs, sparse files | [`UnpackError::Kind`] |
//! | setuid, setgid, files that their owner cannot remove | mode bits are masked |
//! | decompression bombs, endless entries, huge names | [`Limits`] |
//!
//! Owners and times are not kept: an image has its own.

mod compression;
mod deb;
mod path;
mod tar;
mod tree;

use std::io;
use std::path::PathBuf;

pub use self::compression::{Compression, decoder};
pub use self::deb::unpack_deb;
pub use self::tar::unpack_tar;
pub use self::tree::Tree;

/// How much an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The sum of all file sizes, in bytes; also bounds the decompressed stream.
    pub bytes: u64,
    /// The number of entries.
    pub entries: u64,
}

impl Default for Limits {
    /// 4 GiB in 500 000 entries: more than any package of the registries has.
    fn default() -> Self {
        Limits { bytes: 4 << 30, entries: 500_000 }
    }
}

/// Why an archive was refused or could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The archive cannot be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The archive is not of its format.
    #[error("the archive is malformed: {0}")]
    Malformed(&'static str),
    /// A name that leads, or may lead, out of the folder.
    #[error("the archive names the path {0:?}, which is refused")]
    Path(String),
    /// A link that leads out of the folder.
    #[error("the archive links {path} to {target:?}, which is refused")]
    Link {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: String,
    },
    /// Something that is neither file, folder nor link.
    #[error("the archive holds {path}, which is no file, folder or link")]
    Kind {
        /// The entry.
        path: PathBuf,
    },
    /// More than the limits allow.
    #[error("the archive holds more than {0:?}")]
    TooLarge(Limits),
    /// An entry could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The path within the folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
