//! The measurements: what each case does, and the order in which the cases are done.

mod first;
mod floor;
mod many;
mod memory;
mod starts;
mod suspend;
mod walls;
mod warm;

use crate::{
    args::Args,
    bench::Bench,
    casemate::{Machine, Start},
    environment,
    failure::{Failure, chain},
    interrupt,
    process::Memory,
    results::{Results, Samples},
    server,
};
use std::time::Instant;
use walls::Wall;

/// How often a case may fail before it is left out of the rounds to come.
const PATIENCE: usize = 2;

/// What `launch-many` is asked for.
pub const CROWDS: [usize; 3] = [10, 40, 100];

/// What one case does.
type Measure = Box<dyn Fn(&Bench, &mut Samples<'_>) -> Result<(), Failure>>;

/// When a case is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Once, before everything else: it is about what was never done before.
    First,
    /// In every round.
    Round,
    /// Once, at the end.
    Last,
}

struct Case {
    name: String,
    when: When,
    measure: Measure,
}

/// The names of the cases that are wanted, in their order.
pub fn names(args: &Args) -> Vec<String> {
    cases().into_iter().map(|case| case.name).filter(|name| args.wants(name)).collect()
}

/// Does every case that is wanted. What fails is noted, and the next one is done.
pub fn all(args: &Args, bench: &Bench, results: &mut Results) {
    let cases: Vec<Case> = cases().into_iter().filter(|case| args.wants(&case.name)).collect();
    let mut failures = vec![0; cases.len()];
    let rounds = [(When::First, 1), (When::Round, args.rounds), (When::Last, 1)];
    for (when, rounds) in rounds {
        for round in 1..=rounds {
            results.load(environment::load());
            for (case, failures) in cases.iter().zip(&mut failures) {
                if case.when != when || *failures >= PATIENCE {
                    continue;
                }
                interrupt::give_way();
                eprintln!("[{}/{rounds}] {}", round, case.name);
                let began = Instant::now();
                let measured = (case.measure)(bench, &mut results.of(&case.name, round));
                match measured {
                    Ok(()) => eprintln!("  {:.1} s", began.elapsed().as_secs_f64()),
                    Err(failure) => {
                        eprintln!("  {}", chain(&failure));
                        results.gap(&case.name, round, &failure);
                        *failures += if matches!(failure, Failure::Unavailable(_)) { PATIENCE } else { 1 };
                        // What the next case measures must not share the host with what is left of this one.
                        let _ = bench.casemate.stop_all();
                    }
                }
            }
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |when, name: String, measure: Measure| cases.push(Case { name, when, measure });
    for server in server::ALL {
        let name = format!("first {}", server.name);
        case(When::First, name, Box::new(|bench, samples| first::measure(bench, samples, server)));
    }
    case(When::Round, "floor qemu".to_owned(), Box::new(floor::measure));
    for server in server::ALL {
        for wall in Wall::ALL {
            let measure =
                move |bench: &Bench, samples: &mut Samples<'_>| walls::measure(bench, samples, wall, server);
            case(When::Round, format!("{} {}", wall.name(), server.name), Box::new(measure));
        }
        for start in [Start::Cold, Start::Restored] {
            let measure = move |bench: &Bench, samples: &mut Samples<'_>| {
                starts::measure(bench, samples, start, server)
            };
            case(When::Round, format!("{} {}", start.word(), server.name), Box::new(measure));
        }
        let name = format!("warm {}", server.name);
        case(When::Round, name, Box::new(|bench, samples| warm::measure(bench, samples, server)));
    }
    for server in server::ALL {
        for start in [Start::Cold, Start::Restored] {
            let measure = move |bench: &Bench, samples: &mut Samples<'_>| {
                memory::measure(bench, samples, start, server)
            };
            case(When::Round, format!("machine {} {}", start.word(), server.name), Box::new(measure));
        }
    }
    for server in [&server::PROBE, &server::EVERYTHING] {
        let name = format!("suspend {}", server.name);
        case(When::Round, name, Box::new(|bench, samples| suspend::measure(bench, samples, server)));
    }
    for count in CROWDS {
        let measure = move |bench: &Bench, samples: &mut Samples<'_>| many::measure(bench, samples, count);
        case(When::Last, format!("many {count}"), Box::new(measure));
    }
    cases
}

/// Proportional memory of a machine, in MiB: its VMM's and its supervisor's.
fn weigh(bench: &Bench, machine: &Machine) -> Result<(f64, f64), Failure> {
    let vmm = machine.pid.ok_or_else(|| Failure::Unavailable(format!("{} has no VMM", machine.name)))?;
    let supervisor = bench.casemate.supervisor(machine)?;
    Ok((Memory::of(vmm)?.proportional, Memory::of(supervisor.pid())?.proportional))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let cases = cases();
        let names: BTreeSet<_> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        assert!(names.contains("restored everything") && names.contains("many 100"));
    }
}
