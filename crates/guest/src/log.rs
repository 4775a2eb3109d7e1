//! Where the agent's own words go: the kernel's log in a machine of its own, else stderr.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

static KERNEL_LOG: OnceLock<File> = OnceLock::new();

/// Sends all later words to the kernel's log, which the machine's console shows.
pub fn to_kernel() {
    if let Ok(file) = File::options().write(true).open("/dev/kmsg") {
        // A second call changes nothing.
        let _ = KERNEL_LOG.set(file);
    }
}

/// Says that something went wrong that does not keep the agent from going on.
pub fn warn(message: std::fmt::Arguments<'_>) {
    // A log that cannot be written has nowhere to complain.
    let _ = match KERNEL_LOG.get() {
        // One write is one record; level 3 (error) is shown on a quiet console too.
        Some(mut log) => log.write_all(format!("<3>casemate-guest: {message}\n").as_bytes()),
        None => writeln!(std::io::stderr(), "casemate-guest: {message}"),
    };
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
