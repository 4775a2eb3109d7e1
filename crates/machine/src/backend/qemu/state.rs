//! The state of processors and devices: 12 KiB or so beside the guest's memory.
//!
//! QEMU writes it with `xen-save-devices-state`, which despite its name saves the devices of any machine and
//! no memory, and reads it as the whole of a migration. Memory never passes through QEMU: a template's is a
//! file, and a suspended machine's own pages are read and written beside it.

use super::{args, memfd, qmp::Qmp};
use crate::{backend::BackendError, template::STATE_BYTES};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    time::{Duration, Instant},
};

/// How long QEMU may take to read the state; it takes some milliseconds.
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is asked whether it has.
const LOAD_POLL: Duration = Duration::from_millis(1);

/// A state to begin with, as a descriptor to inherit.
pub(super) fn incoming(state: &[u8]) -> io::Result<OwnedFd> {
    let file = File::from(memfd("casemate-incoming", 0)?);
    file.write_all_at(state, 0)?;
    reopen(&file, OFlags::RDONLY)
}

/// Where the state will be written to, and the end of it that the VMM inherits.
pub(super) fn outgoing() -> io::Result<(File, OwnedFd)> {
    let file = File::from(memfd("casemate-outgoing", 0)?);
    let end = reopen(&file, OFlags::WRONLY)?;
    Ok((file, end))
}

/// QEMU takes a descriptor only for what it was opened for.
fn reopen(file: &File, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// Stops the machine and returns the state.
pub(super) async fn save(qmp: &mut Qmp, outgoing: &File) -> Result<Vec<u8>, BackendError> {
    const COMMAND: &str = "xen-save-devices-state";
    qmp.execute("stop", json!({})).await?;
    // It has no live copy of a disk to make, which is what `live` would be for.
    let target = json!({ "filename": args::outgoing_path(), "live": false });
    let unreadable = || BackendError::system("read the state of the devices");
    // QEMU goes on where it stopped writing the last time, whether it empties the file or not.
    let begin = outgoing.metadata().map_err(unreadable())?.len();
    qmp.execute(COMMAND, target).await?;
    let mut state = Vec::new();
    let mut reader = File::from(reopen(outgoing, OFlags::RDONLY).map_err(unreadable())?);
    reader.seek(SeekFrom::Start(begin)).map_err(unreadable())?;
    reader.take(STATE_BYTES as u64 + 1).read_to_end(&mut state).map_err(unreadable())?;
    if state.is_empty() || state.len() > STATE_BYTES {
        let reason = format!("the state is {} bytes long", state.len());
        return Err(BackendError::Monitor { command: COMMAND, reason });
    }
    Ok(state)
}

/// Has a machine that was started with `-incoming defer` take its state; its processors stand afterwards.
pub(super) async fn load(qmp: &mut Qmp) -> Result<(), BackendError> {
    const COMMAND: &str = "migrate-incoming";
    qmp.execute(COMMAND, json!({ "uri": args::incoming_uri() })).await?;
    let until = Instant::now() + LOAD_TIMEOUT;
    while Instant::now() < until {
        let told = qmp.execute("query-migrate", json!({})).await?;
        match told.get("status").and_then(Value::as_str) {
            Some("completed") => return Ok(()),
            Some("failed") => {
                let reason = told.get("error-desc").and_then(Value::as_str).unwrap_or("it failed").to_owned();
                return Err(BackendError::Monitor { command: COMMAND, reason });
            }
            _ => tokio::time::sleep(LOAD_POLL).await,
        }
    }
    Err(BackendError::Monitor { command: COMMAND, reason: "not done in time".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixStream,
    };

    const STATES: [&[u8]; 3] = [b"the longest of the states", b"another", b"the last one"];

    /// Plays a QEMU that saves these states one after the other, then none.
    async fn qemu(stream: UnixStream, mut outgoing: File, empties: bool) {
        let mut stream = BufReader::new(stream);
        let greeting = json!({ "QMP": { "version": { "qemu": { "major": 10, "minor": 0 } } } });
        stream.write_all(format!("{greeting}\n").as_bytes()).await.unwrap();
        let mut states = STATES.into_iter();
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap() > 0 {
            let asked: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            if asked["execute"] == "xen-save-devices-state" {
                if empties {
                    outgoing.set_len(0).unwrap();
                }
                outgoing.write_all(states.next().unwrap_or_default()).unwrap();
            }
            let answer = json!({ "return": {}, "id": asked["id"] });
            stream.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_state_is_what_was_written_last_and_nothing_from_before() {
        for empties in [false, true] {
            let (file, end) = outgoing().unwrap();
            let (ours, theirs) = UnixStream::pair().unwrap();
            tokio::spawn(qemu(theirs, end.into(), empties));
            let mut qmp = Qmp::connect(ours, LOAD_TIMEOUT).await.unwrap();
            for state in STATES {
                let saved = save(&mut qmp, &file).await.unwrap();
                assert_eq!(String::from_utf8_lossy(&saved), String::from_utf8_lossy(state));
            }
            let error = save(&mut qmp, &file).await.unwrap_err();
            assert!(error.to_string().contains("the state is 0 bytes long"), "{error}");
        }
    }
}
