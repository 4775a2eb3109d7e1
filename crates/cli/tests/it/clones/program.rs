//! What the program does with templates, from outside: two machines of one, and what each draws.

use super::{
    compare,
    sources::{compile_openssl, fixture},
};
use crate::home::{Home, casemate};
use serde_json::{Map, Value};

#[test]
fn node() {
    check(&format!("dir:{}", fixture("node").display()), &[], "server");
}

#[test]
fn python() {
    check(&format!("dir:{}", fixture("python").display()), &[], "server");
}

/// What they drew while they started, clones would share: such servers are started in each machine.
#[test]
fn servers_that_draw_while_they_start() {
    check(&format!("dir:{}", fixture("node").display()), &["--env", "PRIME=1"], "agent");
    check(&format!("dir:{}", fixture("python").display()), &["--env", "PRIME=1"], "agent");
}

/// Nobody knows what a foreign program is made of.
#[test]
fn a_static_openssl() {
    let home = Home::new();
    let program = compile_openssl(&home);
    check_in(&home, &program, &["--env", "PRIME=1"], "agent");
}

fn check(source: &str, options: &[&str], level: &str) {
    check_in(&Home::new(), source, options, level);
}

/// Two machines of a source are restored from one template of a level, and draw nothing that is equal.
fn check_in(home: &Home, source: &str, options: &[&str], level: &str) {
    done(home, &[&["add", "draws", source], options].concat());
    done(home, &["launch-many", "2", "--server", "draws"]);
    let machines: Vec<Value> = serde_json::from_str(&done(home, &["status", "--json"])).unwrap();
    assert_eq!(machines.len(), 2);
    let template = machines[0]["template"].as_str().unwrap_or_else(|| panic!("{machines:#?}"));
    for machine in &machines {
        assert_eq!((&machine["start"], &machine["template"]), (&"restored".into(), &template.into()));
    }
    let made: Value =
        serde_json::from_str(&home.read(&format!("templates/{template}/template.json"))).unwrap();
    assert_eq!(made["ingredients"]["level"], level, "{source}: {:#?}", machines[0]);
    let [one, other] = [0, 1].map(|number: usize| {
        let name = machines[number]["name"].as_str().unwrap();
        let answer: Value = serde_json::from_str(&done(home, &["call", name, "draw", "--json"])).unwrap();
        let text = answer["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
        serde_json::from_str::<Map<String, Value>>(text).unwrap()
    });
    compare(&one, &other, |_| true);
}

fn done(home: &Home, args: &[&str]) -> String {
    let finished = casemate(home, args);
    assert_eq!(finished.code, 0, "{args:?}: {}", finished.stderr);
    finished.stdout
}
