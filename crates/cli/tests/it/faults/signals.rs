//! Ctrl-C at any moment.

use super::{add_probe, assert_nothing_left};
use crate::{
    home::Home,
    support::{SplitMix, eventually, seed, signal},
};
use rustix::process::Signal;
use std::{
    io::Read,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Later than a machine becomes ready on a quiet host.
const LATEST_MS: u64 = 3000;

#[test]
fn the_first_interrupt_of_a_launch_cancels_it_and_cleans_up() {
    at_random_moments(&["mcp", "microvm", "launch", "m"]);
}

#[test]
fn the_first_interrupt_of_a_call_cancels_it_and_cleans_up() {
    at_random_moments(&["call", "probe", "sleep", r#"{"ms": 60000}"#]);
}

#[test]
fn the_first_interrupt_of_a_run_cancels_it_and_cleans_up() {
    at_random_moments(&["run", "probe"]);
}

fn at_random_moments(args: &[&str]) {
    let home = Home::new();
    add_probe(&home, "probe", &[]);
    let mut random = SplitMix::new(seed("CASEMATE_SIGNAL_SEED"));
    for _ in 0..4 {
        let delay = Duration::from_millis(random.below(LATEST_MS));
        let mut command = start(&home, args);
        thread::sleep(delay);
        signal(command.id(), Signal::INT);
        let (code, stderr) = end(&mut command);
        let context = format!("{args:?} interrupted after {delay:?}\n{stderr}");
        match code {
            // Before the handler was there; nothing was made yet.
            -2 => {}
            // Launched before the signal came.
            0 if args.contains(&"launch") => {
                assert_eq!(crate::home::casemate(&home, &["stop", "m"]).stdout, "Stopped m\n", "{context}");
            }
            130 => assert!(stderr.contains("error: interrupted"), "{context}"),
            _ => panic!("ended with {code}: {context}"),
        }
        assert_nothing_left(&home);
    }
}

#[test]
fn the_second_interrupt_ends_at_once_and_nothing_stays() {
    let home = Home::new();
    let mut command = start(&home, &["mcp", "microvm", "launch", "m"]);
    let vmm = || home.records().iter().find_map(|record| record["pid"].as_u64());
    eventually("a VMM", vmm);
    let since = Instant::now();
    signal(command.id(), Signal::INT);
    thread::sleep(Duration::from_millis(1));
    signal(command.id(), Signal::INT);
    let (code, stderr) = end(&mut command);
    assert_eq!(code, 130, "{stderr}");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_nothing_left(&home);
}

fn start(home: &Home, args: &[&str]) -> Child {
    // A client that says nothing and stays.
    home.command(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// The exit code, or the negative number of the signal that ended it, and what it said.
fn end(command: &mut Child) -> (i32, String) {
    use std::os::unix::process::ExitStatusExt;
    let _stdin = command.stdin.take();
    let status = eventually("the command's end", || command.try_wait().unwrap());
    let mut stderr = String::new();
    command.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (status.code().unwrap_or_else(|| -status.signal().unwrap_or_default()), stderr)
}
