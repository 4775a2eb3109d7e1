//! Servers of which no template of the running server can be made.

use crate::{
    home::{Home, casemate},
    live::{NONE, assert_answers, builders, launch, manifest, partial_templates, stop, templates},
};
use std::path::Path;

/// A Python server that keeps computing while it waits.
fn add_restless(home: &Home) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/restless");
    let added = casemate(home, &["add", "restless", &format!("dir:{}", folder.display())]);
    assert_eq!(added.code, 0, "{added:?}");
}

#[test]
fn a_server_that_never_rests_is_started_in_each_clone_and_the_reason_is_told() {
    let home = Home::new();
    add_restless(&home);
    for _ in 0..2 {
        let launched = casemate(&home, &["launch", "restless"]);
        assert_eq!(launched.code, 0, "{launched:?}");
        let record = home.machine_record("restless");
        assert_eq!(record["start"], "restored", "{record}");
        let reason = record["template_reason"].as_str().unwrap_or_default();
        assert!(reason.contains("the server did not rest within"), "{record}");
        assert_answers(&home, "restless");
        stop(&home, "restless");
    }
    // One that was found out not to rest, and the one that is used.
    assert_eq!(builders(&home), 2);
    let (mut made, mut refused) = (Vec::new(), Vec::new());
    for template in templates(&home) {
        let manifest = manifest(&template);
        let level = manifest["ingredients"]["level"].as_str().unwrap().to_owned();
        let of_kind = if manifest["outcome"]["refused"].is_object() { &mut refused } else { &mut made };
        of_kind.push(level);
    }
    assert_eq!((made, refused), (vec!["agent".to_owned()], vec!["server".to_owned()]));
}

/// What another program does with its random numbers is not known.
#[test]
fn a_program_of_the_host_is_started_in_each_clone() {
    let home = Home::new();
    let added = casemate(&home, &["add", "probe", &home.probe()]);
    assert_eq!(added.code, 0, "{added:?}");
    for _ in 0..2 {
        let launched = casemate(&home, &["launch", "probe"]);
        assert_eq!(launched.code, 0, "{launched:?}");
        assert_eq!(home.machine_record("probe")["start"], "restored");
        assert_answers(&home, "probe");
        stop(&home, "probe");
    }
    assert_eq!(builders(&home), 1);
    assert_eq!(manifest(&templates(&home)[0])["ingredients"]["level"], "agent");
}

#[test]
fn a_server_that_exits_at_its_start_is_an_error_at_the_first_one() {
    let home = Home::new();
    let added = casemate(&home, &["add", "bad", "builtin:probe", "--", "--misbehave", "exit-at-once"]);
    assert_eq!(added.code, 0, "{added:?}");
    for _ in 0..2 {
        let launched = casemate(&home, &["launch", "bad"]);
        assert_eq!(launched.code, 5, "{launched:?}");
        for said in ["server exited with status 1", "exiting at once, as asked", "log: "] {
            assert!(launched.stderr.contains(said), "no {said} in {launched:?}");
        }
    }
    assert_eq!(templates(&home), NONE);
    assert_eq!(partial_templates(&home), NONE);
    // Another server is none the worse for it.
    launch(&home, "good", &[]);
    assert_answers(&home, "good");
}
