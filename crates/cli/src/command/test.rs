//! `casemate test`.

use super::options::{LaterOptions, MachineOptions, ServerOptions, StartOptions};
use crate::{
    config::settings::{self, Flags},
    context::Context,
    engine::{
        self, Accelerator, BackendKind, Conversation, Lifetime, McpAnswer, Progress, Session, machines,
        session_error,
    },
    error::{Error, Outcome},
    render::{
        progress::Steps,
        table::{Cell, table},
    },
};
use serde::Serialize;
use serde_json::value::RawValue;
use std::time::{Duration, Instant};

/// How many requests the percentiles are taken from.
const REQUESTS: usize = 100;

/// Warming up: the first requests fill caches and, in emulation, translate code.
const WARM_UP: usize = 10;

/// How long one request may take before the test fails.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Test this host: launch, connect, call, health, stop, each timed against its target
///
/// Runs the built-in probe server. Fetches a guest kernel first if there is none. Exits with 1 if a target
/// is missed.
///
/// Examples:
///   casemate test
///   casemate test --json
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Test {
    /// Print JSON: {backend, accelerator, launch_ms, first_connection_ms, request_ms_p50, request_ms_p99,
    /// health_check_ms, shutdown_ms, targets, passed}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) machine: MachineOptions,
    #[command(flatten)]
    later: LaterOptions,
}

/// What `test --json` prints; times in milliseconds.
#[derive(Debug, Clone, Serialize)]
struct Report {
    backend: BackendKind,
    accelerator: Option<Accelerator>,
    launch_ms: f64,
    first_connection_ms: f64,
    request_ms_p50: f64,
    request_ms_p99: f64,
    health_check_ms: f64,
    shutdown_ms: f64,
    targets: Targets,
    passed: bool,
}

/// What each time may be at most.
#[derive(Debug, Clone, Copy, Serialize)]
struct Targets {
    launch_ms: f64,
    first_connection_ms: f64,
    request_ms_p50: f64,
    health_check_ms: f64,
    shutdown_ms: f64,
}

impl Targets {
    /// A kernel boots several times slower where its instructions are translated.
    fn of(accelerator: Option<Accelerator>) -> Self {
        let (launch_ms, first_connection_ms) = match accelerator {
            Some(Accelerator::Tcg) => (2500.0, 2500.0),
            _ => (1000.0, 2000.0),
        };
        Self {
            launch_ms,
            first_connection_ms,
            request_ms_p50: 5.0,
            health_check_ms: 100.0,
            shutdown_ms: 3000.0,
        }
    }
}

/// Times one machine.
pub async fn run(args: Test, context: &Context) -> Result<Outcome, Error> {
    args.later.refuse()?;
    let configuration = context.configuration()?;
    let name = machines::passing_name("test")?;
    let probe = engine::ad_hoc("test", &["builtin:probe".to_owned()], &ServerOptions::default())?;
    let start = StartOptions { cold: true, ..StartOptions::default() };
    let flags = Flags { machine: &args.machine, start: &start };
    let settings = settings::merge(flags, &context.environment, None, &configuration.defaults)?;
    // Image and kernel are made ready before any clock starts.
    let plan = engine::plan(context, &configuration, &probe, &settings).await?;

    let steps = Steps::new(context.screen);
    steps.step("starting a machine with the probe server");
    let started = Instant::now();
    let (lifetime, conversation) = (Lifetime::Leased, Conversation::Held);
    let leased = machines::launch_quietly(context, &plan, &name, lifetime, conversation, |_| {}).await;
    let leased = leased.map_err(|error| engine::launch_error(name.as_str(), error))?;
    let launch_ms = milliseconds_since(started);
    let failed = |error| session_error(name.as_str(), error);
    let mut session = leased.session().await.map_err(failed)?;
    echo(&mut session, 0).await?;
    let first_connection_ms = milliseconds_since(started);

    steps.step("calling its tools");
    let mut times = Vec::with_capacity(REQUESTS);
    for number in 0..WARM_UP + REQUESTS {
        let sent = Instant::now();
        echo(&mut session, number).await?;
        times.push(milliseconds_since(sent));
    }
    times.drain(..WARM_UP);
    let sent = Instant::now();
    session.ping().await.map_err(failed)?;
    let health_check_ms = milliseconds_since(sent);

    steps.step("stopping it");
    let record = leased.record().clone();
    drop(session);
    let stopping = Instant::now();
    let (state, reason) = leased.stop().await;
    let shutdown_ms = milliseconds_since(stopping);
    if state != engine::State::Stopped {
        return Err(Error::server(format!("machine {name} did not stop as it should: {reason}")));
    }

    let targets = Targets::of(record.accelerator);
    let mut report = Report {
        backend: record.backend,
        accelerator: record.accelerator,
        launch_ms,
        first_connection_ms,
        request_ms_p50: percentile(&mut times, 50),
        request_ms_p99: percentile(&mut times, 99),
        health_check_ms,
        shutdown_ms,
        targets,
        passed: false,
    };
    report.passed = rows(&report).iter().all(|(_, took, target)| target.is_none_or(|target| *took <= target));
    drop(steps);
    if args.json {
        context.screen.json(&report)?;
    } else {
        print(&report, context)?;
    }
    Ok(if report.passed { Outcome::Done } else { Outcome::Failed })
}

