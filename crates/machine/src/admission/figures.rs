//! What a machine is expected to need, with where each number comes from. In MiB, measured with QEMU 10.0.
//!
//! | what | measured | taken |
//! | --- | --- | --- |
//! | translated code, in emulation | 34 in a clone after 30 calls; never more than `tb-size` | 64 |
//! | QEMU's heap and tables | 10 changed in a clone; 30 to 40 beside the code in a booted VMM | 40 |
//! | guest memory, cold | a guest comes to all of it, if only by its file cache | all |
//! | guest memory, restored | 58 of 256 changed after 30 calls, 54 in all after one | a quarter |

use super::{Demand, MIB};
use crate::spec::Accelerator;

/// The translation cache's size.
const TRANSLATED_MB: u64 = 64;

/// The VMM's own memory.
const HEAP_MB: u64 = 40;

/// The part of a restored guest's memory that it changes: one in so many.
const RESTORED_SHARE: u64 = 4;

/// No machine is expected to need less.
const LEAST_MB: u64 = 64;

/// What the host keeps for other programs: at least this …
const HOST_MARGIN: u64 = 256 * MIB;

/// … and at least one in so many of its bytes, 3 %; of a limited group only this.
const MARGIN_SHARE: u64 = 33;

/// The memory that a machine is expected to come to, in MiB.
pub(super) fn expected_mb(demand: &Demand) -> u64 {
    let guest = u64::from(demand.guest_mb);
    let translated = if demand.accelerator == Some(Accelerator::Kvm) { 0 } else { TRANSLATED_MB };
    let guest = if demand.restored { guest / RESTORED_SHARE } else { guest };
    (guest + translated + HEAP_MB).max(LEAST_MB)
}

/// What stays free on a host with that much memory, in bytes.
pub(super) fn host_margin(total: u64) -> u64 {
    (total / MARGIN_SHARE).max(HOST_MARGIN)
}

/// What stays free in a group with that limit, in bytes.
pub(super) fn group_margin(limit: u64) -> u64 {
    limit / MARGIN_SHARE
}
