//! A machine that stays: its memory before and after a call, and the commands that use it.

use super::weigh;
use crate::{bench::Bench, casemate::Start, failure::Failure, results::Samples, server::Server};

/// Calls by `casemate call` before memory is looked at again.
const CALLS: usize = 5;

pub fn measure(
    bench: &Bench,
    samples: &mut Samples<'_>,
    start: Start,
    server: &Server,
) -> Result<(), Failure> {
    match start {
        Start::Cold => bench.image(server).map(drop)?,
        Start::Restored => bench.template(server)?,
    }
    let (machine, launched) = bench.casemate.launch(server, start)?;
    samples.time("launch", launched);
    let (vmm, supervisor) = weigh(bench, &machine)?;
    samples.mebibytes("VMM, before a call", vmm);
    samples.mebibytes("supervisor, before a call", supervisor);
    samples.time("first casemate call", bench.casemate.call(&machine.name, server, "once")?);
    let (vmm, supervisor) = weigh(bench, &machine)?;
    samples.mebibytes("VMM, after a call", vmm);
    samples.mebibytes("supervisor, after a call", supervisor);
    samples.mebibytes("machine, after a call", vmm + supervisor);
    for number in 0..CALLS {
        let word = format!("call {number}");
        samples.time("casemate call", bench.casemate.call(&machine.name, server, &word)?);
    }
    samples.time("stop", bench.casemate.finish(&["stop", &machine.name])?.took);
    Ok(())
}
