//! The tables: on the screen, in the document, and as JSON.

mod table;

use crate::{
    args::Args,
    environment::Environment,
    failure::Failure,
    results::{Gap, Results, Unit},
    server,
    stats::Summary,
    targets::Verdict,
};
use serde_json::json;
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};
use table::table;

/// How the document introduces itself.
const INTRODUCTION: &str = "\
# Benchmarks

Written by `make bench BENCH_ARGS=--write-docs`; do not edit. `make bench` measures again and leaves the raw \
data in `bench-results/`.

Every clock runs from the spawn of a command to the last byte of the answer. All cases of a round are measured \
one after another, round by round, in one run on one host. A *cold* start boots a kernel; a *restored* one \
starts from a template. *host*, *bubblewrap* and *runc* run the same files of the same image; the floor *bare \
QEMU* is casemate's own command line with the shortest possible userspace. Pages that files were read into stay \
in the host's memory between rounds. Memory is proportional: what processes share is divided among them.
";

/// Writes JSON, and the document if it is asked for; gives the folder of the raw data.
pub fn write(
    args: &Args,
    environment: &Environment,
    results: &Results,
    verdicts: &[Verdict],
) -> Result<PathBuf, Failure> {
    let series: Vec<_> = results
        .series()
        .iter()
        .map(|series| json!({ "series": series, "summary": Summary::of(&series.samples) }))
        .collect();
    let all = json!({
        "environment": environment,
        "rounds": args.rounds,
        "only": args.only,
        "loads": results.loads(),
        "series": series,
        "gaps": results.gaps(),
        "targets": verdicts,
    });
    put(&results.folder().join("results.json"), &format!("{all:#}\n"))?;
    if let Some(document) = &args.write_docs {
        let tables = tables(args, environment, results, verdicts, Reasons::Left);
        put(document, &format!("{INTRODUCTION}{tables}"))?;
    }
    Ok(results.folder().to_owned())
}

/// The tables for the screen.
pub fn text(args: &Args, environment: &Environment, results: &Results, verdicts: &[Verdict]) -> String {
    tables(args, environment, results, verdicts, Reasons::Given)
}

fn put(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(Failure::file("write", path))
}

/// Whether it is said why something was not measured. The reasons name this host's paths and others' hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reasons {
    Given,
    Left,
}

fn tables(
    args: &Args,
    environment: &Environment,
    results: &Results,
    verdicts: &[Verdict],
    reasons: Reasons,
) -> String {
    let mut text = String::new();
    let mut section = |title: &str, table: String| {
        if !table.is_empty() {
            // A String takes any text.
            let _ = write!(text, "\n## {title}\n\n{table}");
        }
    };
    section("Where", environment_table(args, environment, results));
    section("Targets", targets_table(verdicts));
    section("Starts", starts_table(results));
    section("Everything", series_table(results));
    section("Not measured", gaps_list(results, reasons));
    text
}

fn environment_table(args: &Args, environment: &Environment, results: &Results) -> String {
    let busy = Summary::of(results.loads());
    let busy = busy.map_or("unknown".to_owned(), |load| format!("{:.2} to {:.2}", load.least, load.most));
    let mut rows = vec![
        ["date".to_owned(), environment.date.clone()],
        ["machine".to_owned(), environment.machine.clone()],
        ["host kernel".to_owned(), environment.host_kernel.clone()],
        ["guest kernel".to_owned(), environment.guest_kernel.clone()],
        ["backend".to_owned(), environment.accelerator.clone()],
        ["commit".to_owned(), environment.commit.clone()],
        ["rounds".to_owned(), args.rounds.to_string()],
        ["load average before rounds".to_owned(), busy],
    ];
    rows.extend(environment.versions.iter().map(|(name, version)| [name.clone(), version.clone()]));
    table(["", ""], &rows)
}

fn targets_table(verdicts: &[Verdict]) -> String {
    let rows: Vec<[String; 4]> = verdicts
        .iter()
        .map(|verdict| {
            let measured = verdict.measured.map_or("-".to_owned(), |value| shown(value, verdict.unit));
            let word = match verdict.met {
                Some(true) => "met",
                Some(false) => "missed",
                None => "not measured",
            };
            [verdict.target.to_owned(), measured, shown(verdict.at_most, verdict.unit), word.to_owned()]
        })
        .collect();
    table(["target", "measured", "at most", ""], &rows)
}

