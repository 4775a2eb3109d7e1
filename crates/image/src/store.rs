//! The images of one home, on disk.
//!
//! ```text
//! <home>/images/<hex>/rootfs.erofs   0444, named by its own SHA-256
//!                     image.json     what it is and how it is started
//!                     rootfs/        the tree, when a sandbox asked for it
//! <home>/cache/                      downloads, locks and what they resolved to; may be deleted at any time
//! <home>/logs/build-*.log            what installers said
//! ```
//!
//! An image appears whole, by a rename, and is never changed. What a killed build left is removed by the next
//! [`Store::open`].

mod log;
mod meta;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use log::BuildLog;
pub use meta::{ImageMeta, Package, Runtime};

use crate::erofs::{self, ErofsError};
use crate::files::{self, FilesError};
use crate::folder;
use crate::lock;
use crate::partial::{self, PartialDir};

/// The file system of an image, below its folder.
const ROOTFS: &str = "rootfs.erofs";
const META: &str = "image.json";
const UNPACKED: &str = "rootfs";

/// The shortest prefix of a digest that names an image.
const PREFIX_DIGITS: usize = 4;

/// The largest `image.json`.
const META_BYTES: u64 = 16 << 20;

/// How long one command may keep others waiting: longer than a build takes on a slow host and line.
pub(crate) const BUILD_TIME: Duration = Duration::from_secs(3600);

/// The images, caches and build logs below one home folder.
#[derive(Debug, Clone)]
pub struct Store {
    home: PathBuf,
}

/// One image.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:` and the digest of `rootfs` in hexadecimal.
    pub digest: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Its file system.
    pub rootfs: PathBuf,
    /// What it is and how it is started.
    pub meta: ImageMeta,
}

/// What pruning removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Digests of the removed images.
    pub images: Vec<String>,
    /// Their file systems' bytes.
    pub bytes: u64,
}

/// Why the store could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A folder or file of the home is not usable.
    #[error("cannot {operation} {path}; check the owner and mode of the home folder, and the free space")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        #[source]
        /// The cause.
        source: io::Error,
    },
    /// Another command kept a lock for longer than any work takes.
    #[error("cannot lock {path}")]
    Locked {
        /// The lock.
        path: PathBuf,
        #[source]
        /// Who has it, and what to do.
        source: io::Error,
    },
    /// No image has this digest.
    #[error("no image {digest}; `casemate image list` shows those that exist")]
    NotFound {
        /// What was asked for.
        digest: String,
    },
    /// Several images have this prefix.
    #[error("{prefix} is the beginning of {count} images; give more digits")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many.
        count: usize,
    },
    /// An image's description does not describe it.
    #[error("the image {path} is damaged; remove the folder and build it again")]
    Damaged {
        /// Its folder.
        path: PathBuf,
    },
    /// Its tree could not be unpacked.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// Files could not be removed.
    #[error(transparent)]
    Files(#[from] FilesError),
}

impl Store {
    /// Opens the store in `home`, creating what is missing, and removes what killed builds left.
    pub fn open(home: &Path) -> Result<Store, StoreError> {
        let home = std::path::absolute(home).map_err(failed("find", home))?;
        create(&home, 0o700)?;
        let store = Store { home };
        create(&store.images_dir(), 0o755)?;
        create(&store.cache("locks")?, 0o755)?;
        create(&store.logs_dir(), 0o755)?;
        partial::sweep(&store.images_dir());
        partial::sweep(&store.cache("work")?);
        partial::sweep(&store.cache("roots")?);
        for folder in folder::CACHES {
            partial::sweep(&store.cache(folder)?);
        }
        Ok(store)
    }

