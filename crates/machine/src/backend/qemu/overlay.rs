//! A device that takes the writes to the root, so that they can be compared from outside.
//!
//! An empty ext4 file system is made once and kept; each machine gets a copy in memory, so that nothing of
//! it stays.

use super::{BackendError, memfd};
use crate::{
    home::{Home, HomeError},
    volume,
};
use casemate_image::helper;
use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
};

/// How much a machine can write, in MiB.
const SIZE_MB: u64 = 256;

/// A fresh overlay; its pages exist once they are written.
pub(super) fn create(home: &Home) -> Result<OwnedFd, BackendError> {
    let empty = empty_file_system(home)?;
    let source = File::open(&empty);
    let mut source =
        source.map_err(|source| BackendError::Open { what: "empty overlay", path: empty.clone(), source })?;
    let copy = memfd("casemate-overlay", SIZE_MB << 20).map_err(BackendError::system("make the overlay"))?;
    copy_data(&mut source, &copy).map_err(BackendError::system("copy the empty overlay"))?;
    Ok(copy)
}

/// Copies the parts of a sparse file that are not holes.
fn copy_data(source: &mut File, target: &OwnedFd) -> io::Result<()> {
    let mut offset = 0;
    loop {
        let start = match rustix::fs::seek(&*source, rustix::fs::SeekFrom::Data(offset)) {
            Ok(start) => start,
            // No data after the offset.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(&*source, rustix::fs::SeekFrom::Hole(start))?;
        rustix::fs::seek(&*source, rustix::fs::SeekFrom::Start(start))?;
        rustix::fs::seek(target, rustix::fs::SeekFrom::Start(start))?;
        let mut writer = File::from(target.try_clone()?);
        io::copy(&mut io::Read::take(&mut *source, end - start), &mut writer)?;
        offset = end;
    }
}

fn empty_file_system(home: &Home) -> Result<PathBuf, BackendError> {
    let home_error = |error: HomeError| BackendError::System {
        action: "keep the empty overlay",
        source: io::Error::other(error),
    };
    let path = home.cache().map_err(home_error)?.join(format!("overlay-{SIZE_MB}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    let _one_at_a_time = home.lock_machines().map_err(home_error)?;
    if !path.exists() {
        let temporary = path.with_extension("new");
        make(&temporary)?;
        fs::rename(&temporary, &path).map_err(BackendError::system("keep the empty overlay"))?;
    }
    Ok(path)
}

fn make(path: &Path) -> Result<(), BackendError> {
    const REMEDY: &str = "install e2fsprogs (apt-get install e2fsprogs)";
    let _ = fs::remove_file(path);
    let program =
        ["/usr/sbin/mke2fs", "/sbin/mke2fs"].into_iter().find(|program| Path::new(program).exists());
    let program = program.ok_or(BackendError::Missing { program: "mke2fs", remedy: REMEDY })?;
    // Without a journal and without times of its own: two machines that write the same have the same bytes.
    let mut command = Command::new(program);
    command
        .args(["-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=0,nodiscard"])
        .args(["-U", "00000000-0000-4000-8000-000000000001", "-m", "0"])
        .arg(path)
        .arg(format!("{SIZE_MB}M"))
        .env("E2FSPROGS_FAKE_TIME", "1");
    let output =
        helper::run(&mut command, volume::MAKER_BOUNDS).map_err(BackendError::system("run mke2fs"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(BackendError::System {
        action: "make an empty file system",
        source: io::Error::other(output.status.to_string()),
    })
}
