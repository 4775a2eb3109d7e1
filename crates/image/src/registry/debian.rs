//! Debian's archive: finds packages by name, with what they depend on, and fetches and unpacks them.
//!
//! ```text
//! InRelease ──signature──> its SHA-256 of Packages.xz ──> its SHA-256 of each .deb ──> unpacked files
//! ```
//!
//! The signature is checked with the program `gpgv` and Debian's archive keyring, both of which every
//! Debian system up to 12 has, and most of the later and of its derivatives. Where one of them is missing,
//! the transport has to authenticate the mirror: its address must be an https one. A signature that is
//! there and is wrong is always an error.
//!
//! Downloads are kept under `<home>/cache/debian` (indices, for an hour) and `<home>/cache/debs` (packages,
//! by digest). Version constraints of dependencies are ignored: within one release they hold.

mod cache;
mod index;
mod release;
mod version;

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use self::index::Index;
use super::address::{AddressError, Base, Registries};
use super::digest::Digest;
use super::http::{Http, HttpError};
use crate::archive::{Tree, UnpackError, unpack_deb};
use crate::partial;
use crate::progress::Progress;

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// Debian 12, where the guest kernel comes from.
    Bookworm,
    /// Debian 13, where userland comes from.
    Trixie,
}

impl Suite {
    /// The release's codename.
    pub fn codename(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
        }
    }
}

/// A package of the archive: its newest version among the release and its updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The package's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where the `.deb` is.
    pub url: String,
    /// The SHA-256 of the `.deb`.
    pub digest: Digest,
    /// The size of the `.deb` in bytes.
    pub size: u64,
    /// The packages that it needs, each as its alternatives in order; without version constraints.
    pub depends: Vec<Vec<String>>,
}

