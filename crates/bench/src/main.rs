//! Measures casemate from outside: every clock runs from the spawn of a command to a byte.
//!
//! In one run, in interleaved rounds: the floors (bare QEMU to userspace, the same server on the host), other
//! walls around the same files (bubblewrap, runc), and casemate's starts, calls, suspensions, memory and
//! many machines. A measurement that fails is reported with its reason and the others go on; a target that
//! is missed is shown and fails nothing.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod casemate;
mod cpio;
mod environment;
mod failure;
mod interrupt;
mod leftovers;
mod measure;
mod process;
mod report;
mod results;
mod server;
mod stats;
mod targets;
mod vmm;
mod workspace;

use args::Args;
use bench::Bench;
use clap::Parser;
use environment::Environment;
use failure::{Failure, chain};
use results::Results;
use std::process::ExitCode;
use workspace::Workspace;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {}", chain(&failure));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    if args.list {
        measure::names(args).iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let workspace = Workspace::create(&args.program)?;
    interrupt::watch(workspace.layout().clone())?;
    let mut results = Results::create(&args.results)?;
    let bench = Bench::new(workspace.layout().clone(), args.built_kernel)?;
    measure::all(args, &bench, &mut results);
    interrupt::give_way();
    let environment = Environment::of(&bench);
    let verdicts = targets::judge(&results);
    let written = report::write(args, &environment, &results, &verdicts)?;
    print!("{}", report::text(args, &environment, &results, &verdicts));
    println!("\nraw data: {}", written.display());
    Ok(())
}