    /// The home folder, as an absolute path.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// All whole images, oldest first; damaged ones are left out.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let folder = self.images_dir();
        let mut images = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed("read", &folder))? {
            let name = entry.map_err(failed("read", &folder))?.file_name();
            if let Some(image) =
                name.to_str().filter(|name| is_hex(name)).and_then(|name| self.read(name).ok())
            {
                images.push(image);
            }
        }
        images.sort_by(|a, b| (a.meta.created_at, &a.digest).cmp(&(b.meta.created_at, &b.digest)));
        Ok(images)
    }

    /// The image of this digest, which may lack `sha256:` and its later digits (at least 4 stay).
    ///
    /// Its command is the image's own: arguments and `--command` of the request that built it are not in it.
    pub fn image(&self, digest_or_prefix: &str) -> Result<Image, StoreError> {
        let prefix = digest_or_prefix.strip_prefix("sha256:").unwrap_or(digest_or_prefix);
        let not_found = || StoreError::NotFound { digest: digest_or_prefix.to_owned() };
        let is_prefix = (PREFIX_DIGITS..=64).contains(&prefix.len()) && prefix.bytes().all(is_hex_digit);
        if !is_prefix {
            return Err(not_found());
        }
        if is_hex(prefix) {
            return if self.images_dir().join(prefix).exists() {
                self.read(prefix)
            } else {
                Err(not_found())
            };
        }
        let folder = self.images_dir();
        let names = fs::read_dir(&folder).map_err(failed("read", &folder))?.flatten();
        let names: Vec<String> = names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_hex(name) && name.starts_with(prefix))
            .collect();
        match names.as_slice() {
            [] => Err(not_found()),
            [name] => self.read(name),
            _ => Err(StoreError::Ambiguous { prefix: digest_or_prefix.to_owned(), count: names.len() }),
        }
    }

    /// Removes every image whose digest is not among `in_use`.
    pub fn prune(&self, in_use: &[String]) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        for image in self.images()? {
            if !in_use.contains(&image.digest) {
                files::remove(&image.dir)?;
                pruned.bytes += image.meta.size_bytes;
                pruned.images.push(image.digest);
            }
        }
        Ok(pruned)
    }

    /// The image's tree, unpacked at the first call: what a sandbox takes as its root.
    pub fn unpacked(&self, image: &Image) -> Result<PathBuf, StoreError> {
        let tree = image.dir.join(UNPACKED);
        let lock = self.lock(&format!("unpack-{}", image.meta.hex()), BUILD_TIME, || {})?;
        if !tree.exists() {
            let partial = PartialDir::inside(&image.dir).map_err(failed("write to", &image.dir))?;
            let unfinished = partial.path().join(UNPACKED);
            erofs::unpack(&image.rootfs, &unfinished)?;
            fs::rename(&unfinished, &tree).map_err(failed("create", &tree))?;
        }
        drop(lock);
        Ok(tree)
    }

    /// Gives the packed image its name, or finds that it exists already.
    pub(crate) fn publish(&self, unfinished: PartialDir, meta: &ImageMeta) -> Result<Image, StoreError> {
        let dir = self.images_dir().join(meta.hex());
        let path = unfinished.path();
        let json = serde_json::to_vec_pretty(meta).map_err(|error| failed("write", path)(error.into()))?;
        fs::write(path.join(META), json).map_err(failed("write", path))?;
        for file in [META, ROOTFS] {
            set_mode(&path.join(file), 0o444)?;
        }
        set_mode(path, 0o755)?;
        if self.read(&meta.hex()).is_err() {
            // A damaged image of this name makes room; two builds of one image differ in nothing that counts.
            files::remove(&dir)?;
            if let Err(error) = unfinished.publish(&dir) {
                self.read(&meta.hex()).map_err(|_| failed("create", &dir)(error))?;
            }
        }
        self.read(&meta.hex())
    }

    /// A folder for an image in the making, whose file system is to be written to the returned path.
    pub(crate) fn unfinished(&self) -> Result<(PartialDir, PathBuf), StoreError> {
        let folder = self.images_dir();
        let partial = PartialDir::inside(&folder).map_err(failed("write to", &folder))?;
        let rootfs = partial.path().join(ROOTFS);
        Ok((partial, rootfs))
    }

    /// A folder of the cache, created if it is missing.
    pub(crate) fn cache(&self, name: &str) -> Result<PathBuf, StoreError> {
        let folder = self.home.join("cache").join(name);
        create(&folder, 0o755)?;
        Ok(folder)
    }

    /// Takes the lock of this name, for which it waits no longer than `patience`; it is given back when the file is
    /// closed. `waiting` is called once if it has to wait.
    pub(crate) fn lock(
        &self,
        name: &str,
        patience: Duration,
        waiting: impl FnOnce(),
    ) -> Result<File, StoreError> {
        let path = self.cache("locks")?.join(format!("{name}.lock"));
        let file = File::options().create(true).append(true).open(&path).map_err(failed("open", &path))?;
        match lock::within(&file, patience, waiting) {
            Ok(()) => Ok(file),
            Err(source) if source.kind() == io::ErrorKind::TimedOut => {
                Err(StoreError::Locked { path, source })
            }
            Err(error) => Err(failed("lock", &path)(error)),
        }
    }

    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.home.join("logs")
    }

    fn images_dir(&self) -> PathBuf {
        self.home.join("images")
    }

    fn read(&self, hex: &str) -> Result<Image, StoreError> {
        let dir = self.images_dir().join(hex);
        let damaged = || StoreError::Damaged { path: dir.clone() };
        let (rootfs, path) = (dir.join(ROOTFS), dir.join(META));
        let is_small = fs::metadata(&path).map_err(failed("read", &path))?.len() <= META_BYTES;
        let json = is_small.then(|| fs::read(&path)).ok_or_else(damaged)?.map_err(failed("read", &path))?;
        let meta: ImageMeta = serde_json::from_slice(&json).map_err(|_| damaged())?;
        let size = fs::metadata(&rootfs).map_err(failed("read", &rootfs))?.len();
        // A power failure may have cut the file short; reading all of it at every start would take too long.
        if meta.hex() != hex || size != meta.size_bytes {
            return Err(damaged());
        }
        Ok(Image { digest: meta.digest.clone(), dir, rootfs, meta })
    }
}

pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { operation, path, source }
}

fn create(folder: &Path, mode: u32) -> Result<(), StoreError> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(failed("create", folder))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("change the mode of", path))
}

fn is_hex(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(is_hex_digit)
}

fn is_hex_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn add(store: &Store, digit: char, created_at: u64) -> Image {
        let (partial, rootfs) = store.unfinished().unwrap();
        fs::write(rootfs, "rootfs").unwrap();
        let meta = ImageMeta {
            digest: format!("sha256:{}", digit.to_string().repeat(64)),
            source: "npm:x".into(),
            command: vec!["/x".into()],
            programs: BTreeMap::new(),
            env: BTreeMap::new(),
            cwd: "/".into(),
            runtime: Runtime::Static,
            packages: Vec::new(),
            lock_digest: String::new(),
            size_bytes: 6,
            created_at,
        };
        store.publish(partial, &meta).unwrap()
    }

    #[test]
    fn images_are_found_by_digest_and_prefix() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("home")).unwrap();
        let (b, a) = (add(&store, 'b', 2), add(&store, 'a', 1));
        assert_eq!(
            store.images().unwrap().iter().map(|i| &i.digest).collect::<Vec<_>>(),
            [&a.digest, &b.digest]
        );
        assert_eq!(store.image("bbbb").unwrap().digest, b.digest);
        assert_eq!(store.image(&a.digest).unwrap().meta.command, ["/x"]);
        for wrong in ["bbb", "cccc", "sha256:", "../x", "sha256:..", &"c".repeat(64), &"b".repeat(65), "BBBB"]
        {
            assert!(matches!(store.image(wrong), Err(StoreError::NotFound { .. })), "{wrong}");
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&a.rootfs), mode(&a.dir), mode(store.home())), (0o444, 0o755, 0o700));
    }

    #[test]
    fn the_same_image_twice_is_one_image_and_a_damaged_one_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let first = add(&store, 'a', 1);
        assert_eq!(add(&store, 'a', 2).meta.created_at, 1);
        set_mode(&first.rootfs, 0o644).unwrap();
        fs::write(&first.rootfs, "cut").unwrap();
        assert!(matches!(store.image(&first.digest), Err(StoreError::Damaged { .. })));
        assert_eq!(store.images().unwrap().len(), 0);
        assert_eq!(add(&store, 'a', 3).meta.created_at, 3);
        let names = fs::read_dir(store.images_dir()).unwrap().count();
        assert_eq!(names, 1, "something unfinished stayed");
    }

    #[test]
    fn pruning_spares_what_is_used() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let (a, b) = (add(&store, 'a', 1), add(&store, 'b', 1));
        let pruned = store.prune(std::slice::from_ref(&b.digest)).unwrap();
        assert_eq!(pruned, Pruned { images: vec![a.digest], bytes: 6 });
        assert_eq!(store.images().unwrap().len(), 1);
    }

    #[test]
    fn a_lock_that_is_not_given_back_is_an_error_that_names_it() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let lock = |waiting: &dyn Fn()| store.lock("build-x", Duration::from_millis(10), waiting);
        let _held = lock(&|| panic!("it is free")).unwrap();
        let error = lock(&|| {}).unwrap_err();
        assert!(matches!(error, StoreError::Locked { .. }) && error.to_string().contains("build-x.lock"));
    }

    #[test]
    fn a_home_that_cannot_be_made_is_an_error_that_names_it() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Store::open(&file.join("home")).unwrap_err();
        assert!(error.to_string().contains("file/home"), "{error}");
    }
}