/// Why the archive gave nothing usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DebianError {
    /// The mirror's address is unusable.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The mirror did not deliver.
    #[error("cannot read the Debian mirror named by {origin}")]
    Fetch {
        /// Where the mirror's address was configured.
        origin: String,
        /// The cause.
        #[source]
        source: Box<HttpError>,
    },
    /// The release file is not signed by Debian.
    #[error("the signature of {url} is not by a key in {keyring}")]
    Signature {
        /// The release file.
        url: String,
        /// The keyring it was checked with.
        keyring: PathBuf,
    },
    /// Nothing would vouch for what the mirror delivers.
    #[error(
        "cannot verify {url}: install gpgv and debian-archive-keyring, or name an https mirror in CASEMATE_DEBIAN_MIRROR"
    )]
    Unverifiable {
        /// The release file.
        url: String,
    },
    /// An index is not of the promised form.
    #[error("{what} of the Debian mirror is malformed: {problem}")]
    Malformed {
        /// Which file.
        what: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An index cannot be decompressed or read.
    #[error("cannot read the package index of Debian {suite}")]
    Index {
        /// The codename of the release.
        suite: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is no such package.
    #[error("Debian {suite} has no package {name}")]
    NoPackage {
        /// The codename of the release.
        suite: &'static str,
        /// The name that was looked for.
        name: String,
    },
    /// The cache could not be read or written.
    #[error("cannot use the cache {path}")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A package could not be unpacked.
    #[error("cannot unpack {deb}")]
    Unpack {
        /// The package file.
        deb: PathBuf,
        /// The cause.
        #[source]
        source: Box<UnpackError>,
    },
}

/// The index of one release with its updates.
pub struct Archive {
    http: Http,
    suite: Suite,
    mirror: Base,
    index: Index,
    /// The folders that hold the archives' `pool/`, by the number that the index gives back.
    pools: Vec<String>,
    debs: PathBuf,
}

impl Archive {
    /// Reads the indices of `suite`, from the cache in `home` if they are younger than an hour.
    ///
    /// Updates and security updates are included where the mirror has them.
    pub fn open(
        http: &Http,
        registries: &Registries,
        suite: Suite,
        home: &Path,
        progress: &dyn Progress,
    ) -> Result<Archive, DebianError> {
        let mirror = registries.debian()?;
        let debs = home.join("cache/debs");
        create_folder(&debs)?;
        partial::sweep(&debs);
        let mut archive = Archive {
            http: http.clone(),
            suite,
            mirror: mirror.clone(),
            index: Index::default(),
            pools: Vec::new(),
            debs,
        };
        progress.step(&format!("reading the package index of Debian {}", suite.codename()));
        let cache = cache::Cache::open(home.join("cache/debian"), http, progress)?;
        for pocket in pockets(&mirror, suite) {
            if let Some(packages) = cache.packages(&mirror, &pocket)? {
                let origin = archive.pools.len();
                archive.index.add(packages, origin).map_err(|source| archive.unreadable(source))?;
                archive.pools.push(pocket.archive);
            }
        }
        Ok(archive)
    }

    /// The newest version of the package `name`.
    pub fn package(&self, name: &str) -> Result<Package, DebianError> {
        let no_package = || DebianError::NoPackage { suite: self.suite.codename(), name: name.to_owned() };
        let listed = self.index.newest(name).ok_or_else(no_package)?;
        let malformed = |problem| DebianError::Malformed { what: format!("the entry of {name}"), problem };
        let filename = listed.filename().ok_or(malformed("its file name is unusable"))?;
        let digest = listed.sha256().and_then(Digest::from_hex);
        Ok(Package {
            name: name.to_owned(),
            version: listed.version().to_owned(),
            url: format!("{}{filename}", self.pools[listed.origin]),
            digest: digest.ok_or(malformed("it states no digest"))?,
            size: listed.size().ok_or(malformed("it states no size"))?,
            depends: listed.depends(),
        })
    }

    /// The named packages and everything that they depend on, but for `exclude` and what only that needs.
    ///
    /// Of alternative dependencies the first that exists counts; a virtual package stands for the first
    /// package that provides it. The order is breadth first, and the same for the same index.
    pub fn resolve(&self, names: &[&str], exclude: &[&str]) -> Result<Vec<Package>, DebianError> {
        let mut queue: VecDeque<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut chosen: HashSet<String> = HashSet::new();
        let mut packages = Vec::new();
        while let Some(name) = queue.pop_front() {
            if !chosen.insert(name.clone()) {
                continue;
            }
            let package = self.package(&name)?;
            for alternatives in &package.depends {
                if !self.is_satisfied(alternatives, &chosen, exclude) {
                    queue.push_back(self.choose(alternatives)?);
                }
            }
            packages.push(package);
        }
        Ok(packages)
    }

    fn is_satisfied(&self, alternatives: &[String], chosen: &HashSet<String>, exclude: &[&str]) -> bool {
        alternatives.iter().any(|name| {
            let taken = |name: &str| chosen.contains(name) || exclude.contains(&name);
            taken(name) || self.index.providers(name).into_iter().any(taken)
        })
    }

    fn choose(&self, alternatives: &[String]) -> Result<String, DebianError> {
        let real = alternatives.iter().find(|name| self.index.newest(name).is_some()).cloned();
        let provided = || {
            let mut providers = alternatives.iter().flat_map(|name| self.index.providers(name));
            providers.next().map(str::to_owned)
        };
        real.or_else(provided).ok_or_else(|| DebianError::NoPackage {
            suite: self.suite.codename(),
            name: alternatives.join(" | "),
        })
    }

    /// Fetches the package into the cache, unless it is there, and returns the path of the `.deb`.
    pub fn fetch(&self, package: &Package, progress: &dyn Progress) -> Result<PathBuf, DebianError> {
        let path = self.debs.join(format!("{}.deb", package.digest.to_hex()));
        if package.digest.matches_file(&path).unwrap_or(false) {
            return Ok(path);
        }
        self.http
            .download(&package.url, &path, &package.digest, package.size, progress)
            .map_err(|source| fetch_error(&self.mirror, source))?;
        Ok(path)
    }

    fn unreadable(&self, source: io::Error) -> DebianError {
        DebianError::Index { suite: self.suite.codename(), source }
    }
}

/// A part of a release: where its `dists/` and `pool/` are, and the name of its suite.
pub(in crate::registry::debian) struct Pocket {
    /// The address of the archive, with its final `/`.
    archive: String,
    /// The name of the suite, which is its codename too.
    suite: String,
    /// Whether a mirror may lack it.
    optional: bool,
}

fn pockets(mirror: &Base, suite: Suite) -> Vec<Pocket> {
    let codename = suite.codename();
    let main = mirror.as_str();
    let mut pockets = vec![
        Pocket { archive: main.to_owned(), suite: codename.to_owned(), optional: false },
        Pocket { archive: main.to_owned(), suite: format!("{codename}-updates"), optional: true },
    ];
    // By convention security updates are an archive of their own beside the main one.
    if let Some(parent) = main.strip_suffix("/debian/") {
        pockets.push(Pocket {
            archive: format!("{parent}/debian-security/"),
            suite: format!("{codename}-security"),
            optional: true,
        });
    }
    pockets
}

/// Unpacks the files of a `.deb` into `tree`; `map` moves each path or leaves it out with `None`.
///
/// Paths are relative to the root of the package. See [`crate::archive`] for what is refused.
pub fn unpack(
    deb: &Path,
    tree: &mut Tree,
    map: &dyn Fn(&Path) -> Option<PathBuf>,
) -> Result<(), DebianError> {
    let unpacked = match fs::File::open(deb) {
        Ok(file) => unpack_deb(io::BufReader::new(file), tree, map),
        Err(source) => Err(UnpackError::Read(source)),
    };
    unpacked.map_err(|source| DebianError::Unpack { deb: deb.to_owned(), source: Box::new(source) })
}

/// The path that a file of a package has where `/bin`, `/lib`, `/lib64` and `/sbin` are links into `/usr`.
///
/// Those four names themselves are left out: whoever makes the root makes the links.
pub fn merged_usr(path: &Path) -> Option<PathBuf> {
    let mut parts = path.iter();
    let first = parts.next()?.to_str();
    if !matches!(first, Some("bin" | "lib" | "lib64" | "sbin")) {
        return Some(path.to_owned());
    }
    parts.next().map(|_| Path::new("usr").join(path))
}

fn create_folder(path: &Path) -> Result<(), DebianError> {
    fs::create_dir_all(path).map_err(|source| DebianError::Cache { path: path.to_owned(), source })
}

fn fetch_error(mirror: &Base, source: HttpError) -> DebianError {
    DebianError::Fetch { origin: mirror.origin().to_owned(), source: Box::new(source) }
}

#[cfg(test)]
mod tests;