/// Every way to start a server beside its start on the host.
fn starts_table(results: &Results) -> String {
    let mut rows = Vec::new();
    for server in server::ALL {
        let answered = |way: &str, measure| results.summary(&format!("{way} {}", server.name), measure);
        let host = answered("host", "initialize answered").map(|summary| summary.median);
        for way in ["host", "bubblewrap", "runc", "cold", "restored", "first"] {
            let Some(initialized) = answered(way, "initialize answered") else { continue };
            let called = answered(way, "first call answered").map_or("-".to_owned(), spread);
            let to_host = host.map_or("-".to_owned(), |host| shown(initialized.median / host, Unit::Ratio));
            rows.push([format!("{} {way}", server.name), spread(initialized), called, to_host]);
        }
    }
    if let Some(floor) = results.summary("floor qemu", "userspace") {
        rows.push(["bare QEMU to userspace".to_owned(), spread(floor), "-".to_owned(), "-".to_owned()]);
    }
    if rows.is_empty() {
        return String::new();
    }
    table(["start", "initialize, ms (least to most)", "first call, ms (least to most)", "to host"], &rows)
}

fn series_table(results: &Results) -> String {
    let rows: Vec<[String; 8]> = results
        .series()
        .iter()
        .filter_map(|series| {
            let summary = Summary::of(&series.samples)?;
            Some([
                series.case.clone(),
                series.measure.clone(),
                series.unit.symbol().to_owned(),
                number(summary.median),
                number(summary.least),
                number(summary.most),
                summary.p99.map_or(String::new(), number),
                summary.count.to_string(),
            ])
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    table(["case", "measure", "unit", "median", "least", "most", "p99", "values"], &rows)
}

fn gaps_list(results: &Results, reasons: Reasons) -> String {
    let line = |gap: &Gap| {
        let word = if gap.unavailable { "not available" } else { "failed" };
        let reason = match reasons {
            Reasons::Given => format!(": {}", gap.reason),
            Reasons::Left => String::new(),
        };
        format!("- {}, round {}: {word}{reason}\n", gap.case, gap.round)
    };
    results.gaps().iter().map(line).collect()
}

fn spread(summary: Summary) -> String {
    format!("{} ({} to {})", number(summary.median), number(summary.least), number(summary.most))
}

fn shown(value: f64, unit: Unit) -> String {
    let text = number(value);
    if unit.symbol().is_empty() { text } else { format!("{text} {}", unit.symbol()) }
}

/// Three digits that count; whole numbers as they are.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size == size.trunc() || size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, time::Duration};

    #[test]
    fn numbers_pretend_nothing() {
        let shown: Vec<String> = [0.0, 3.0, 0.0667, 1.2345, 12.345, 1234.5].map(number).to_vec();
        assert_eq!(shown, ["0", "3", "0.067", "1.23", "12.3", "1234"]);
    }

    #[test]
    fn the_document_names_no_host_s_paths() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::create(folder.path()).unwrap();
        results.of("cold probe", 1).time("initialize answered", Duration::from_millis(1500));
        results.of("host probe", 1).time("initialize answered", Duration::from_millis(3));
        results.gap("many 100", 1, &Failure::Unavailable("see /secret/place".to_owned()));
        let environment = Environment {
            date: "2026-11-21".to_owned(),
            machine: "2 × some processor".to_owned(),
            host_kernel: "6.18".to_owned(),
            guest_kernel: "6.1".to_owned(),
            accelerator: "qemu, tcg".to_owned(),
            commit: "abc".to_owned(),
            versions: BTreeMap::new(),
        };
        let document = folder.path().join("benchmarks.md");
        let args = Args {
            program: PathBuf::new(),
            rounds: 1,
            only: Vec::new(),
            built_kernel: false,
            list: false,
            results: PathBuf::new(),
            write_docs: Some(document.clone()),
        };
        let verdicts = crate::targets::judge(&results);
        write(&args, &environment, &results, &verdicts).unwrap();
        let document = fs::read_to_string(document).unwrap();
        assert!(document.contains("| probe cold ") && document.contains("500 ×"), "{document}");
        assert!(document.contains("not available") && !document.contains("/secret"), "{document}");
        assert!(text(&args, &environment, &results, &verdicts).contains("/secret/place"));
        let json = fs::read(results.folder().join("results.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["series"][0]["summary"]["median"], 1500.0);
        assert_eq!(json["series"][0]["series"]["samples"][0], 1500.0);
        assert_eq!(json["gaps"][0]["case"], "many 100");
    }
}
