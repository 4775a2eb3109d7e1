//! Calls in a conversation that goes on.

use crate::{
    bench::Bench,
    casemate::{Start, Talk},
    failure::Failure,
    results::Samples,
    server::Server,
};
use std::time::Instant;

/// Calls before the clock counts: they fill caches and, in emulation, translate code.
const WARM_UP: usize = 50;

/// Calls in one round.
const CALLS: usize = 200;

pub fn measure(bench: &Bench, samples: &mut Samples<'_>, server: &Server) -> Result<(), Failure> {
    bench.image(server)?;
    let mut talk = Talk::begin(bench.casemate.run(server, Start::Restored))?;
    let mut took = Vec::with_capacity(CALLS);
    for number in 0..WARM_UP + CALLS {
        let word = format!("call {number}");
        let sent = Instant::now();
        talk.call(server, &word)?;
        took.push(sent.elapsed());
    }
    for took in took.split_off(WARM_UP) {
        samples.time("call answered", took);
    }
    talk.end()?;
    Ok(())
}
