//! Build logs: what an installer said, kept for a while.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Store, StoreError, failed};

const KEPT_LOGS: usize = 50;
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// The log of one build, begun with its first line: a build that has nothing to say leaves none.
pub(crate) struct BuildLog<'a> {
    store: &'a Store,
    title: String,
    open: OnceCell<(PathBuf, File)>,
}

impl<'a> BuildLog<'a> {
    pub(crate) fn new(store: &'a Store, title: String) -> Self {
        Self { store, title, open: OnceCell::new() }
    }

    /// Where the log is, if it was begun.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        self.open.get().map(|(path, _)| path.clone())
    }

    /// Adds a line. A log that cannot be written once it exists does not stop the build.
    pub(crate) fn line(&self, text: &str) -> Result<(), StoreError> {
        let _ = writeln!(self.writer()?, "{text}");
        Ok(())
    }

    /// Takes what follows.
    pub(crate) fn writer(&self) -> Result<impl Write + Send + '_, StoreError> {
        if self.open.get().is_none() {
            let (path, mut file) = create(&self.store.logs_dir())?;
            let _ = writeln!(file, "{}", self.title);
            // It was empty a moment ago, and this value is not shared between threads.
            let _ = self.open.set((path, file));
        }
        match self.open.get() {
            Some((_, file)) => Ok(file),
            None => unreachable!("it was set above"),
        }
    }
}

/// Begins a log, and removes those that are old or too many.
fn create(folder: &Path) -> Result<(PathBuf, File), StoreError> {
    prune(folder);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Builds of one process may begin within one millisecond.
    let mut number = 0;
    loop {
        let path = folder.join(format!("build-{}-{}-{number}.log", now.as_millis(), std::process::id()));
        match File::options().create_new(true).append(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(failed("write to", folder)(error)),
        }
    }
}

/// Removes old logs, as well as it can: a log too many is no reason to refuse a build.
fn prune(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut logs: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.starts_with("build-") && name.ends_with(".log"))
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    logs.sort_by(|a, b| b.cmp(a));
    let now = SystemTime::now();
    for (index, (modified, path)) in logs.iter().enumerate() {
        let is_old = now.duration_since(*modified).is_ok_and(|age| age > KEPT_FOR);
        if index >= KEPT_LOGS || is_old {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_logs_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        fs::write(store.logs_dir().join("other.txt"), "").unwrap();
        for number in 0..KEPT_LOGS + 5 {
            let log = BuildLog::new(&store, format!("build {number}"));
            assert_eq!(log.path(), None);
            log.line("x").unwrap();
            let text = fs::read_to_string(log.path().unwrap()).unwrap();
            assert_eq!(text, format!("build {number}\nx\n"));
        }
        let logs = fs::read_dir(store.logs_dir()).unwrap().count();
        assert_eq!(logs, KEPT_LOGS + 2, "the kept, the newest, and what is no build log");
    }
}
