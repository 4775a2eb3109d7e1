//! A disk that fills up while a template is written.

use crate::{
    faults::in_own_mounts,
    home::{Home, casemate},
};
use casemate_testkit::may_mount;

#[test]
fn a_disk_that_is_full_while_a_template_is_written() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    // Kernel and image are there before.
    assert_eq!(casemate(&home, &["mcp", "microvm", "launch", "first", "--cold"]).code, 0);
    let output = in_own_mounts(
        &home,
        r#"
        mount -t tmpfs -o size=8m none "$CASEMATE_HOME" && share
        step launch casemate mcp microvm launch m
        step left find "$CASEMATE_HOME/templates" -mindepth 1 ! -name secret ! -name '*.lock'
        step call casemate call m echo '{"message": "hi there"}'
        step status casemate status --json
        step stop casemate stop m
        mount -o remount,size=512m "$CASEMATE_HOME"
        step again casemate mcp microvm launch m
        step restored casemate status --json
        step end casemate stop m
        "#,
    );
    let step =
        |name: &str| output.split(&format!("== {name}\n")).nth(1).unwrap().split("== ").next().unwrap();
    let says = |name: &str, text: &str| assert!(step(name).contains(text), "no {text} in {name}:\n{output}");
    says("launch", "exit 0");
    assert_eq!(step("left"), "exit 0\n", "{output}");
    says("call", "hi there");
    says("status", r#""start": "cold""#);
    says("status", "No space left on device");
    says("again", "exit 0");
    says("restored", r#""start": "restored""#);
    says("end", "exit 0");
}