/// Calls `echo` and checks that its own message comes back.
async fn echo(session: &mut Session, number: usize) -> Result<(), Error> {
    let message = format!("message {number}");
    let params = serde_json::json!({"name": "echo", "arguments": {"message": message}});
    let params = RawValue::from_string(params.to_string())
        .map_err(|error| Error::server("internal error").because(error))?;
    match session
        .mcp("tools/call", Some(params), TIMEOUT)
        .await
        .map_err(|error| session_error("test", error))?
    {
        McpAnswer::Result(result) if result.get().contains(&message) => Ok(()),
        McpAnswer::Result(answer) | McpAnswer::Error(answer) => Err(Error::server(format!(
            "the probe server answered {} to echo",
            crate::render::harmless(answer.get())
        ))),
    }
}

fn rows(report: &Report) -> [(&'static str, f64, Option<f64>); 6] {
    let targets = &report.targets;
    [
        ("launch", report.launch_ms, Some(targets.launch_ms)),
        ("first connection", report.first_connection_ms, Some(targets.first_connection_ms)),
        ("request, median", report.request_ms_p50, Some(targets.request_ms_p50)),
        ("request, 99th percentile", report.request_ms_p99, None),
        ("health check", report.health_check_ms, Some(targets.health_check_ms)),
        ("shutdown", report.shutdown_ms, Some(targets.shutdown_ms)),
    ]
}

fn print(report: &Report, context: &Context) -> Result<(), Error> {
    let shown: Vec<[Cell; 4]> = rows(report)
        .into_iter()
        .map(|(step, took, target)| {
            let met = target.is_none_or(|target| took <= target);
            let verdict = match (target, met) {
                (None, _) => Cell::from(""),
                (Some(_), true) => Cell::verdict("met", true),
                (Some(_), false) => Cell::verdict("missed", false),
            };
            let target = target.map_or("-".to_owned(), |target| format!("{target:.0} ms"));
            [step.into(), format!("{took:.1} ms").into(), target.into(), verdict]
        })
        .collect();
    context.screen.print(&table(["STEP", "TOOK", "TARGET", ""], &shown, context.screen.width))?;
    let accelerator = report.accelerator.map_or(String::new(), |accelerator| format!(" with {accelerator}"));
    let verdict = if report.passed { "every target met" } else { "a target was missed" };
    context.screen.line(&format!("\n{}{accelerator}: {verdict}", report.backend))
}

/// Milliseconds with three decimals: more would pretend.
fn milliseconds_since(start: Instant) -> f64 {
    (start.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

/// The value that `percent` of the values do not exceed (nearest rank).
fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((percentile(&mut values, 50), percentile(&mut values, 99)), (50.0, 99.0));
        assert_eq!(percentile(&mut [7.0], 50), 7.0);
        assert_eq!(percentile(&mut [], 50), f64::INFINITY);
    }

    #[test]
    fn the_report_has_the_promised_fields() {
        let report = Report {
            backend: BackendKind::Qemu,
            accelerator: Some(Accelerator::Tcg),
            launch_ms: 1800.5,
            first_connection_ms: 1805.25,
            request_ms_p50: 0.875,
            request_ms_p99: 2.0,
            health_check_ms: 1.0,
            shutdown_ms: 300.0,
            targets: Targets::of(Some(Accelerator::Tcg)),
            passed: true,
        };
        let expected = r#"{"backend":"qemu","accelerator":"tcg","launch_ms":1800.5,"first_connection_ms":1805.25,"request_ms_p50":0.875,"request_ms_p99":2.0,"health_check_ms":1.0,"shutdown_ms":300.0,"targets":{"launch_ms":2500.0,"first_connection_ms":2500.0,"request_ms_p50":5.0,"health_check_ms":100.0,"shutdown_ms":3000.0},"passed":true}"#;
        assert_eq!(serde_json::to_string(&report).unwrap(), expected);
    }
}
