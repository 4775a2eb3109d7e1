//! The `casemate` program without its `main`: arguments, configuration, rendering, exit codes.
//!
//! ```text
//! args ──> command::dispatch ──> engine ──> casemate-image, casemate-machine
//!              │   ^
//!           render config
//! ```
// Doc comments of arguments are their help: brackets in them are the user's, not links.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]
#![forbid(unsafe_code)]

pub mod args;
pub mod clients;
pub mod command;
pub mod config;
pub mod context;
pub mod embedded;
pub mod engine;
pub mod error;
mod files;
pub mod interrupt;
pub mod mounts;
pub mod render;
pub mod secrets;
pub mod units;

use args::Cli;
use clap::Parser;
use context::Context;
use error::{Error, Kind, Outcome};
use std::rc::Rc;

/// Parses the command line, does what it says, and ends the process: a thread may still be reading
/// standard input or building an image.
pub fn main() -> ! {
    // Prints help, version and usage errors itself and ends with 0 or 2.
    let cli = Cli::parse();
    let code = match run(cli) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            if error.kind() != Kind::BROKEN_PIPE {
                render::error(&error);
            }
            error.kind().exit_code()
        }
    };
    std::process::exit(code.into())
}

fn run(cli: Cli) -> Result<Outcome, Error> {
    let context = Rc::new(Context::new(&cli.global)?);
    // One thread: a process that this one spawns dies with the thread that spawned it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::unavailable("cannot start").because(error))?;
    let local = tokio::task::LocalSet::new();
    let work = command::dispatch(cli.command, &context);
    let guarded = interrupt::guard(work, engine::machines::gone(&context), &context.drain);
    let result = local.block_on(&runtime, guarded);
    drop(local);
    // Not waiting for threads: one may read standard input until its writer closes it.
    runtime.shutdown_background();
    result
}
