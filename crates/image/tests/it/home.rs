//! Homes of casemate for tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A home of its own, whose downloads are shared with all other tests and test runs.
pub struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Makes a home; its cache is a link to a folder that stays, so that packages are downloaded once.
pub fn shared_home() -> Home {
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cache");
    fs::create_dir_all(&cache).unwrap();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::os::unix::fs::symlink(&cache, folder.path().join("cache")).unwrap();
    Home { folder }
}
