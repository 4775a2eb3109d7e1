//! What a file says, read within bounds.

use super::{ClientError, LIMIT};
use rustix::fs::{Mode, OFlags};
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
};

#[derive(Debug)]
pub(super) struct Content {
    pub text: String,
    pub mode: u32,
    pub owner: (u32, u32),
}

impl Content {
    pub fn read(path: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Read { path: path.to_owned(), source };
        let not_regular = || ClientError::NotRegular { path: path.to_owned() };
        // Before it is opened, which may do something to a device.
        if !fs::symlink_metadata(path).map_err(failed)?.is_file() {
            return Err(not_regular());
        }
        // And after it, in case that it was exchanged: without waiting for a pipe's other end.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let file = File::from(opened);
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(not_regular());
        }
        let too_large = || ClientError::TooLarge { path: path.to_owned(), limit: LIMIT };
        if meta.len() > LIMIT {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        (&file).take(LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LIMIT {
            return Err(too_large());
        }
        let text = String::from_utf8(bytes).map_err(|_| ClientError::NotText { path: path.to_owned() })?;
        Ok(Self { text, mode: meta.mode() & 0o7777, owner: (meta.uid(), meta.gid()) })
    }
}
