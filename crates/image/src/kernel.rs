//! Guest kernels: fetched from Debian, built from its source, or imported, and the initramfs that boots them.
//!
//! ```text
//! .deb or files ──> bzImage ──> vmlinux (checked: ELF, x86-64, PVH entry)  ──> kernels/<id>/vmlinux
//!              └──> *.ko ──> what a machine needs, in order of loading     ──> kernels/<id>/modules/
//! linux-source ──confined make──> vmlinux with everything in it
//! agent + modules ──> initramfs                       ──> kernels/<id>/initramfs-<agent>.cpio
//! ```
//!
//! A kernel's id contains the digest of its contents; a stored kernel never changes. All functions may be
//! called by several processes at once. Nothing here boots anything: that a kernel works is found out by
//! whoever boots it.

mod build;
mod bzimage;
mod cpio;
mod elf;
mod initramfs;
mod lz4;
mod modinfo;
mod modules;
mod obtain;
mod store;
mod strip;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::build::{BuildRequest, KernelBuildError, build};
pub use self::obtain::{ensure, fetch, import};
pub use self::store::list;
use crate::registry::debian::DebianError;

/// A kernel with an initramfs for a certain agent: what it takes to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Names the kernel: its version and the beginning of the digest of its contents.
    pub id: String,
    /// The folder that holds it.
    pub dir: PathBuf,
    /// The ELF file to boot.
    pub vmlinux: PathBuf,
    /// The initial root file system with the agent.
    pub initramfs: PathBuf,
    /// The version that the kernel states, as `uname -r` shows it.
    pub version: String,
    /// Where it comes from.
    pub source: Source,
}

/// A kernel as it is stored, whatever the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this record's form.
    format: u32,
    /// Names the kernel: its version and the beginning of the digest of its contents.
    pub id: String,
    /// The version that the kernel states.
    pub version: String,
    /// Where it comes from.
    pub source: Source,
    /// When it was last fetched or imported, in milliseconds since 1970.
    pub obtained_ms: u64,
    /// The size of its `vmlinux` in bytes.
    pub vmlinux_bytes: u64,
    /// The sets of modules that it cannot provide, each with the module that is missing.
    pub unavailable: Vec<(String, String)>,
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Source {
    /// A package of Debian.
    Debian {
        /// The package's name.
        package: String,
        /// The package's version.
        version: String,
    },
    /// Built from a source package of Debian.
    Built {
        /// The package's name.
        package: String,
        /// The package's version.
        version: String,
        /// The digest of the configuration.
        configuration: String,
    },
    /// Files of the user.
    Imported {
        /// The image that was imported.
        image: PathBuf,
    },
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Debian's archive did not deliver it.
    #[error("cannot get the kernel from Debian's archive")]
    Debian(#[from] DebianError),
    /// The package is not what it should be.
    #[error("Debian's package {package} holds no {what}")]
    Package {
        /// The package's name.
        package: String,
        /// What was looked for in it.
        what: &'static str,
    },
    /// The image cannot be booted.
    #[error("{path} is no kernel that can be booted here")]
    Image {
        /// The image.
        path: PathBuf,
        /// The reason.
        #[source]
        source: ImageError,
    },
    /// Its modules are of no use.
    #[error("the modules of kernel {version} cannot be used")]
    Modules {
        /// The version of the kernel.
        version: String,
        /// The reason.
        #[source]
        source: ModuleError,
    },
    /// The store of kernels cannot be used.
    #[error("cannot use {path}")]
    Store {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Why an image is no kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The image cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// A part of it is not as it should be.
    #[error("{part} of the image is malformed: {problem}")]
    Malformed {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Its payload is compressed in another way.
    #[error("its payload is compressed neither with LZ4, gzip, xz nor Zstandard")]
    Compression,
    /// Its payload cannot be decompressed.
    #[error("its payload cannot be decompressed")]
    Decompress(#[source] io::Error),
    /// It is larger than anything sensible.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// It cannot be booted directly.
    #[error("it has no PVH entry point: a kernel with CONFIG_PVH=y is needed")]
    NoPvh,
    /// It does not say what it is.
    #[error("it states no version")]
    NoVersion,
}

/// Why modules cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// A module that every machine needs is neither a file nor built in.
    #[error("the module {name} is neither in {folder} nor built in")]
    Missing {
        /// The module's name.
        name: String,
        /// The folder that was searched.
        folder: PathBuf,
    },
    /// Modules need each other.
    #[error("the module {name} depends on itself")]
    Cycle {
        /// The module's name.
        name: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is larger than anything sensible.
    #[error("{path} is larger than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The folder is no folder of modules.
    #[error("{folder} holds more than {limit} files")]
    TooMany {
        /// The folder.
        folder: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A file is no ELF object.
    #[error("a module is no ELF object")]
    Elf(#[source] object::Error),
    /// The sections of a module share bytes.
    #[error("the sections of a module overlap")]
    Overlap,
    /// A module says nothing of itself.
    #[error("a module has no .modinfo")]
    NoModInfo,
}
