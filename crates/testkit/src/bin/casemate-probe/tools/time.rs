//! Time of day, and the tool that lets it pass.

use super::arguments::{Argument, Kind};
use super::{Arguments, Failure, LOOKS, Reply, Tool};
use crate::call::Call;
use crate::signal::Waited;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most progress notifications of one `sleep`.
const PROGRESS_STEPS: u64 = 10;

const LONGEST_SLEEP_MS: i64 = 3_600_000;

pub const SLEEP: Tool = Tool {
    name: "sleep",
    title: "Sleep",
    description: "Answers after that time; reports progress if asked to, and ends early when cancelled.",
    arguments: &[Argument::required("ms", Kind::Integer(0, LONGEST_SLEEP_MS), "How long, in milliseconds.")],
    hints: LOOKS,
    slow: true,
    run: sleep,
};

fn sleep(call: &Call, arguments: &Arguments) -> Result<Reply, Failure> {
    let total = arguments.size("ms") as u64;
    // Without a listener there is nothing to wake up for in between.
    let steps = if call.wants_progress() { PROGRESS_STEPS.min(total).max(1) } else { 1 };
    let mut slept = 0;
    for step in 1..=steps {
        let until = total * step / steps;
        if matches!(call.signal.wait(Duration::from_millis(until - slept)), Waited::Cancelled) {
            return Err(Failure::Cancelled);
        }
        slept = until;
        call.progress(slept, total);
    }
    Ok(Reply::Text(format!("slept {total} ms")))
}

/// The time of day in UTC, as RFC 3339 writes it, with milliseconds.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(since)
}

fn rfc3339(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since_1970.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The date of a day since 1970 in the Gregorian calendar. Counts in years that begin in March, so that the
/// leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), expected);
        }
    }
}
