//! Tests that a host cannot run.

use std::{fs::File, io::Write};

/// The variable that names the file in which `make test` has them counted.
const FILE: &str = "CASEMATE_TEST_MISSING";

/// Says aloud that the running test cannot be run on this host, and has it counted. The test has to return then.
///
/// Only for what neither `make setup` nor root could provide: anything else has to fail.
///
/// # Panics
///
/// If it cannot be counted.
pub fn cannot_run(reason: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {reason}\n", thread.name().unwrap_or("a test"));
    eprint!("cannot run: {line}");
    if let Some(path) = std::env::var_os(FILE) {
        // In one write, which others that append at the same time do not tear.
        let counted = File::options().create(true).append(true).open(path);
        counted
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("a test that cannot run is counted");
    }
}

/// Whether file systems can be mounted, which only root can; counts the test if not.
pub fn may_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        cannot_run("only root can mount a file system");
    }
    is_root
}
