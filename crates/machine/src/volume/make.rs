//! Makes an empty file system without mounting it.

use super::{VolumeError, failed};
use casemate_image::helper::{self, Bounds};
use casemate_proto::{ids::Name, mount::SERVER_ID};
use std::{fs::File, os::unix::fs::OpenOptionsExt, path::Path, process::Command, time::Duration};

/// With a journal, so that a machine that was killed loses nothing that it was told is written; with checksums,
/// which the reader of an export wants; without what older guest kernels do not know.
const FEATURES: &str = "has_journal,extent,64bit,metadata_csum,^orphan_file,^metadata_csum_seed";

/// What making a file system may take: with nothing written ahead it is done at once, whatever its size.
pub(crate) const MAKER_BOUNDS: Bounds = Bounds { time: Duration::from_secs(120), output: 1 << 20 };

/// How much of what the program says goes into an error.
const SAID_BYTES: usize = 500;

/// Makes a sparse file of that size with an ext4 file system whose root is the server's.
pub(super) fn file_system(name: &Name, path: &Path, bytes: u64) -> Result<(), VolumeError> {
    let program =
        ["/usr/sbin/mke2fs", "/sbin/mke2fs"].into_iter().find(|program| Path::new(program).exists());
    let program = program.ok_or(VolumeError::NoMaker)?;
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.and_then(|file| file.set_len(bytes).map(|()| file)).map_err(failed("make", name))?;
    let mut command = Command::new(program);
    command
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", FEATURES])
        // A file of holes is zero already.
        .args(["-E", &format!("root_owner={SERVER_ID}:{SERVER_ID},lazy_itable_init=1,lazy_journal_init=1")])
        .arg(path)
        .env_clear();
    let output = helper::run(&mut command, MAKER_BOUNDS).map_err(failed("make", name))?;
    if output.status.success() {
        return file.sync_all().map_err(failed("make", name));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(SAID_BYTES).collect();
    Err(VolumeError::Maker(if said.is_empty() { output.status.to_string() } else { said }))
}
