//! Machines restored from templates: shared, told apart, and never from one that is not what it was.

mod damage;
mod refused;
mod room;
mod wall;

use crate::{
    home::{Home, casemate},
    live::{
        NONE, answer, assert_answers, builders, call, late_ms, launch, manifest, partial_templates, process,
        stop, template, templates,
    },
    support::{PATIENCE, eventually, is_alive},
};
use casemate_machine::template::{Policy, Templates};
use jiff::SignedDuration;
use serde_json::Value;
use std::{
    fs, thread,
    time::{Duration, Instant, SystemTime},
};

/// How wrong a clock may be that was set on a busy host.
const CLOCK_MS: i64 = 2000;

#[test]
fn clones_of_one_template_have_their_own_name_and_the_right_time() {
    let home = Home::new();
    let first = launch(&home, "first", &[]);
    assert_eq!(first["start"], "restored", "{first}");
    let template = template(&home);
    assert_eq!(first["template"], template.file_name().unwrap().to_str().unwrap());
    // Later than any clock could be that goes on from where the template's had stood.
    thread::sleep(Duration::from_millis(2 * CLOCK_MS as u64));
    let second = launch(&home, "second", &[]);
    assert_eq!((&second["start"], &second["template"]), (&first["start"], &first["template"]));
    assert_eq!(builders(&home), 1);

    let before = SystemTime::now();
    let told = answer(&home, "second", "echo", r#"{"message": "?"}"#);
    assert!(late_ms(&told, before) > -CLOCK_MS, "{told} was told after {before:?}");
    assert!(late_ms(&told, SystemTime::now()) < CLOCK_MS, "{told}");
    for name in ["first", "second"] {
        assert_eq!(answer(&home, name, "whoami", "{}")["hostname"], name);
    }
    // Each its own memory.
    assert_eq!(answer(&home, "first", "counter", "{}")["count"], 1);
    assert_eq!(answer(&home, "first", "counter", "{}")["count"], 2);
    assert_eq!(answer(&home, "second", "counter", "{}")["count"], 1);
}

#[test]
fn six_starts_at_once_build_one_template() {
    let home = Home::new();
    let names: Vec<String> = (0..6).map(|n| format!("m{n}")).collect();
    thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| launch(&home, name, &[]));
        }
    });
    let template = template(&home);
    for name in &names {
        let record = home.machine_record(name);
        assert_eq!(record["start"], "restored", "{record}");
        assert_eq!(record["template"], template.file_name().unwrap().to_str().unwrap());
        assert_answers(&home, name);
    }
    assert_eq!(builders(&home), 1);
    assert_eq!(partial_templates(&home), NONE);
}

#[test]
fn a_cold_start_neither_reads_nor_writes_templates() {
    let home = Home::new();
    let cold = launch(&home, "one", &["--cold"]);
    assert_eq!((&cold["start"], &cold["template"]), (&"cold".into(), &().into()), "{cold}");
    assert_eq!(cold["template_reason"], "a cold start was asked for");
    assert_eq!(templates(&home), NONE);
    assert_eq!(builders(&home), 0);

    launch(&home, "two", &[]);
    let used = || fs::metadata(template(&home).join("verified")).unwrap().modified().unwrap();
    let before = used();
    assert_eq!(launch(&home, "three", &["--cold"])["start"], "cold");
    assert_eq!(used(), before, "a cold start has looked at the template");
    // A warm one does, so that it would have been seen.
    launch(&home, "four", &[]);
    assert_ne!(used(), before);
}

#[test]
fn a_template_of_a_live_machine_is_not_pruned_and_one_of_an_ended_machine_is() {
    let home = Home::new();
    launch(&home, "m", &[]);
    let path = template(&home);
    let library = casemate_machine::Home::open(home.path()).unwrap();
    let nothing = Policy { age: SignedDuration::ZERO, bytes: 0 };
    let prune = || Templates::open(&library).unwrap().prune(&nothing).unwrap().keys;
    assert_eq!(prune(), [""; 0]);
    assert_answers(&home, "m");
    stop(&home, "m");
    assert_eq!(prune(), [path.file_name().unwrap().to_str().unwrap()]);
    assert!(!path.exists());
    // The next start makes it anew.
    assert_eq!(launch(&home, "m", &[])["start"], "restored");
    assert_eq!(template(&home), path);
    assert_eq!(builders(&home), 2);
}

