//! Fetches the indices of suites and keeps them for a while.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::super::address::Base;
use super::super::digest::Hasher;
use super::super::http::{Http, HttpError};
use super::release::{self, Voucher};
use super::{DebianError, Pocket, create_folder, fetch_error};
use crate::archive::{Compression, decoder};
use crate::partial::{self, Partial};
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
        let Some(text) = self.release(mirror, pocket, &url)? else { return Ok(None) };
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

    /// The release of a pocket: from the cache if fresh, else from the mirror, else from the cache.
    ///
    /// Only what can be trusted is kept. An empty file says that the mirror lacks the pocket.
    fn release(&self, mirror: &Base, pocket: &Pocket, url: &str) -> Result<Option<String>, DebianError> {
        let mut hasher = Hasher::sha256();
        hasher.update(url.as_bytes());
        let path = self.folder.join(format!("{}.{}", &hasher.finish().to_hex()[..16], pocket.suite));
        if age(&path).is_some_and(|age| age < FRESH)
            && let Ok(cached) = self.trusted(mirror, pocket, url, &path)
        {
            return Ok(cached);
        }
        let bytes = match self.http.get(url, None, LARGEST_RELEASE) {
            Ok(bytes) => bytes,
            Err(HttpError::Status { status: 404, .. }) if pocket.optional => Vec::new(),
            Err(error) => {
                let error = fetch_error(mirror, error);
                let cached = self.trusted(mirror, pocket, url, &path).map_err(|_| error)?;
                self.progress
                    .note(&format!("the mirror is not reachable; using what is known of {}", pocket.suite));
                return Ok(cached);
            }
        };
        let cannot_write = |source| DebianError::Cache { path: path.clone(), source };
        let mut file = Partial::beside(&path).map_err(cannot_write)?;
        file.write_all(&bytes).map_err(cannot_write)?;
        let text = self.trusted(mirror, pocket, url, file.path())?;
        file.publish(&path).map_err(cannot_write)?;
        Ok(text)
    }

    fn trusted(
        &self,
        mirror: &Base,
        pocket: &Pocket,
        url: &str,
        file: &Path,
    ) -> Result<Option<String>, DebianError> {
        if pocket.optional && fs::metadata(file).is_ok_and(|metadata| metadata.len() == 0) {
            return Ok(None);
        }
        let keyring = Path::new(release::KEYRING);
        let (text, voucher) = release::trusted_text(file, url, mirror.is_encrypted(), keyring)?;
        if voucher == Voucher::Transport && !pocket.optional {
            self.progress
                .note("Debian's signature was not checked (no gpgv with Debian's keys): https vouches");
        }
        Ok(Some(text))
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
