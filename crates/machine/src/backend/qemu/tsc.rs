//! The host's time stamp counter, in kHz.
//!
//! In emulation the guest's counter is the host's. Without `tsc_early_khz=` the guest measures it against
//! an interval timer that a busy host serves late, and a wrong clock or a boot that hangs for good
//! follows. The frequency that `/proc/cpuinfo` shows is the processor's at this moment, another thing.

use crate::sys::tsc_and_clock;
use std::{sync::OnceLock, time::Duration};

/// Long enough for one part in a hundred thousand with readings some hundred nanoseconds wide.
const MEASURE: Duration = Duration::from_millis(20);

/// The counter's frequency, measured once a process; takes 20 ms then.
pub fn khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let (first_tsc, first) = tsc_and_clock();
        std::thread::sleep(MEASURE);
        let (last_tsc, last) = tsc_and_clock();
        let nanoseconds = last.duration_since(first).as_nanos().max(1);
        (u128::from(last_tsc.wrapping_sub(first_tsc)) * 1_000_000 / nanoseconds) as u64
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_frequency_is_one_of_a_real_processor() {
        let khz = super::khz();
        assert!((500_000..10_000_000).contains(&khz), "{khz} kHz");
    }
}