#[test]
fn a_clone_lives_on_without_its_template() {
    let home = Home::new();
    let record = launch(&home, "m", &[]);
    fs::remove_dir_all(template(&home)).unwrap();
    // Much of its memory was not looked at before.
    let taken = answer(&home, "m", "allocate", r#"{"mb": 64}"#);
    assert_eq!(taken["mb"], 64, "{taken}");
    assert_answers(&home, "m");
    assert!(is_alive(process(&record, "pid")));
}

/// The template goes after it was found and before the machine's supervisor opens it.
#[test]
fn a_template_that_is_pruned_while_a_machine_starts_from_it() {
    let home = Home::new();
    launch(&home, "first", &[]);
    let path = template(&home);
    let aside = home.path().join("aside");
    let mut cold = 0;
    for round in 0..4 {
        let name = format!("m{round}");
        let machines = || fs::read_dir(home.path().join("machines")).unwrap().count();
        let before = machines();
        let mut command = home.command(&["mcp", "microvm", "launch", &name]);
        let starting = command.spawn().unwrap();
        // Its folder is made under the registry's lock, before its supervisor is started.
        let until = Instant::now() + PATIENCE;
        while machines() == before {
            assert!(Instant::now() < until, "no machine is begun");
            thread::sleep(Duration::from_micros(100));
        }
        fs::rename(&path, &aside).unwrap();
        let ended = starting.wait_with_output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        let record = home.machine_record(&name);
        if record["start"] == "cold" {
            cold += 1;
            let reason = record["template_reason"].as_str().unwrap();
            assert!(reason.contains("could not be restored") && reason.contains("no template"), "{reason}");
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(said.contains(&format!("{name} was started cold")), "{said}");
        }
        assert_answers(&home, &name);
        fs::rename(&aside, &path).unwrap();
    }
    assert!(cold > 0, "no start was late enough to miss its template");
}

/// A machine that fails to be restored is started cold, and one that was told to end is not.
#[test]
fn a_machine_that_is_stopped_while_it_is_restored_does_not_come_back() {
    let home = Home::new();
    launch(&home, "first", &[]);
    let starting = home.command(&["mcp", "microvm", "launch", "m"]).spawn().unwrap();
    let is_on_its_way = |record: &Value| record["name"] == "m" && record["state"] == "prepared";
    eventually("a machine on its way", || home.records().iter().any(is_on_its_way).then_some(()));
    let stopped = casemate(&home, &["stop", "m"]);
    let ended = starting.wait_with_output().unwrap();
    assert_eq!(stopped.code, 0, "{stopped:?}, {ended:?}");
    let of_name: Vec<Value> = home.records().into_iter().filter(|record| record["name"] == "m").collect();
    assert!(of_name.len() == 1 && of_name[0]["state"] == "stopped", "{of_name:?}, {ended:?}");
    // Nor is its template blamed.
    assert_eq!(templates(&home).len(), 1);
}

#[test]
fn what_a_template_holds_depends_on_the_sizes_of_the_machine() {
    let home = Home::new();
    launch(&home, "one", &[]);
    launch(&home, "two", &["--memory", "192"]);
    assert_eq!(templates(&home).len(), 2);
    let mut sizes: Vec<u64> = templates(&home)
        .iter()
        .map(|path| manifest(path)["ingredients"]["memory_mb"].as_u64().unwrap())
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [192, 256]);
    assert_answers(&home, "two");
    assert_eq!(casemate(&home, &["stop", "--all"]).code, 0);
    assert_eq!(call(&home, "two", "echo", "{}").code, 3);
}
