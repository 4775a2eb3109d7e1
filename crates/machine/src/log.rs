//! Log files that cannot fill a disk: what a guest prints is bounded from outside.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// A log's file grows to this many bytes, then becomes `NAME.1` in place of the one before.
pub const FILE_BYTES: u64 = 4 << 20;

/// A file that is written to by one supervisor and rotated once it is full: at most two of [`FILE_BYTES`].
#[derive(Debug)]
pub struct CappedLog {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
}

impl CappedLog {
    /// Opens a log for appending.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, FILE_BYTES)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, length, limit })
    }

    /// Appends bytes. A log that cannot be written (a full disk) loses them: the machine goes on.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.length >= self.limit {
                self.rotate();
            }
            let (now, later) = bytes.split_at(bytes.len().min((self.limit - self.length) as usize));
            if self.file.write_all(now).is_err() {
                return;
            }
            self.length += now.len() as u64;
            bytes = later;
        }
    }

    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        let renamed = std::fs::rename(&self.path, old);
        match Self::with_limit(&self.path, self.limit) {
            Ok(fresh) if renamed.is_ok() => *self = fresh,
            // Better an empty log than an endless one.
            _ => {
                let _ = self.file.set_len(0);
                self.length = 0;
            }
        }
    }
}

/// The last `bytes` of a log, invalid UTF-8 replaced, beginning at a whole line where there is one.
pub fn tail(path: &Path, bytes: usize) -> String {
    let content = std::fs::read(path).unwrap_or_default();
    let mut part = &content[content.len().saturating_sub(bytes)..];
    if part.len() < content.len()
        && let Some(newline) = part.iter().position(|&byte| byte == b'\n')
        && newline + 1 < part.len()
    {
        part = &part[newline + 1..];
    }
    String::from_utf8_lossy(part).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_bounded_and_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = CappedLog::with_limit(&path, 1000).unwrap();
        for n in 0..1000 {
            log.write(format!("line {n:04}\n").as_bytes());
        }
        let sizes: u64 =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(sizes <= 2000, "{sizes} bytes");
        assert!(tail(&path, 200).ends_with("line 0999"));
    }

    #[test]
    fn a_tail_begins_at_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "first line\nsecond line\nthird\n").unwrap();
        assert_eq!(tail(&path, 15), "third");
        assert_eq!(tail(&path, 1000), "first line\nsecond line\nthird");
        assert_eq!(tail(&dir.path().join("none"), 10), "");
    }
}
