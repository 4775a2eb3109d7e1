//! The host's time stamp counter, in kHz.
//!
//! In emulation the guest's counter is the host's. Without `tsc_early_khz=` the guest measures it against
//! an interval timer that a busy host serves late, and a wrong clock or a boot that hangs for good
//! follows. The frequency that `/proc/cpuinfo` shows is the processor's at this moment, another thing.

use crate::{
    home::{Home, write_atomically},
    sys::tsc_and_clock,
};
use serde::{Deserialize, Serialize};
use std::{fs, path::Path, time::Duration};

/// Long enough for one part in a hundred thousand with readings some hundred nanoseconds wide.
const MEASURE: Duration = Duration::from_millis(20);

/// Long enough to see whether what was measured once is still true.
const LOOK: Duration = Duration::from_millis(1);

/// How far a look may be from what was measured: its own error. A processor of another frequency is further.
const PER_THOUSAND: u64 = 1;

/// What was measured, kept so that the next machine need not wait for as long.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    khz: u64,
}

/// The counter's frequency; takes 20 ms the first time, and where the host has become another one.
pub fn khz(home: &Home) -> u64 {
    let Ok(cache) = home.cache() else { return measure(MEASURE) };
    let path = cache.join("tsc.json");
    if let Some(khz) = remembered(&path) {
        return khz;
    }
    let khz = measure(MEASURE);
    // What cannot be kept is measured again.
    let _ = write_atomically(&path, &serde_json::to_vec(&Remembered { khz }).unwrap_or_default());
    khz
}

fn remembered(path: &Path) -> Option<u64> {
    let Remembered { khz } = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    is_still(khz, measure(LOOK)).then_some(khz)
}

fn is_still(khz: u64, seen: u64) -> bool {
    khz.abs_diff(seen) <= seen / 1000 * PER_THOUSAND
}

fn measure(time: Duration) -> u64 {
    let (first_tsc, first) = tsc_and_clock();
    std::thread::sleep(time);
    let (last_tsc, last) = tsc_and_clock();
    let nanoseconds = last.duration_since(first).as_nanos().max(1);
    (u128::from(last_tsc.wrapping_sub(first_tsc)) * 1_000_000 / nanoseconds) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_believed_only_while_it_is_true() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(folder.path()).unwrap();
        let measured = khz(&home);
        assert!((500_000..10_000_000).contains(&measured), "{measured} kHz");
        let path = home.cache().unwrap().join("tsc.json");
        for wrong in ["{\"khz\":0}", "{\"khz\":18446744073709551615}", "{\"khz\":1000}", "{}", ""] {
            fs::write(&path, wrong).unwrap();
            let again = khz(&home);
            assert!(again.abs_diff(measured) <= measured / 1000, "{again} kHz after {wrong}");
            let kept: Remembered = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(kept.khz, again);
        }
    }

    #[test]
    fn another_processor_is_seen() {
        assert!(is_still(2_450_000, 2_450_000) && is_still(2_450_000, 2_451_000));
        assert!(!is_still(2_450_000, 2_455_000) && !is_still(2_450_000, 2_445_000));
    }
}
