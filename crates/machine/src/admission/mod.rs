//! Who may have memory: asked before a machine is planned or resumed, under the registry's lock.
//!
//! ```text
//! left = min(host's available - margin, limits of the groups that casemate is in)
//!        - what every live machine may still grow by
//! configured limit: what is not promised to live machines yet
//! ```
//!
//! A refusal here is clear and costs nothing; later the kernel would end whichever process it likes. What
//! other programs take afterwards is not foreseen: the margin is for them.

mod figures;
mod host;

use crate::{
    cgroup::{self, Headroom},
    record::{Record, Start, State},
    spec::{Accelerator, Level, Origin, Spec},
};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// What one machine will need, as far as that is known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Memory of the guest, in MiB.
    pub guest_mb: u32,
    /// What executes its instructions.
    pub accelerator: Option<Accelerator>,
    /// Whether it shares what it does not change with a template.
    pub restored: bool,
}

impl Demand {
    /// What a machine that is to be made will need.
    pub fn of(spec: &Spec) -> Self {
        Self {
            guest_mb: spec.resources.memory_mb,
            accelerator: spec.accelerator,
            // A server that starts in the clone changes what it would have shared.
            restored: matches!(spec.origin, Origin::Template { level: Level::Server, .. }),
        }
    }

    /// What a machine that exists will need while it runs.
    pub fn of_record(record: &Record) -> Self {
        Self {
            guest_mb: record.memory_mb,
            accelerator: record.accelerator,
            // A reason beside a template is why that is none of its running server.
            restored: record.start == Start::Restored && record.template_reason.is_none(),
        }
    }

    /// The memory that the machine is expected to come to, in bytes.
    pub fn expected_bytes(&self) -> u64 {
        figures::expected_mb(self) * MIB
    }
}

/// What is too small for one more machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// The host's memory.
    Host,
    /// The limit of a control group that casemate is in.
    Group(PathBuf),
    /// The limit in casemate's configuration.
    Configured,
}

/// There is not enough memory for one more machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not enough memory for one more machine: it needs {} MiB, and of {} {} MiB are left{}",
    mib_up(*.needed), bound_text(.bound, *.total), .left / MIB, running_text(*.running, *.growth)
)]
pub struct Refusal {
    /// What the machine is expected to need, in bytes.
    pub needed: u64,
    /// What is left for it, in bytes.
    pub left: u64,
    /// What there is in all, in bytes.
    pub total: u64,
    /// Which memory that is.
    pub bound: Bound,
    /// How many machines run or start.
    pub running: usize,
    /// What they may still grow by, in bytes; taken from `left` already.
    pub growth: u64,
}

impl Refusal {
    /// What the user may do.
    pub fn remedy(&self) -> String {
        let more = match &self.bound {
            Bound::Host => "add memory to the host",
            Bound::Group(_) => "raise the limit of the control group",
            Bound::Configured => "raise the limit in the configuration",
        };
        let stop = if self.running > 0 { "stop machines (casemate stop NAME), " } else { "" };
        format!("{stop}give the machine less (--memory), or {more}")
    }
}

fn bound_text(bound: &Bound, total: u64) -> String {
    let total = total / MIB;
    match bound {
        Bound::Host => format!("the host's {total} MiB"),
        Bound::Group(dir) => format!("the {total} MiB of control group {}", dir.display()),
        Bound::Configured => format!("the configured {total} MiB"),
    }
}

fn running_text(running: usize, growth: u64) -> String {
    match running {
        0 => String::new(),
        1 => format!(" (1 machine runs and may grow by {} MiB)", mib_up(growth)),
        _ => format!(" ({running} machines run and may grow by {} MiB)", mib_up(growth)),
    }
}

fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(MIB)
}

/// What there is to decide upon, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Memory {
    host_total: u64,
    host_available: u64,
    group: Option<Headroom>,
    configured: Option<u64>,
}

/// One machine that runs or starts, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Live {
    expected: u64,
    used: u64,
}

/// Decides on one more machine beside those of `records`, of which the ended and the suspended need nothing;
/// `limit_mb` is the configured limit for all of them.
///
/// Where the host tells nothing about its memory only the configured limit counts.
pub(crate) fn admit(demand: &Demand, limit_mb: Option<u64>, records: &[Record]) -> Result<(), Refusal> {
    let live: Vec<Live> = records
        .iter()
        .filter(|record| !record.state.is_final() && record.state != State::Suspended)
        .map(|record| Live {
            expected: Demand::of_record(record).expected_bytes(),
            // Live is who holds the lock, and dies with its VMM: the number has not been given again.
            used: record.pid.and_then(host::used_bytes).unwrap_or(0),
        })
        .collect();
    let (host_total, host_available) = host::memory().unwrap_or((u64::MAX, u64::MAX));
    let configured = limit_mb.map(|limit| limit.saturating_mul(MIB));
    let memory = Memory { host_total, host_available, group: cgroup::headroom(), configured };
    decide(demand.expected_bytes(), &memory, &live)
}

/// The decision itself: the tightest bound is the one that is named.
fn decide(needed: u64, memory: &Memory, live: &[Live]) -> Result<(), Refusal> {
    let growth = sum(live.iter().map(|machine| machine.expected.saturating_sub(machine.used)));
    let promised = sum(live.iter().map(|machine| machine.expected.max(machine.used)));
    let host = memory.host_available.saturating_sub(figures::host_margin(memory.host_total));
    let mut bounds = vec![(Bound::Host, memory.host_total, host.saturating_sub(growth))];
    if let Some(Headroom { dir, limit, left }) = &memory.group {
        let left = left.saturating_sub(figures::group_margin(*limit)).saturating_sub(growth);
        bounds.push((Bound::Group(dir.clone()), *limit, left));
    }
    if let Some(limit) = memory.configured {
        bounds.push((Bound::Configured, limit, limit.saturating_sub(promised)));
    }
    match bounds.into_iter().min_by_key(|(_, _, left)| *left) {
        Some((bound, total, left)) if left < needed => {
            Err(Refusal { needed, left, total, bound, running: live.len(), growth })
        }
        _ => Ok(()),
    }
}

fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests;
