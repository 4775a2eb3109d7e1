//! Many machines of one server at once.

use super::weigh;
use crate::{
    bench::Bench,
    casemate::{Casemate, Machine, Start, parse},
    environment,
    failure::Failure,
    leftovers::Leftovers,
    process,
    results::Samples,
    server::EVERYTHING,
};
use std::{
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How many calls are under way at once.
const CALLERS: usize = 16;

/// How long starting one machine may take on average, in the batches that the program chooses.
const EACH: Duration = Duration::from_secs(15);

pub fn measure(bench: &Bench, samples: &mut Samples<'_>, count: usize) -> Result<(), Failure> {
    // Machines that share nothing are more than a host holds and than anybody waits for.
    bench.template(&EVERYTHING)?;
    let casemate = &bench.casemate;
    let free = environment::available_mib();
    let number = count.to_string();
    let arguments = ["launch-many", &number, "--server", EVERYTHING.name, "--json"];
    let began = Instant::now();
    let mut command = casemate.command(&arguments);
    let limit = EACH * u32::try_from(count).unwrap_or(u32::MAX);
    let (launched, took) = process::output(&mut command, limit)?;
    samples.time("launched", took);
    // Those that started are listed even where others did not.
    let machines: Vec<Machine> = parse(&command, &launched.stdout)
        .map_err(|failure| if launched.status.success() { failure } else { refused(&command, &launched) })?;

    let calls = call_all(casemate, &machines);
    samples.time("launched, and every call answered", began.elapsed());
    // Those that were never started have not answered either.
    let wrong = calls.iter().filter(|call| call.is_err()).count() + count.saturating_sub(machines.len());
    samples.count("machines without their own answer", wrong);
    for took in calls.iter().flatten() {
        samples.time("first call answered", *took);
    }

    let restored = machines.iter().filter(|machine| machine.started(Start::Restored).is_ok()).count();
    samples.count("restored", restored);
    let leftovers = Leftovers::watch(bench, &machines);
    for machine in &machines {
        let (vmm, supervisor) = weigh(bench, machine)?;
        samples.mebibytes("machine", vmm + supervisor);
    }
    samples.mebibytes("the host's memory for all", free - environment::available_mib());
    samples.time("stop --all", casemate.stop_all()?);
    let left = leftovers.find();
    samples.count("left over", left.len());
    for thing in left {
        eprintln!("  left over: {thing}");
    }
    if !launched.status.success() {
        return Err(refused(&command, &launched));
    }
    calls.into_iter().find_map(Result::err).map_or(Ok(()), Err)
}

fn refused(command: &Command, output: &Output) -> Failure {
    Failure::Command {
        command: process::line(command),
        status: output.status.to_string(),
        said: process::tail(&output.stderr),
    }
}

/// Every machine is called with its own argument.
fn call_all(casemate: &Casemate, machines: &[Machine]) -> Vec<Result<Duration, Failure>> {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let caller = || {
            let mut answers = Vec::new();
            while let Some(machine) = machines.get(next.fetch_add(1, Ordering::Relaxed)) {
                let word = format!("this is {} with {}", machine.name, machine.id);
                answers.push(casemate.call(&machine.name, &EVERYTHING, &word));
            }
            answers
        };
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(caller)).collect();
        callers
            .into_iter()
            .flat_map(|caller| caller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
