//! What has to hold after anything was killed.

use super::{
    scene::{Scene, is_builder, live_records},
    schedule::{Phase, Victim},
};
use crate::{
    home::{Home, casemate},
    live::{partial_templates, templates},
    support::{child_of, eventually, is_alive, is_supervisor},
};
use casemate_machine::template::Templates;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
};

/// A start and a call work.
pub fn assert_works(home: &Home, context: &str) {
    let launched = casemate(home, &["mcp", "microvm", "launch", "next"]);
    assert_eq!(launched.code, 0, "{launched:?}, {context}");
    let record = home.machine_record("next");
    assert_eq!(record["start"], "restored", "{record}, {context}");
    assert_answers(home, "next", context);
    let stopped = casemate(home, &["stop", "next"]);
    assert_eq!(stopped.code, 0, "{stopped:?}, {context}");
}

fn assert_answers(home: &Home, name: &str, context: &str) {
    let asked = casemate(home, &["call", name, "echo", r#"{"message": "still here"}"#]);
    assert!(asked.code == 0 && asked.stdout.contains("still here"), "{asked:?}, {context}");
}

/// How a command ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Scene<'_> {
    /// Waits until everything has ended by itself, looks at how commands ended, and at what is left.
    pub fn settle(mut self, hit: Option<Phase>, context: &str) {
        let plan = self.plan;
        if hit.is_none() && plan.phase == Phase::Calling {
            // It would go on for a minute.
            self.other.as_mut().unwrap().kill().unwrap();
        }
        let victim = |of: Victim| hit.is_some() && plan.victim == of;
        let is_command = |command: bool| command && victim(Victim::Command);
        let (has_first, has_other) = (self.first.is_some(), self.other.is_some());
        if let Some(ended) = end(self.first.take(), context) {
            ended.assert_code(&[0, 5], is_command(true), context);
        }
        if let Some(ended) = end(self.launch.take(), context) {
            let was_killed = victim(Victim::Waiter) || is_command(!has_first && !has_other);
            ended.assert_code(&[0, 5], was_killed, context);
        }
        if let Some(ended) = end(self.other.take(), context) {
            match (plan.phase, plan.victim) {
                _ if is_command(true) || hit.is_none() && plan.phase == Phase::Calling => {}
                // Nobody was left to answer; on a busy host it was gone before the command looked.
                (Phase::Calling, Victim::Supervisor | Victim::Vmm) => {
                    ended.assert_code(&[3, 5], false, context);
                }
                (Phase::Calling, _) => ended.assert_code(&[0, 5], false, context),
                (Phase::Resuming, _) => {
                    // What it was to call may have been gone before it looked.
                    ended.assert_code(&[0, 3, 5], false, context);
                    let is_right = ended.stdout.contains(r#""count": 1"#);
                    assert!(ended.code != Some(0) || is_right, "{}, {context}", ended.stdout);
                }
                // What was to be stopped or pruned is gone.
                _ => ended.assert_code(&[0], false, context),
            }
        }
        let may_be_broken = matches!(plan.victim, Victim::Agent | Victim::Server);
        self.outlive(plan.phase != Phase::Stopping && !may_be_broken, context);
        self.assert_nothing_runs(context);
        let status = casemate(self.home, &["status"]);
        assert_eq!(status.code, 0, "{status:?}, {context}");
        assert_nothing_left(self.home, context);
        assert_templates_are_whole(self.home, context);
    }

    /// Machines that live on answer, and can be stopped.
    fn outlive(&mut self, answer: bool, context: &str) {
        loop {
            let lives = eventually(&format!("an end, {context}"), || {
                let live = live_records(self.home);
                let supervised: Vec<Value> =
                    live.into_iter().filter(|record| self.is_supervised(record)).collect();
                if supervised.is_empty() {
                    return Some(None);
                }
                let lives = |record: &Value| record["state"] == "ready" || record["state"] == "suspended";
                // Others are on the way to their end: whoever leased them is gone.
                supervised.into_iter().find(|record| lives(record) && !is_builder(record)).map(Some)
            });
            let Some(record) = lives else { return };
            assert_is_one(self.home, &record, context);
            let name = record["name"].as_str().unwrap();
            if answer && !self.may_be_dying() {
                assert_answers(self.home, name, context);
            }
            let stopped = casemate(self.home, &["stop", name]);
            assert_eq!(stopped.code, 0, "{stopped:?}, {context}");
        }
    }

    /// The VMM was killed, and its supervisor may not have seen it yet.
    fn may_be_dying(&self) -> bool {
        self.plan.victim == Victim::Vmm
    }

    fn is_supervised(&mut self, record: &Value) -> bool {
        let pid = record["supervisor_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let Some(pid) = pid.filter(|&pid| is_supervisor(pid)) else { return false };
        self.supervisors.push(pid);
        true
    }

    fn assert_nothing_runs(&mut self, context: &str) {
        self.supervisors.sort_unstable();
        self.supervisors.dedup();
        eventually(&format!("the end of supervisors {:?}, {context}", self.supervisors), || {
            (!self.supervisors.iter().any(|&pid| is_supervisor(pid))).then_some(())
        });
        self.vmms.sort_unstable();
        self.vmms.dedup();
        let is_vmm = |pid: u32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            is_alive(pid) && comm.starts_with("qemu-system")
        };
        // The number of one that ended may be another home's by now, for as long as that lives.
        eventually(&format!("the end of VMMs {:?}, {context}", self.vmms), || {
            (!self.vmms.iter().any(|&pid| is_vmm(pid))).then_some(())
        });
    }
}

/// What is written down and who lives tell the same.
fn assert_is_one(home: &Home, record: &Value, context: &str) {
    // It may end or fall asleep at any moment: what is wrong is wrong for longer.
    eventually(&format!("one state of {record}, {context}"), || {
        let Some(now) = live_records(home).into_iter().find(|now| now["id"] == record["id"]) else {
            return Some(());
        };
        let supervisor = u32::try_from(now["supervisor_pid"].as_u64()?).ok()?;
        let vmm = child_of(supervisor).map(u64::from);
        let is_one = match now["state"].as_str()? {
            "suspended" => vmm.is_none() && now["pid"].is_null(),
            "ready" => vmm.is_some() && vmm == now["pid"].as_u64(),
            _ => true,
        };
        (is_one || !is_supervisor(supervisor)).then_some(())
    });
}

impl Ended {
    fn assert_code(&self, codes: &[i32], was_killed: bool, context: &str) {
        let fits = match self.code {
            Some(code) => codes.contains(&code),
            None => was_killed,
        };
        assert!(fits, "ended with {:?}: {}{}, {context}", self.code, self.stdout, self.stderr);
    }
}

fn end(command: Option<Child>, context: &str) -> Option<Ended> {
    let mut command = command?;
    eventually(&format!("a command's end, {context}"), || command.try_wait().unwrap());
    let output = command.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Some(Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) })
}

