//! What is wanted of the figures, and whether they are so. Nothing fails by a target that is missed.

use crate::results::{Results, Unit};
use serde::Serialize;

/// One value out of a series.
#[derive(Debug, Clone, Copy)]
enum Pick {
    Median,
    Most,
}

/// A value among the results.
#[derive(Debug, Clone, Copy)]
struct Value {
    case: &'static str,
    measure: &'static str,
    pick: Pick,
}

/// What is compared with the limit.
#[derive(Debug, Clone, Copy)]
enum Quantity {
    One(Value),
    /// The first, divided by the second.
    Ratio(Value, Value),
}

#[derive(Debug, Clone, Copy)]
struct Target {
    text: &'static str,
    quantity: Quantity,
    at_most: f64,
    unit: Unit,
}

const fn median(case: &'static str, measure: &'static str) -> Value {
    Value { case, measure, pick: Pick::Median }
}

const fn most(case: &'static str, measure: &'static str) -> Value {
    Value { case, measure, pick: Pick::Most }
}

const fn one(text: &'static str, value: Value, at_most: f64, unit: Unit) -> Target {
    Target { text, quantity: Quantity::One(value), at_most, unit }
}

const fn ratio(text: &'static str, value: Value, to: Value, at_most: f64) -> Target {
    Target { text, quantity: Quantity::Ratio(value, to), at_most, unit: Unit::Ratio }
}

const INITIALIZED: &str = "initialize answered";
const CALLED: &str = "first call answered";

const TARGETS: [Target; 19] = [
    one(
        "everything, restored: initialize",
        median("restored everything", INITIALIZED),
        450.0,
        Unit::Milliseconds,
    ),
    ratio(
        "everything: restored to cold, initialize",
        median("restored everything", INITIALIZED),
        median("cold everything", INITIALIZED),
        1.0 / 15.0,
    ),
    one("everything, restored: first call", median("restored everything", CALLED), 650.0, Unit::Milliseconds),
    ratio(
        "time: restored to cold, initialize",
        median("restored time", INITIALIZED),
        median("cold time", INITIALIZED),
        1.0 / 15.0,
    ),
    ratio(
        "probe: cold start to bare QEMU's userspace",
        median("cold probe", INITIALIZED),
        median("floor qemu", "userspace"),
        1.3,
    ),
    one("probe, restored: initialize", median("restored probe", INITIALIZED), 150.0, Unit::Milliseconds),
    one(
        "100 machines: launched, and each answered a call",
        most("many 100", "launched, and every call answered"),
        75_000.0,
        Unit::Milliseconds,
    ),
    one(
        "100 machines: without their own answer",
        most("many 100", "machines without their own answer"),
        0.0,
        Unit::Count,
    ),
    one("100 machines: memory of the largest", most("many 100", "machine"), megabytes(60.0), Unit::Mebibytes),
    one("100 machines: stop --all", most("many 100", "stop --all"), 10_000.0, Unit::Milliseconds),
    one("100 machines: left over", most("many 100", "left over"), 0.0, Unit::Count),
    one("suspended probe: VMMs", most("suspend probe", "VMMs while suspended"), 0.0, Unit::Count),
    one("suspended everything: VMMs", most("suspend everything", "VMMs while suspended"), 0.0, Unit::Count),
    one(
        "suspended everything: supervisor, private",
        median("suspend everything", "supervisor while suspended, private"),
        megabytes(3.0),
        Unit::Mebibytes,
    ),
    one("resumed probe: first call", median("suspend probe", CALLED), 1000.0, Unit::Milliseconds),
    one("resumed probe: state lost", most("suspend probe", "state lost"), 0.0, Unit::Count),
    one("resumed everything: first call", median("suspend everything", CALLED), 1000.0, Unit::Milliseconds),
    one("resumed probe: memory to before", median("suspend probe", MEMORY), 1.3, Unit::Ratio),
    one("resumed everything: memory to before", median("suspend everything", MEMORY), 1.3, Unit::Ratio),
];

const MEMORY: &str = "memory, after to before";

/// A target and what came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// What it is about.
    pub target: &'static str,
    /// What it may be at most.
    pub at_most: f64,
    /// What it is; nothing if it was not measured.
    pub measured: Option<f64>,
    /// What both count.
    pub unit: Unit,
    /// Whether it is so.
    pub met: Option<bool>,
}

/// Compares every target with the results.
pub fn judge(results: &Results) -> Vec<Verdict> {
    TARGETS
        .iter()
        .map(|target| {
            let measured = match target.quantity {
                Quantity::One(value) => find(results, value),
                Quantity::Ratio(value, to) => {
                    find(results, value).zip(find(results, to)).map(|(value, to)| value / to)
                }
            };
            Verdict {
                target: target.text,
                at_most: target.at_most,
                measured,
                unit: target.unit,
                met: measured.map(|measured| measured <= target.at_most),
            }
        })
        .collect()
}

fn find(results: &Results, value: Value) -> Option<f64> {
    let summary = results.summary(value.case, value.measure)?;
    Some(match value.pick {
        Pick::Median => summary.median,
        Pick::Most => summary.most,
    })
}

/// A target in megabytes, in MiB as everything is measured.
const fn megabytes(count: f64) -> f64 {
    count * 1e6 / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn verdict<'a>(verdicts: &'a [Verdict], target: &str) -> &'a Verdict {
        verdicts.iter().find(|verdict| verdict.target == target).unwrap()
    }

    #[test]
    fn targets_are_met_missed_or_not_measured() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::create(folder.path()).unwrap();
        results.of("floor qemu", 1).time("userspace", Duration::from_millis(1000));
        results.of("cold probe", 1).time(INITIALIZED, Duration::from_millis(1301));
        results.of("restored probe", 1).time(INITIALIZED, Duration::from_millis(150));
        let verdicts = judge(&results);
        assert_eq!(verdict(&verdicts, "probe: cold start to bare QEMU's userspace").met, Some(false));
        assert_eq!(verdict(&verdicts, "probe, restored: initialize").met, Some(true));
        assert_eq!(verdict(&verdicts, "100 machines: stop --all").met, None);
    }

    #[test]
    fn one_bad_value_among_good_ones_decides_where_the_most_counts() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::create(folder.path()).unwrap();
        for memory in [40.0, 41.0, 61.0] {
            results.of("many 100", 1).mebibytes("machine", memory);
        }
        let verdicts = judge(&results);
        let largest = verdict(&verdicts, "100 machines: memory of the largest");
        assert_eq!((largest.met, largest.measured), (Some(false), Some(61.0)));
    }
}
