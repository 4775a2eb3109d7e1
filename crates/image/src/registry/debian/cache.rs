//! Fetches the indices of suites and keeps them for a while.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::super::address::Base;
use super::super::digest::Hasher;
use super::super::http::{Http, HttpError};
use super::release::{self, Voucher};
use super::{DebianError, Pocket, create_folder, fetch_error};
use crate::archive::{Compression, decoder};
use crate::partial;
use crate::progress::Progress;

/// The index of what runs on x86-64.
const PACKAGES: &str = "main/binary-amd64/Packages.xz";
/// How long a release file is used without asking again.
const FRESH: Duration = Duration::from_secs(60 * 60);
/// Files that were not renewed for this long are removed.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The largest release file. Debian's are 200 KB.
const LARGEST_RELEASE: u64 = 8 * 1024 * 1024;
/// The largest compressed index. Debian's is 10 MB.
const LARGEST_PACKAGES: u64 = 128 * 1024 * 1024;

pub(super) struct Cache<'a> {
    folder: PathBuf,
    http: &'a Http,
    progress: &'a dyn Progress,
}

impl<'a> Cache<'a> {
    pub fn open(folder: PathBuf, http: &'a Http, progress: &'a dyn Progress) -> Result<Self, DebianError> {
        create_folder(&folder)?;
        partial::sweep(&folder);
        remove_older_than(&folder, KEPT);
        Ok(Cache { folder, http, progress })
    }

    /// The decompressed index of a pocket; `None` if the mirror lacks an optional one.
    pub fn packages(&self, mirror: &Base, pocket: &Pocket) -> Result<Option<Box<dyn Read>>, DebianError> {
        let dists = format!("{}dists/{}/", pocket.archive, pocket.suite);
        let url = format!("{dists}InRelease");
        let Some(inrelease) = self.inrelease(mirror, pocket, &url)? else { return Ok(None) };
        let keyring = Path::new(release::KEYRING);
        let (text, voucher) = release::trusted_text(&inrelease, &url, mirror.is_encrypted(), keyring)?;
        if voucher == Voucher::Transport {
            self.progress
                .note("the archive's signature was not checked (no gpgv with Debian's keys); https vouches");
        }
        let entry = release::entry(&text, &pocket.suite, PACKAGES, Timestamp::now())
            .map_err(|problem| release::malformed(&url, problem))?;
        if entry.size > LARGEST_PACKAGES {
            return Err(release::malformed(&url, "it lists too large an index"));
        }
        let packages = self.folder.join(format!("{}.xz", entry.digest.to_hex()));
        if !entry.digest.matches_file(&packages).unwrap_or(false) {
            self.http
                .download(&format!("{dists}{PACKAGES}"), &packages, &entry.digest, entry.size, self.progress)
                .map_err(|source| fetch_error(mirror, source))?;
        }
        let reader = File::open(&packages).and_then(|file| decoder(Compression::Xz, BufReader::new(file)));
        reader.map(Some).map_err(|source| DebianError::Cache { path: packages, source })
    }

    /// The release file of a pocket: from the cache if fresh, else from the mirror, else from the cache.
    fn inrelease(&self, mirror: &Base, pocket: &Pocket, url: &str) -> Result<Option<PathBuf>, DebianError> {
        let mut hasher = Hasher::sha256();
        hasher.update(url.as_bytes());
        let path = self.folder.join(format!("{}.{}", &hasher.finish().to_hex()[..16], pocket.suite));
        let is_there = |path: PathBuf| {
            // An empty file says that the mirror has no such pocket.
            let absent = fs::metadata(&path).is_ok_and(|metadata| metadata.len() == 0);
            (!absent).then_some(path)
        };
        if age(&path).is_some_and(|age| age < FRESH) {
            return Ok(is_there(path));
        }
        let bytes = match self.http.get(url, None, LARGEST_RELEASE) {
            Ok(bytes) => bytes,
            Err(HttpError::Status { status: 404, .. }) if pocket.optional => Vec::new(),
            Err(error) if path.exists() => {
                self.progress.note(&format!("using an older index of Debian {}: {error}", pocket.suite));
                return Ok(is_there(path));
            }
            Err(error) => return Err(fetch_error(mirror, error)),
        };
        partial::write_atomically(&path, &bytes)
            .map_err(|source| DebianError::Cache { path: path.clone(), source })?;
        Ok(is_there(path))
    }
}

fn age(path: &Path) -> Option<Duration> {
    SystemTime::now().duration_since(fs::metadata(path).ok()?.modified().ok()?).ok()
}

fn remove_older_than(folder: &Path, limit: Duration) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if age(&entry.path()).is_some_and(|age| age > limit) {
            // Best effort: a leftover costs space only.
            let _ = fs::remove_file(entry.path());
        }
    }
}
