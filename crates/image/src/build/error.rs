//! Why an image could not be built, and what can be done about it.

use std::path::PathBuf;

use crate::archive::UnpackError;
use crate::confine::ConfineError;
use crate::erofs::ErofsError;
use crate::files::FilesError;
use crate::registry::address::AddressError;
use crate::registry::debian::DebianError;
use crate::registry::http::HttpError;
use crate::registry::npm::NpmError;
use crate::registry::pypi::PypiError;
use crate::store::StoreError;

/// Why an image could not be built. Nothing of it stays in the store but its log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The registry has no such package.
    #[error("{registry} has no package {name}; check the spelling")]
    UnknownPackage {
        /// `npm` or `PyPI`.
        registry: &'static str,
        /// The name.
        name: String,
    },
    /// The package has no such version.
    #[error("{name} has no version {version}; {}", nearest_hint(nearest))]
    UnknownVersion {
        /// The package.
        name: String,
        /// What was asked for.
        version: String,
        /// The versions nearest to it, best first.
        nearest: Vec<String>,
    },
    /// The package has no such program, or several and none of its own name.
    #[error("{package} brings no program {wanted:?}; it brings {}", list(known))]
    UnknownProgram {
        /// The package.
        package: String,
        /// What was asked for, or what the launcher would choose.
        wanted: String,
        /// What it brings.
        known: Vec<String>,
    },
    /// Packages could not be resolved to a set that fits together.
    #[error("{installer} found no installable set of packages for {source_text}: {reason}; the log is {}", log.display())]
    Unresolvable {
        /// `npm` or `uv`.
        installer: &'static str,
        /// The source as it is written.
        source_text: String,
        /// The installer's own words.
        reason: String,
        /// The build's log.
        log: PathBuf,
    },
    /// The installer failed for another reason.
    #[error("{installer} failed with {ending}; the log is {}", log.display())]
    Installer {
        /// `npm` or `uv`.
        installer: &'static str,
        /// How it ended.
        ending: String,
        /// The build's log.
        log: PathBuf,
    },
    /// What the installer wrote is not what it should be.
    #[error("{file} is malformed: {reason}; the log is {}", log.display())]
    Malformed {
        /// Which file, as a path inside.
        file: String,
        /// What is wrong.
        reason: String,
        /// The build's log.
        log: PathBuf,
    },
    /// A part of a runtime is not in its registry.
    #[error("{registry} has no usable {name}, which casemate needs; check the configured registry address")]
    RuntimePart {
        /// Its name.
        name: &'static str,
        /// `npm` or `PyPI`.
        registry: &'static str,
    },
    /// A folder that is no source of an image.
    #[error("{} cannot become an image: {reason}; {remedy}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A host program that is no source of an image.
    #[error(
        "{program} cannot become an image: {reason}; use npm:, pypi:, dir: or a program that needs no other file"
    )]
    Program {
        /// The program as it was given.
        program: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This kind of source comes later.
    #[error("sources of the kind {kind} are not built yet; use npm:, pypi:, dir: or a command")]
    NotBuilt {
        /// The kind, with its colon.
        kind: &'static str,
    },
    /// This host can give no certificates.
    #[error("no certificate authorities found; install ca-certificates, or name a file in SSL_CERT_FILE")]
    Certificates(#[source] std::io::Error),
    /// A registry's address is unusable.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A download failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Debian's archive gave nothing usable.
    #[error(transparent)]
    Debian(#[from] DebianError),
    /// The npm registry gave nothing usable.
    #[error(transparent)]
    Npm(#[from] NpmError),
    /// The Python package index gave nothing usable.
    #[error(transparent)]
    Pypi(#[from] PypiError),
    /// A package could not be unpacked.
    #[error("cannot unpack {}", archive.display())]
    Unpack {
        /// The archive.
        archive: PathBuf,
        #[source]
        /// The cause.
        source: Box<UnpackError>,
    },
    /// The installer could not be confined, or was stopped.
    #[error("an installer did not run to its end; the log is {}", log.display())]
    Confine {
        /// The build's log.
        log: PathBuf,
        #[source]
        /// The cause.
        source: ConfineError,
    },
    /// The image could not be packed.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// Files could not be read or written.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The store could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What kind of answer an error asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildErrorKind {
    /// The request names something that does not exist or does not fit.
    Configuration,
    /// This host, its network or this version of casemate lacks something.
    Unavailable,
    /// The build itself failed.
    Failed,
}

impl BuildError {
    /// What kind of answer the error asks for.
    pub fn kind(&self) -> BuildErrorKind {
        use BuildError::*;
        match self {
            UnknownPackage { .. }
            | UnknownVersion { .. }
            | UnknownProgram { .. }
            | Unresolvable { .. }
            | Folder { .. }
            | Program { .. }
            | Address(_) => BuildErrorKind::Configuration,
            NotBuilt { .. }
            | RuntimePart { .. }
            | Certificates(_)
            | Http(_)
            | Debian(_)
            | Npm(_)
            | Pypi(_)
            | Erofs(ErofsError::Missing { .. })
            | Confine { source: ConfineError::Wall { .. }, .. } => BuildErrorKind::Unavailable,
            Installer { .. }
            | Malformed { .. }
            | Unpack { .. }
            | Confine { .. }
            | Erofs(_)
            | Files(_)
            | Store(_) => BuildErrorKind::Failed,
        }
    }
}

fn nearest_hint(nearest: &[String]) -> String {
    match nearest {
        [] => "it has no versions at all".to_owned(),
        some => format!("the nearest are {}", some.join(", ")),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
