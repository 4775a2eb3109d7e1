//! The first start ever of a server, which may have to make a template before it can serve.

use crate::{
    bench::Bench,
    casemate::{Start, Talk},
    failure::Failure,
    leftovers,
    results::Samples,
    server::Server,
};

pub fn measure(bench: &Bench, samples: &mut Samples<'_>, server: &Server) -> Result<(), Failure> {
    bench.image(server)?;
    let templates = bench.casemate.home().join("templates");
    let before = leftovers::disk_mib(&templates);
    let mut talk = Talk::begin(bench.casemate.run(server, Start::Restored))?;
    samples.time("initialize answered", talk.initialized);
    talk.call(server, "first")?;
    samples.time("first call answered", talk.spawned.elapsed());
    talk.end()?;
    let made = leftovers::disk_mib(&templates) - before;
    if made > 0.0 {
        samples.mebibytes("template on disk", made);
    }
    Ok(())
}
