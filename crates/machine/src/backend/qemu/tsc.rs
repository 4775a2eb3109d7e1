//! The host's time stamp counter, in kHz.
//!
//! In emulation the guest's counter is the host's. Without `tsc_early_khz=` the guest measures it against
//! an interval timer that a busy host serves late, and a wrong clock or a boot that hangs for good
//! follows. The frequency that `/proc/cpuinfo` shows is the processor's at this moment, another thing.

use crate::{
    home::{Home, boot_id, write_atomically},
    sys::tsc_and_clock,
};
use serde::{Deserialize, Serialize};
use std::{fs, path::Path, time::Duration};

/// Long enough for one part in a hundred thousand with readings some hundred nanoseconds wide.
const MEASURE: Duration = Duration::from_millis(20);

/// How far what was measured once may be from what is seen now: the clock of the host is steered by up to half
/// a thousandth.
const PER_THOUSAND: u64 = 1;

/// A reading of the counter, kept so that the next machine need not wait for a second one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    boot: String,
    tsc: u64,
    clock_ns: u64,
    /// The frequency that was measured then.
    khz: u64,
}

/// The counter's frequency; takes 20 ms the first time after the host started.
pub fn khz(home: &Home) -> u64 {
    let Ok(cache) = home.cache() else { return measure().1 };
    let (path, boot) = (cache.join("tsc.json"), boot_id().unwrap_or_default());
    if let Some(khz) = remembered(&path, &boot) {
        return khz;
    }
    let ((tsc, clock_ns), khz) = measure();
    let text = serde_json::to_vec(&Remembered { boot, tsc, clock_ns, khz }).unwrap_or_default();
    // What cannot be kept is measured again.
    let _ = write_atomically(&path, &text);
    khz
}

/// What the counter has done since it was read, if that is what was measured: a host that slept, or was moved
/// to another machine, has another counter or another clock.
fn remembered(path: &Path, boot: &str) -> Option<u64> {
    let earlier: Remembered = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let now = tsc_and_clock();
    let khz = frequency((earlier.tsc, earlier.clock_ns), now)?;
    let is_the_same = khz.abs_diff(earlier.khz) <= earlier.khz / 1000 * PER_THOUSAND;
    (earlier.boot == boot && is_the_same).then_some(khz)
}

fn measure() -> ((u64, u64), u64) {
    let first = tsc_and_clock();
    std::thread::sleep(MEASURE);
    // A counter that stands still is no processor's that runs this.
    (first, frequency(first, tsc_and_clock()).unwrap_or_default())
}

/// `None`: too short a time, or no later one.
fn frequency(first: (u64, u64), last: (u64, u64)) -> Option<u64> {
    let nanoseconds = last.1.checked_sub(first.1)?;
    let ticks = last.0.checked_sub(first.0)?;
    let is_long_enough = u128::from(nanoseconds) >= MEASURE.as_nanos();
    is_long_enough.then(|| (u128::from(ticks) * 1_000_000 / u128::from(nanoseconds)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        (folder, home)
    }

    fn kept(home: &Home) -> Remembered {
        serde_json::from_slice(&fs::read(home.cache().unwrap().join("tsc.json")).unwrap()).unwrap()
    }

    #[test]
    fn the_frequency_is_one_of_a_real_processor_each_time() {
        let (_folder, home) = home();
        let first = khz(&home);
        assert!((500_000..10_000_000).contains(&first), "{first} kHz");
        let written = kept(&home);
        std::thread::sleep(MEASURE);
        let second = khz(&home);
        assert_eq!(kept(&home), written, "the second comes from the first reading");
        assert!(first.abs_diff(second) <= first / 1000, "{first} and {second} kHz");
    }

    #[test]
    fn a_reading_that_does_not_fit_is_not_believed() {
        let (_folder, home) = home();
        let right = khz(&home);
        std::thread::sleep(MEASURE);
        let good = kept(&home);
        let wrong = [
            Remembered { boot: "another".to_owned(), ..good.clone() },
            Remembered { khz: right / 2, ..good.clone() },
            // Counts anew since the host slept.
            Remembered { tsc: u64::MAX, ..good.clone() },
            Remembered { tsc: 0, ..good.clone() },
            Remembered { clock_ns: u64::MAX, ..good.clone() },
        ];
        for wrong in wrong {
            let path = home.cache().unwrap().join("tsc.json");
            fs::write(&path, serde_json::to_vec(&wrong).unwrap()).unwrap();
            let khz = khz(&home);
            assert!(khz.abs_diff(right) <= right / 1000, "{khz} after {wrong:?}");
            assert_ne!(kept(&home), wrong);
        }
    }
}
