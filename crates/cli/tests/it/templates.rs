//! `casemate template`: what is there, whether it is whole, and what goes.

use crate::{
    home::{Home, casemate},
    live::{json_of, probe_home},
};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::FileExt, process::Command};

fn templates(home: &Home) -> Vec<Value> {
    json_of(home, &["template", "list", "--json"]).as_array().unwrap().clone()
}

#[test]
fn a_template_is_listed_inspected_kept_while_it_is_used_and_pruned() {
    let home = probe_home();
    assert_eq!(templates(&home), Vec::<Value>::new());
    let launched = casemate(&home, &["launch", "probe"]);
    assert_eq!(launched.code, 0, "{}", launched.stderr);
    assert!(launched.stderr.contains("making a template of probe, once"), "{}", launched.stderr);
    assert!(launched.stdout.contains(", restored, CID "), "{}", launched.stdout);

    let template = templates(&home).pop().unwrap();
    assert_eq!(
        (&template["server"], &template["level"], &template["outcome"]),
        (&json!("probe"), &json!("server"), &json!("made"))
    );
    assert_eq!((&template["memory_mb"], &template["machines"]), (&json!(128), &json!(["probe"])));
    let key = template["key"].as_str().unwrap();
    let listed = casemate(&home, &["template", "list"]).stdout;
    assert!(listed.contains(&key[..12]) && listed.contains("1 machine"), "{listed}");
    let inspected = json_of(&home, &["template", "inspect", &key[..4], "--verify"]);
    assert_eq!(
        (&inspected["key"], &inspected["verified"], &inspected["ingredients"]["memory_mb"]),
        (&template["key"], &json!(true), &json!(128))
    );
    // Looking at it is no use of it.
    assert_eq!(templates(&home)[0]["used_at"], template["used_at"]);

    // A live machine needs it, awake or not.
    let kept = json_of(&home, &["template", "prune", "--all", "--json"]);
    assert_eq!(kept, json!({"templates": [], "bytes": 0}));
    assert_eq!(casemate(&home, &["stop", "probe"]).code, 0);
    let kept = json_of(&home, &["template", "prune", "--age", "1h", "--json"]);
    assert_eq!(kept["templates"], json!([]));
    let pruned = json_of(&home, &["template", "prune", "--all", "--json"]);
    assert_eq!((&pruned["templates"], &pruned["bytes"]), (&json!([key]), &template["disk_bytes"]));
    assert!(!home.path().join("templates").join(key).exists());
    // Neither what made the template nor that it was made is news.
    let ended = casemate(&home, &["status", "--all"]).stdout;
    assert!(!ended.contains("template."), "{ended}");
}

#[test]
fn a_template_whose_memory_changed_fails_its_verification_and_is_made_again() {
    let home = probe_home();
    assert_eq!(casemate(&home, &["call", "probe", "echo", r#"{"message": "a"}"#]).code, 0);
    let key = templates(&home)[0]["key"].as_str().unwrap().to_owned();
    let memory = home.path().join("templates").join(&key).join("memory");
    let length = fs::metadata(&memory).unwrap().len();
    fs::File::options().write(true).open(&memory).unwrap().write_all_at(b"other", length - 4096).unwrap();

    let verified = casemate(&home, &["template", "inspect", &key, "--verify"]);
    assert_eq!((verified.code, verified.stdout.as_str()), (1, ""), "{}", verified.stderr);
    assert!(verified.stderr.contains("its memory has changed"), "{}", verified.stderr);
    let again = casemate(&home, &["call", "probe", "echo", r#"{"message": "b"}"#]);
    assert!(again.code == 0 && again.stdout.contains('b'), "{again:?}");
    assert!(again.stderr.contains("making a template of probe, once"), "{}", again.stderr);
    assert_eq!(json_of(&home, &["template", "inspect", &key, "--verify"])["verified"], true);
}

#[test]
fn a_folder_that_is_no_template_is_shown_and_pruned() {
    let home = Home::isolated();
    let key = "00112233445566778899aabbccddeeff";
    let folder = home.path().join("templates").join(key);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("template.json"), "{}").unwrap();
    assert_eq!(templates(&home)[0]["outcome"], "damaged");
    let inspected = casemate(&home, &["template", "inspect", "0011"]);
    assert!(inspected.code == 1 && inspected.stderr.contains("is damaged"), "{inspected:?}");
    let pruned = casemate(&home, &["template", "prune"]);
    assert!(pruned.stdout.starts_with("Removed 1 template, "), "{}", pruned.stdout);
    assert!(!folder.exists());
}

#[test]
fn a_server_that_fails_does_not_cost_the_template_without_a_server() {
    let home = Home::new();
    let added = casemate(&home, &["add", "p", &home.probe()]);
    assert_eq!(added.code, 0, "{}", added.stderr);
    assert_eq!(casemate(&home, &["launch", "p"]).code, 0);
    assert_eq!(casemate(&home, &["stop", "p"]).code, 0);
    let before = templates(&home);
    let fails = format!("{} --misbehave exit-at-once", home.probe());
    let failed = casemate(&home, &["launch", "p", "--command", &fails]);
    assert_eq!(failed.code, 5, "{failed:?}");
    assert!(failed.stderr.contains("exiting at once, as asked"), "{}", failed.stderr);
    // It was started once: to start it cold as well would only have failed later.
    let machines = json_of(&home, &["status", "--all", "--json"]);
    let failures = machines.as_array().unwrap().iter().filter(|machine| machine["state"] == "failed");
    assert_eq!(failures.count(), 1, "{machines:#}");
    let after = templates(&home);
    assert_eq!((after.len(), &after[0]["key"]), (1, &before[0]["key"]));
}

/// Its clones are for every server of the image, and it outlives them all.
#[test]
fn a_template_without_a_server_holds_nothing_of_its_configuration() {
    const CANARY: &str = "canary-5f0e1d7c";
    let home = Home::new();
    let variable = format!("KEY={CANARY}");
    let added = casemate(&home, &["add", "p", &home.probe(), "--env", &variable]);
    assert_eq!(added.code, 0, "{}", added.stderr);
    let launched = casemate(&home, &["launch", "p"]);
    assert_eq!(launched.code, 0, "{}", launched.stderr);
    let template = templates(&home).pop().unwrap();
    assert_eq!(template["level"], "agent");
    let memory = home.path().join("templates").join(template["key"].as_str().unwrap()).join("memory");
    let found = |what: &str| {
        let searched = Command::new("grep").args(["-qaF", what]).arg(&memory).status().unwrap();
        searched.code() == Some(0)
    };
    // What is searched is what the guest had in memory.
    assert!(found("casemate-guest") || found("casemate.link"), "nothing of the agent is in the template");
    assert!(!found(CANARY), "the template holds the server's environment");
    assert_eq!(casemate(&home, &["stop", "p"]).code, 0);
}
