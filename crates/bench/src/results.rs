//! What was measured: every value is written to the raw data as it comes, and kept for the summary.

use crate::{
    failure::Failure,
    stats::{Summary, rounded},
};
use jiff::Timestamp;
use serde::Serialize;
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

/// What a value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Mebibytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// Things.
    #[serde(rename = "count")]
    Count,
    /// One value to another.
    #[serde(rename = "ratio")]
    Ratio,
}

impl Unit {
    /// As it stands behind a value.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::Count => "",
            Self::Ratio => "×",
        }
    }
}

/// All values of one measure of one case.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// What was done.
    pub case: String,
    /// What of it was measured.
    pub measure: String,
    /// What the values count.
    pub unit: Unit,
    /// The values in the order in which they came.
    pub samples: Vec<f64>,
}

/// Something that was not measured.
#[derive(Debug, Clone, Serialize)]
pub struct Gap {
    /// What was to be done.
    pub case: String,
    /// In which round.
    pub round: u32,
    /// Whether this host or this version has not got it, rather than that it failed.
    pub unavailable: bool,
    /// Why.
    pub reason: String,
}

/// Everything that one run measured.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    raw: File,
    series: Vec<Series>,
    gaps: Vec<Gap>,
    loads: Vec<f64>,
}

impl Results {
    /// Makes the folder of this run below `parent`.
    pub fn create(parent: &Path) -> Result<Self, Failure> {
        let folder = parent.join(Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string());
        fs::create_dir_all(&folder).map_err(Failure::file("make the folder", &folder))?;
        let raw = folder.join("runs.jsonl");
        let raw = File::create(&raw).map_err(Failure::file("create", raw))?;
        Ok(Self { folder, raw, series: Vec::new(), gaps: Vec::new(), loads: Vec::new() })
    }

    /// Where the raw data is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every series, in the order in which they began.
    pub fn series(&self) -> &[Series] {
        &self.series
    }

    /// What was not measured.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// How busy the host was at the beginning of each round: the load average of a minute.
    pub fn loads(&self) -> &[f64] {
        &self.loads
    }

    /// The summary of one series.
    pub fn summary(&self, case: &str, measure: &str) -> Option<Summary> {
        let series = self.series.iter().find(|series| series.case == case && series.measure == measure)?;
        Summary::of(&series.samples)
    }

    /// Notes how busy the host is.
    pub fn load(&mut self, load: f64) {
        self.raw(&serde_json::json!({ "load": load }));
        self.loads.push(load);
    }

    /// Notes that a case was not measured.
    pub fn gap(&mut self, case: &str, round: u32, failure: &Failure) {
        let gap = Gap {
            case: case.to_owned(),
            round,
            unavailable: matches!(failure, Failure::Unavailable(_)),
            reason: crate::failure::chain(failure),
        };
        self.raw(&gap);
        self.gaps.push(gap);
    }

    /// Takes the values of one case in one round.
    pub fn of<'a>(&'a mut self, case: &'a str, round: u32) -> Samples<'a> {
        Samples { results: self, case, round }
    }

    fn add(&mut self, case: &str, round: u32, measure: &str, unit: Unit, value: f64) {
        let value = rounded(value);
        self.raw(&serde_json::json!({
            "case": case, "round": round, "measure": measure, "unit": unit, "value": value,
        }));
        match self.series.iter_mut().find(|series| series.case == case && series.measure == measure) {
            Some(series) => series.samples.push(value),
            None => self.series.push(Series {
                case: case.to_owned(),
                measure: measure.to_owned(),
                unit,
                samples: vec![value],
            }),
        }
    }

    /// The summary at the end carries the same values: a disk that is full now shows there.
    fn raw(&mut self, line: &impl Serialize) {
        if let Ok(line) = serde_json::to_string(line) {
            let _ = writeln!(self.raw, "{line}");
        }
    }
}

/// Where one case puts its values.
#[derive(Debug)]
pub struct Samples<'a> {
    results: &'a mut Results,
    case: &'a str,
    round: u32,
}

impl Samples<'_> {
    /// How long something took.
    pub fn time(&mut self, measure: &str, took: Duration) {
        self.add(measure, Unit::Milliseconds, took.as_secs_f64() * 1e3);
    }

    /// How much memory or disk something takes, in MiB.
    pub fn mebibytes(&mut self, measure: &str, value: f64) {
        self.add(measure, Unit::Mebibytes, value);
    }

    /// How many there are.
    pub fn count(&mut self, measure: &str, value: usize) {
        self.add(measure, Unit::Count, value as f64);
    }

    /// One value to another.
    pub fn ratio(&mut self, measure: &str, value: f64, to: f64) {
        self.add(measure, Unit::Ratio, value / to);
    }

    fn add(&mut self, measure: &str, unit: Unit, value: f64) {
        self.results.add(self.case, self.round, measure, unit, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_and_written_as_they_come() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::create(folder.path()).unwrap();
        results.of("cold probe", 1).time("initialize answered", Duration::from_micros(1_234_567));
        results.of("cold probe", 2).time("initialize answered", Duration::from_millis(2000));
        results.of("cold probe", 2).mebibytes("memory", 12.5);
        results.gap("suspend probe", 1, &Failure::Unavailable("not built".to_owned()));
        let summary = results.summary("cold probe", "initialize answered").unwrap();
        assert_eq!((summary.count, summary.least, summary.most), (2, 1234.567, 2000.0));
        assert_eq!(results.summary("cold probe", "other"), None);
        assert!(results.gaps()[0].unavailable);
        let raw = fs::read_to_string(results.folder().join("runs.jsonl")).unwrap();
        assert_eq!(raw.lines().count(), 4);
        assert!(raw.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }
}
