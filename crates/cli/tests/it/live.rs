//! A machine's life as tests of templates, suspension and health see it: started, asked, looked at.

use crate::home::{Finished, Home, casemate};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// No folder of templates.
pub const NONE: [&Path; 0] = [];

/// A configuration with the probe server, in as little memory as it needs.
pub const SMALL_PROBE: &str = "[[servers]]\nid = \"probe\"\nsource = \"builtin:probe\"\nmemory_mb = 128\n";

/// A home with that configuration.
pub fn probe_home() -> Home {
    let home = Home::new();
    home.write("config.toml", SMALL_PROBE);
    home
}

/// What a command that succeeds prints.
pub fn json_of(home: &Home, line: &[&str]) -> Value {
    let said = casemate(home, line);
    assert_eq!(said.code, 0, "{}", said.stderr);
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {}", said.stdout))
}

/// Starts a machine `name` of the built-in probe server and returns its record.
pub fn launch(home: &Home, name: &str, options: &[&str]) -> Value {
    let launched = casemate(home, &[&["mcp", "microvm", "launch", name], options].concat());
    assert_eq!(launched.code, 0, "{launched:?}");
    home.machine_record(name)
}

/// Calls a tool of a machine.
pub fn call(home: &Home, name: &str, tool: &str, arguments: &str) -> Finished {
    casemate(home, &["call", name, tool, arguments])
}

/// What a tool answered, which is JSON.
pub fn answer(home: &Home, name: &str, tool: &str, arguments: &str) -> Value {
    let called = call(home, name, tool, arguments);
    assert_eq!(called.code, 0, "{called:?}");
    serde_json::from_str(&called.stdout).unwrap_or_else(|error| panic!("{error}: {called:?}"))
}

/// A machine answers with what it was asked.
pub fn assert_answers(home: &Home, name: &str) {
    let said = answer(home, name, "echo", r#"{"message": "hi there"}"#);
    assert_eq!(said["message"], "hi there", "{said}");
}

/// Stops a machine.
pub fn stop(home: &Home, name: &str) {
    let stopped = casemate(home, &["stop", name]);
    assert_eq!((stopped.code, stopped.stdout), (0, format!("Stopped {name}\n")), "{}", stopped.stderr);
}

/// A number of a record.
pub fn number(record: &Value, field: &str) -> u64 {
    record[field].as_u64().unwrap_or_else(|| panic!("no {field} in {record}"))
}

/// A process of a record.
pub fn process(record: &Value, field: &str) -> u32 {
    u32::try_from(number(record, field)).unwrap()
}

/// The folder of a machine.
pub fn folder(home: &Home, record: &Value) -> PathBuf {
    home.path().join("machines").join(record["id"].as_str().unwrap())
}

/// What casemate noted about a machine's server.
pub fn server_log(home: &Home, record: &Value) -> String {
    let log = fs::read(folder(home, record).join("logs/server.log")).unwrap_or_default();
    String::from_utf8_lossy(&log).into_owned()
}

/// The folders of finished templates.
pub fn templates(home: &Home) -> Vec<PathBuf> {
    named(home, |name| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// What builders have begun and not finished, and what is being removed.
pub fn partial_templates(home: &Home) -> Vec<PathBuf> {
    named(home, |name| name.ends_with(".partial"))
}

fn named(home: &Home, fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.path().join("templates")).into_iter().flatten().flatten();
    let fit = entries.filter(|entry| entry.file_name().to_str().is_some_and(&fits));
    fit.map(|entry| entry.path()).collect()
}

/// The only template of a home.
pub fn template(home: &Home) -> PathBuf {
    let mut templates = templates(home);
    assert_eq!(templates.len(), 1, "{templates:?}");
    templates.remove(0)
}

/// What is written down about a template.
pub fn manifest(template: &Path) -> Value {
    serde_json::from_slice(&fs::read(template.join("template.json")).unwrap()).unwrap()
}

/// The machines that were made to become templates.
pub fn builders(home: &Home) -> usize {
    let is_builder =
        |record: &Value| record["name"].as_str().is_some_and(|name| name.starts_with("template."));
    home.records().iter().filter(|record| is_builder(record)).count()
}

/// How many milliseconds a time of day that a server told is after one of this host.
pub fn late_ms(told: &Value, host: SystemTime) -> i64 {
    let told = told["timestamp"].as_str().unwrap_or_else(|| panic!("no timestamp in {told}"));
    let host = jiff::Timestamp::try_from(host).unwrap();
    told.parse::<jiff::Timestamp>().unwrap().duration_since(host).as_millis() as i64
}
