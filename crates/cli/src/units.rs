//! Lengths of time and amounts of memory as people write them: `90s`, `10GiB`.

use std::{fmt, ops::RangeInclusive, str::FromStr, time::Duration};

/// Why a text is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// It is not written as one.
    #[error("write a number and ms, s, m, h or d, such as 90s")]
    Form,
    /// It is shorter or longer than makes sense.
    #[error("it is not in {least} to {most}")]
    Range {
        /// As it would be written.
        least: &'static str,
        /// As it would be written.
        most: &'static str,
    },
}

/// Reads `90s`, `10m`, `14d`.
pub fn duration(text: &str) -> Result<Duration, InvalidDuration> {
    let (number, unit) = number_and_unit(text).ok_or(InvalidDuration::Form)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        "d" => 24 * 3600 * 1000,
        _ => return Err(InvalidDuration::Form),
    };
    // Ten thousand years, which is a mistake, but one that can be calculated with.
    const LONGEST: u64 = 10_000 * 366 * 24 * 3600 * 1000;
    let ms = number.checked_mul(unit_ms).filter(|&ms| ms <= LONGEST);
    ms.map(Duration::from_millis).ok_or(InvalidDuration::Form)
}

/// After how long without a request a machine is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Not at all.
    Never,
    /// After that time.
    After(Duration),
}

impl Idle {
    const NEVER: &str = "never";
    const RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(168 * 3600);

    /// The time, if there is one.
    pub fn after(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::After(time) => Some(time),
        }
    }
}

impl FromStr for Idle {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        if text == Self::NEVER {
            return Ok(Self::Never);
        }
        bounded(duration(text)?, &Self::RANGE, "100ms", "168h").map(Self::After)
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::After(time) = self else { return f.write_str(Self::NEVER) };
        let ms = time.as_millis();
        match [(3_600_000, "h"), (60_000, "m"), (1000, "s")].iter().find(|(unit, _)| ms % unit == 0) {
            Some((unit, name)) => write!(f, "{}{name}", ms / unit),
            None => write!(f, "{ms}ms"),
        }
    }
}

/// How often a machine is asked for a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthInterval(pub Duration);

impl FromStr for HealthInterval {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let range = Duration::from_millis(500)..=Duration::from_secs(3600);
        bounded(duration(text)?, &range, "500ms", "1h").map(Self)
    }
}

fn bounded(
    time: Duration,
    range: &RangeInclusive<Duration>,
    least: &'static str,
    most: &'static str,
) -> Result<Duration, InvalidDuration> {
    if range.contains(&time) { Ok(time) } else { Err(InvalidDuration::Range { least, most }) }
}

/// Why a text is no number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a number and KiB, MiB, GiB or TiB, such as 10GiB")]
pub struct InvalidSize;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = InvalidSize;

    /// Reads `10GiB`, `10G` (the same), `10GB` (by a thousand) and `0`.
    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let (number, unit) = number_and_unit(text).ok_or(InvalidSize)?;
        let unit = unit.to_ascii_uppercase();
        let (prefix, base) = match unit.strip_suffix("IB") {
            Some(prefix) => (prefix, 1024),
            None if unit.ends_with('B') => (&unit[..unit.len() - 1], 1000),
            None => (unit.as_str(), 1024),
        };
        let power = match prefix {
            // Bytes alone would be a mistake more often than not.
            "" if number == 0 => 0,
            "K" => 1,
            "M" => 2,
            "G" => 3,
            "T" => 4,
            _ => return Err(InvalidSize),
        };
        number.checked_mul(u64::pow(base, power)).map(Self).ok_or(InvalidSize)
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("14d"), Ok(Duration::from_secs(14 * 24 * 3600)));
        for wrong in ["", "s", "10", "-1s", "1.5s", "1ß", "99999999999999999999s", "99999999999999d"] {
            assert_eq!(duration(wrong), Err(InvalidDuration::Form), "{wrong}");
        }
    }

    #[test]
    fn idle_times_have_bounds_and_are_written_as_they_are_read() {
        for text in ["never", "100ms", "1500ms", "90s", "10m", "168h"] {
            assert_eq!(text.parse::<Idle>().unwrap().to_string(), text);
        }
        assert_eq!("120s".parse::<Idle>().unwrap().to_string(), "2m");
        for wrong in ["99ms", "169h", "8d"] {
            assert!(matches!(wrong.parse::<Idle>(), Err(InvalidDuration::Range { .. })), "{wrong}");
        }
        assert!("0s".parse::<HealthInterval>().is_err());
    }

    #[test]
    fn sizes_are_binary_unless_they_say_otherwise() {
        let read = |text: &str| text.parse().map(|Size(bytes)| bytes);
        assert_eq!(read("10GiB"), Ok(10 << 30));
        assert_eq!(read("10 G"), Ok(10 << 30));
        assert_eq!(read("512m"), Ok(512 << 20));
        assert_eq!(read("2GB"), Ok(2_000_000_000));
        assert_eq!(read("0"), Ok(0));
        for wrong in ["", "10", "B", "10B", "10X", "-1G", "18446744073709551615K", "1.5G"] {
            assert_eq!(read(wrong), Err(InvalidSize), "{wrong}");
        }
    }
}