fn assert_nothing_left(home: &Home, context: &str) {
    // A process that was killed takes a moment to be gone.
    let mut left = Vec::new();
    eventually(&format!("nothing left, {context}"), || {
        left = home.leftovers();
        (left.is_empty() || left.iter().any(|line| !line.starts_with("process "))).then_some(())
    });
    left.extend(partial_templates(home).iter().map(|path| format!("folder {}", path.display())));
    left.extend(control_groups(home).iter().map(|path| format!("control group {}", path.display())));
    left.extend(live_records(home).iter().map(|record| format!("machine {record}")));
    let temporary = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "new");
    let machines = fs::read_dir(home.path().join("machines")).into_iter().flatten().flatten();
    let files = machines.flat_map(|machine| fs::read_dir(machine.path()).into_iter().flatten().flatten());
    left.extend(
        files.map(|file| file.path()).filter(temporary).map(|path| format!("file {}", path.display())),
    );
    assert_eq!(left, [""; 0], "{context}");
}

/// Control groups of a home's machines.
fn control_groups(home: &Home) -> Vec<PathBuf> {
    let ids: Vec<String> =
        home.records().iter().map(|record| format!("-{}", record["id"].as_str().unwrap_or("?"))).collect();
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 4, &mut |path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("casemate-") && ids.iter().any(|id| name.ends_with(id)) {
            found.push(path.to_owned());
        }
    });
    found
}

fn walk(folder: &Path, depth: usize, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path());
            if depth > 1 {
                walk(&entry.path(), depth - 1, visit);
            }
        }
    }
}

/// Each template that is there is what it was when it was made.
fn assert_templates_are_whole(home: &Home, context: &str) {
    let library = casemate_machine::Home::open(home.path()).unwrap();
    for template in templates(home) {
        let key = template.file_name().unwrap().to_str().unwrap().to_owned();
        let checked = Templates::open(&library).unwrap().check(&key, true);
        assert!(checked.is_ok(), "{checked:?}, {context}");
    }
}
