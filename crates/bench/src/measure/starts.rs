//! `casemate run`: from its spawn to the answers of its server.

use crate::{
    bench::Bench,
    casemate::{Start, Talk},
    failure::Failure,
    results::Samples,
    server::Server,
};

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
    let mut talk = Talk::begin(bench.casemate.run(server, start))?;
    talk.call(server, "a start")?;
    let called = talk.spawned.elapsed();
    bench.casemate.machine_of(server.name)?.started(start)?;
    samples.time("initialize answered", talk.initialized);
    samples.time("first call answered", called);
    samples.time("ended after its input", talk.end()?);
    Ok(())
}
