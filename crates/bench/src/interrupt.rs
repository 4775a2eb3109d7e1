//! Being told to end: everything that was started ends first.

use crate::{failure::Failure, process::is_ending, workspace::Layout};
use std::{process, thread};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

/// What a shell says of a program that was interrupted.
const INTERRUPTED: i32 = 130;

/// Watches, in a thread of its own, for the signals that ask a program to end.
pub fn watch(layout: Layout) -> Result<(), Failure> {
    let failed = || Failure::system("watch for signals");
    let runtime = runtime::Builder::new_current_thread().enable_io().build().map_err(failed())?;
    let mut signals = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt()).map_err(failed())?,
            signal(SignalKind::terminate()).map_err(failed())?,
        )
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = signals.0.recv() => {}
                _ = signals.1.recv() => {}
            }
        });
        eprintln!("bench: interrupted; ending what was started");
        layout.clean();
        process::exit(INTERRUPTED);
    });
    Ok(())
}

/// Leaves the end to the thread that watches, once a signal has come: what failed since is no result.
pub fn give_way() {
    while is_ending() {
        thread::park();
    }
}
