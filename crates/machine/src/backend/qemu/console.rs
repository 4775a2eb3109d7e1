//! Drains what the VMM and the guest's console print: a pipe that nobody reads would stop the machine.

use crate::log::CappedLog;
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    task::JoinHandle,
    time::timeout,
};

/// How long that may take.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Copies everything from `source` to `log` until the source ends.
pub(super) fn drain(
    mut source: impl AsyncRead + Unpin + Send + 'static,
    mut log: CappedLog,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut chunk = vec![0; 4096];
        while let Ok(read @ 1..) = source.read(&mut chunk).await {
            log.write(&chunk[..read]);
        }
    })
}

/// Waits until what an ended VMM printed last has reached its logs.
pub(super) async fn finish(drains: Vec<JoinHandle<()>>) {
    for drain in drains {
        let _ = timeout(LAST_WORDS, drain).await;
    }
}
