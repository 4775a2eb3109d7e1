//! What scripts rely on: the shape of JSON output, as goldens.

use crate::home::{Home, casemate};
use casemate::engine::{Accelerator, BackendKind, Isolation, Record, Report};
use casemate_machine::doctor::{Finding, Limit};

#[test]
fn no_machines_are_an_empty_array() {
    let home = Home::isolated();
    let status = casemate(&home, &["status", "--json"]);
    assert_eq!((status.code, status.stdout.as_str(), status.stderr.as_str()), (0, "[]\n", ""));
}

/// A machine whose supervisor was killed long ago, as the next command finds and shows it.
#[test]
fn status_has_the_promised_fields() {
    let home = Home::isolated();
    let machine = home.path().join("machines/0123456789ab");
    std::fs::create_dir_all(machine.join("logs")).unwrap();
    let ended = "2999-01-01T00:00:03Z";
    let record = serde_json::json!({
        "id": "0123456789ab", "name": "m", "server": "s", "backend": "qemu", "accelerator": "tcg",
        "lifetime": "detached", "conversation": "held", "state": "stopped", "reason": "stopped on request",
        "pid": 1, "supervisor_pid": 2, "cid": 100, "memory_mb": 256, "vcpus": 1, "image": "sha256:00",
        "started_at": "2999-01-01T00:00:00Z", "ended_at": ended, "start": "cold", "start_ms": 1234,
        "template": null, "template_reason": "templates are not built yet",
    });
    serde_json::from_value::<Record>(record.clone()).unwrap();
    std::fs::write(machine.join("machine.json"), record.to_string()).unwrap();
    assert_eq!(casemate(&home, &["status", "--json"]).stdout, "[]\n");
    let shown = casemate(&home, &["status", "m", "--json"]).stdout;
    insta::assert_snapshot!("status-json", shown.replace(&home.path().display().to_string(), "HOME"));
    insta::assert_snapshot!("status", casemate(&home, &["status", "--all"]).stdout);
}

#[test]
fn doctor_has_the_promised_fields() {
    let finding = |name: BackendKind, usable: bool| Finding {
        name,
        level: name.isolation(),
        usable,
        accelerator: usable.then_some(Accelerator::Tcg),
        reason: Some("why".to_owned()),
        remedy: None,
        probe_ms: 1500,
    };
    assert_eq!(BackendKind::Qemu.isolation(), Isolation::Microvm);
    let backends = vec![finding(BackendKind::Firecracker, false), finding(BackendKind::Qemu, true)];
    let limits = vec![Limit { reason: "why".to_owned(), remedy: None }];
    let report = Report { backends, default: Some(BackendKind::Qemu), limits };
    insta::assert_snapshot!("doctor-json", serde_json::to_string_pretty(&report).unwrap());
}
