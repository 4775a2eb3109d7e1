//! A machine that nobody uses is suspended; the next call resumes it.

use super::weigh;
use crate::{
    bench::Bench,
    casemate::{Casemate, Machine, parse},
    failure::Failure,
    leftovers,
    process::Memory,
    results::Samples,
    server::{PROBE, Server},
};
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a machine has to be idle.
const IDLE: &str = "1s";

/// How long an idle machine may take to be suspended before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often is looked. Looking is no use of a machine.
const LOOK: Duration = Duration::from_millis(100);

pub fn measure(bench: &Bench, samples: &mut Samples<'_>, server: &Server) -> Result<(), Failure> {
    bench.image(server)?;
    let casemate = &bench.casemate;
    let arguments = ["launch", server.name, "--idle", IDLE, "--json"];
    let launched = casemate.try_option(&arguments)?;
    let machine: Machine = parse(&casemate.command(&arguments), &launched.stdout)?;
    let vmm = machine.vmm().ok_or_else(|| Failure::NoMachine { server: server.name.to_owned() })?;

    casemate.call(&machine.name, server, "before")?;
    let counted = count(casemate, &machine, server)?;
    let (vmm_before, supervisor_before) = weigh(bench, &machine)?;
    samples.mebibytes("machine, before", vmm_before + supervisor_before);
    samples.time("idle until suspended", until_suspended(casemate, &machine)?);

    samples.count("VMMs while suspended", usize::from(vmm.lives()));
    let supervisor = Memory::of(casemate.supervisor(&machine)?.pid())?;
    samples.mebibytes("supervisor while suspended, private", supervisor.private);
    samples.mebibytes("supervisor while suspended, written", supervisor.written);
    samples.mebibytes("disk while suspended", leftovers::disk_mib(&casemate.folder(&machine)));

    samples.time("first call answered", casemate.call(&machine.name, server, "after")?);
    let resumed = casemate.machine_of(server.name)?;
    let (vmm_after, supervisor_after) = weigh(bench, &resumed)?;
    samples.mebibytes("machine, after", vmm_after + supervisor_after);
    samples.ratio("memory, after to before", vmm_after + supervisor_after, vmm_before + supervisor_before);
    let lost = counted != count(casemate, &machine, server)?.map(|count| count - 1);
    samples.count("state lost", usize::from(lost));
    casemate.stop_all()?;
    Ok(())
}

/// The probe counts in its memory; a server that does not shows by answering at all that its conversation
/// went on, since nobody initialised it again.
fn count(casemate: &Casemate, machine: &Machine, server: &Server) -> Result<Option<i64>, Failure> {
    if server.name != PROBE.name {
        return Ok(None);
    }
    let result: Value = casemate.json(&["call", &machine.name, "counter", "{}", "--json"])?;
    let count = counter(&result);
    count.map(Some).ok_or_else(|| Failure::Answer {
        expected: "a count".to_owned(),
        answer: crate::casemate::cut(&result),
    })
}

fn counter(result: &Value) -> Option<i64> {
    if let Some(count) = result["structuredContent"]["count"].as_i64() {
        return Some(count);
    }
    let text: Value = serde_json::from_str(result["content"][0]["text"].as_str()?).ok()?;
    text["count"].as_i64()
}

fn until_suspended(casemate: &Casemate, machine: &Machine) -> Result<Duration, Failure> {
    let used = Instant::now();
    while used.elapsed() < PATIENCE {
        let listed = casemate.status()?;
        let now = listed.into_iter().find(|one| one.id == machine.id);
        let now = now.ok_or_else(|| Failure::NoMachine { server: machine.server.clone() })?;
        if now.state == "suspended" {
            return Ok(used.elapsed());
        }
        thread::sleep(LOOK);
    }
    Err(Failure::Late { command: "the suspension of an idle machine".to_owned(), limit: PATIENCE })
}
