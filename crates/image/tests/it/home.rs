//! Homes of casemate for tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use casemate_image::kernel;
use casemate_image::progress::Silent;
use casemate_image::registry::address::Registries;

/// A home of its own, removed when dropped.
pub struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A home whose downloads are shared with all other tests and runs: its cache is a link to a folder that
/// stays, where each file appears complete, under the name of its digest.
///
/// The first caller fills it with the kernel package while the others wait, so that it is downloaded once.
pub fn shared_home() -> Home {
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cache");
    fs::create_dir_all(&cache).unwrap();
    let home = private_home();
    std::os::unix::fs::symlink(&cache, home.path().join("cache")).unwrap();

    let lock = File::create(cache.join(".lock")).unwrap();
    lock.lock().unwrap();
    let filled = cache.join(".filled");
    if !filled.exists() {
        let filler = private_home();
        std::os::unix::fs::symlink(&cache, filler.path().join("cache")).unwrap();
        kernel::fetch(filler.path(), &Registries::default(), b"", &Silent).unwrap();
        fs::write(filled, "").unwrap();
    }
    home
}

/// A home that shares nothing.
pub fn private_home() -> Home {
    Home { folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
}
