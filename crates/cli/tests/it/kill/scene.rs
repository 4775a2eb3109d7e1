//! One round: machines and commands that are brought to a phase, in which something is killed.

use super::schedule::{Phase, Plan, Victim};
use crate::{
    home::{Home, casemate},
    live::{partial_templates, templates},
    program::{Found, Program},
    support::{child_of, eventually, is_alive, is_supervisor, signal},
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// The machine that a round is about, and the one whose `launch` builds while that of the other waits.
pub const NAME: &str = "m";
const FIRST: &str = "first";

/// How often it is looked whether a phase has begun: the shortest takes some milliseconds.
const LOOK: Duration = Duration::from_micros(300);

/// Machines and commands of a round.
pub struct Scene<'a> {
    pub(super) home: &'a Home,
    pub(super) plan: Plan,
    /// `launch first`, where another waits for it.
    pub(super) first: Option<Child>,
    pub(super) launch: Option<Child>,
    /// What is done with a machine that is ready, or with templates.
    pub(super) other: Option<Child>,
    /// Every supervisor and VMM that was seen: not all are written down.
    pub(super) supervisors: Vec<u32>,
    pub(super) vmms: Vec<u32>,
}

/// A machine that is not over, as it is written down.
pub fn live_records(home: &Home) -> Vec<Value> {
    let machines = fs::read_dir(home.path().join("machines")).into_iter().flatten().flatten();
    // What is over has no lock, and there may be fifty of those.
    let live = machines.map(|entry| entry.path()).filter(|path| path.join("lock").exists());
    live.filter_map(|path| serde_json::from_slice(&fs::read(path.join("machine.json")).ok()?).ok())
        .filter(|record: &Value| record["state"] != "failed" && record["state"] != "stopped")
        .collect()
}

pub fn is_builder(record: &Value) -> bool {
    record["name"].as_str().is_some_and(|name| name.starts_with("template."))
}

impl<'a> Scene<'a> {
    /// Begins what leads to the planned phase.
    pub fn set(home: &'a Home, plan: Plan) -> Self {
        let mut scene = Self {
            home,
            plan,
            first: None,
            launch: None,
            other: None,
            supervisors: Vec::new(),
            vmms: Vec::new(),
        };
        match plan.phase {
            // No machine lives: they can be taken away.
            Phase::BuilderBooting | Phase::Settling | Phase::Writing | Phase::Publishing => {
                scene.forget_templates();
                scene.launch(&[]);
            }
            Phase::Waiting => {
                scene.forget_templates();
                scene.first = Some(run(home, &["mcp", "microvm", "launch", FIRST]));
                scene.until(|scene| scene.live(is_builder).is_some() || ended(&mut scene.first));
                scene.launch(&[]);
            }
            Phase::Planning | Phase::Restoring => scene.launch(&[]),
            // From a template of the running server this takes no time at all.
            Phase::Booting | Phase::Starting => scene.launch(&["--cold"]),
            Phase::Calling => {
                scene.make(&[]);
                scene.other(&["call", NAME, "sleep", r#"{"ms": 60000}"#]);
            }
            Phase::Stopping => {
                scene.make(&[]);
                scene.other(&["stop", NAME]);
            }
            Phase::Suspending | Phase::Suspended => scene.make(&["--idle", "200ms"]),
            Phase::Resuming => {
                scene.make(&["--idle", "200ms"]);
                scene.until(|scene| scene.state() != Some("ready".to_owned()));
                scene.other(&["call", NAME, "counter"]);
            }
            Phase::Pruning => scene.other(&["template", "prune", "--all"]),
        }
        scene
    }

    fn forget_templates(&self) {
        for template in templates(self.home) {
            fs::remove_dir_all(template).unwrap();
        }
    }

    fn launch(&mut self, options: &[&str]) {
        self.launch = Some(run(self.home, &[&["mcp", "microvm", "launch", NAME], options].concat()));
    }

    /// Starts the machine and waits until it is ready.
    fn make(&mut self, options: &[&str]) {
        let launched = casemate(self.home, &[&["mcp", "microvm", "launch", NAME], options].concat());
        assert_eq!(launched.code, 0, "{launched:?}");
        let record = self.home.machine_record(NAME);
        let seen = |field: &str| record[field].as_u64().and_then(|pid| u32::try_from(pid).ok());
        self.supervisors.extend(seen("supervisor_pid"));
        self.vmms.extend(seen("pid"));
    }

    fn other(&mut self, args: &[&str]) {
        // Before it runs: what is to be killed takes a while to be found.
        self.other = Some(run(self.home, args));
    }

    fn until(&mut self, mut seen: impl FnMut(&mut Self) -> bool) {
        eventually("what leads to the phase", || seen(self).then_some(()));
    }

    /// Waits for the phase and kills in it; the phase that was hit, or nothing if it was over, or nobody was
    /// there to be killed.
    pub fn strike(&mut self) -> Option<Phase> {
        let plan = self.plan;
        loop {
            match self.phase() {
                Some(now) if now == plan.phase => break,
                // A template is there before the machine that is restored from it is planned.
                Some(now) if now > plan.phase => return None,
                Some(_) => thread::sleep(LOOK),
                None => return None,
            }
        }
        // To find it takes longer than some phases.
        let found = match plan.victim {
            Victim::Agent | Victim::Server => Some(self.find(plan)?),
            _ => None,
        };
        thread::sleep(plan.delay);
        if plan.victim == Victim::Supervisor {
            // It comes a little later than the plan.
            while self.phase() == Some(plan.phase) && self.supervisor().is_none() {
                thread::sleep(LOOK);
            }
        }
        self.vmm();
        let hit = self.phase()?;
        self.kill(found).then_some(hit)
    }

    fn find(&mut self, plan: Plan) -> Option<Found> {
        let program = if plan.victim == Victim::Agent { Program::Agent } else { Program::Probe };
        while self.phase() == Some(plan.phase) {
            if let Some(found) = self.vmm().and_then(|vmm| program.find(vmm)) {
                return Some(found);
            }
        }
        None
    }

    /// Where it is, as it can be seen; nothing while nothing is done, or all is over.
    fn phase(&mut self) -> Option<Phase> {
        let plan = self.plan;
        if self.other.is_some() {
            if ended(&mut self.other) {
                return None;
            }
            return match plan.phase {
                Phase::Resuming => (self.state()? != "ready").then_some(Phase::Resuming),
                other => Some(other),
            };
        }
        if matches!(plan.phase, Phase::Suspending | Phase::Suspended) {
            return self.sleeping();
        }
        if ended(&mut self.launch) {
            return None;
        }
        let partial = partial_templates(self.home);
        if partial.iter().any(|folder| folder.join("state").exists()) {
            return Some(Phase::Publishing);
        }
        if partial.iter().any(|folder| folder.join("memory").exists()) {
            return Some(if self.first.is_some() { Phase::Waiting } else { Phase::Writing });
        }
        let state =
            |record: Option<Value>| record.and_then(|record| Some(record["state"].as_str()?.to_owned()));
        let of_builder = state(self.live(is_builder));
        if self.first.is_some() && of_builder.is_some() {
            return Some(Phase::Waiting);
        }
        match of_builder.as_deref() {
            Some("prepared") => return Some(Phase::BuilderBooting),
            Some("booted") => return Some(Phase::Settling),
            Some(_) => return Some(Phase::Planning),
            None => {}
        }
        let is_cold = matches!(plan.phase, Phase::Booting | Phase::Starting);
        match self.state().as_deref() {
            None | Some("planned") => Some(Phase::Planning),
            Some("prepared") if is_cold => Some(Phase::Booting),
            Some("prepared") => Some(Phase::Restoring),
            Some("booted") => Some(Phase::Starting),
            Some(_) => None,
        }
    }

    fn sleeping(&mut self) -> Option<Phase> {
        let record = self.live(|record| record["name"] == NAME)?;
        if record["state"] == "suspended" {
            return Some(Phase::Suspended);
        }
        let folder = self.home.path().join("machines").join(record["id"].as_str()?);
        // Before, it is only idle.
        Some(if folder.join("suspended").exists() { Phase::Suspending } else { Phase::Calling })
    }

    fn live(&self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        live_records(self.home).into_iter().find(|record| wanted(record))
    }

    fn state(&self) -> Option<String> {
        let record = self.live(|record| record["name"] == NAME)?;
        Some(record["state"].as_str()?.to_owned())
    }

    /// The supervisor of the builder where there is one, else of the machine.
    fn supervisor(&mut self) -> Option<u32> {
        let record = self.live(is_builder).or_else(|| self.live(|record| record["name"] == NAME));
        let recorded = record.and_then(|record| u32::try_from(record["supervisor_pid"].as_u64()?).ok());
        // A child of the command before it is written down; the number of a command that ended is anybody's.
        let supervisor = recorded.filter(|&pid| is_supervisor(pid)).or_else(|| {
            let command = if self.first.is_some() { &mut self.first } else { &mut self.launch };
            if ended(command) { None } else { child_of(command.as_ref()?.id()) }
        })?;
        self.supervisors.push(supervisor);
        Some(supervisor)
    }

    fn vmm(&mut self) -> Option<u32> {
        let vmm = self.supervisor().and_then(child_of)?;
        self.vmms.push(vmm);
        Some(vmm)
    }

    /// Kills, if there is somebody to kill.
    fn kill(&mut self, found: Option<Found>) -> bool {
        let id = |child: &Option<Child>| child.as_ref().map(Child::id);
        let pid = match self.plan.victim {
            Victim::Waiter => id(&self.launch),
            Victim::Command => id(&self.other).or(id(&self.first)).or(id(&self.launch)),
            Victim::Supervisor => self.supervisor(),
            Victim::Vmm => self.vmm(),
            Victim::Agent | Victim::Server => {
                let Some(found) = found else { return false };
                found.kill();
                // It dies when it does something, and who only waits does nothing.
                if self.plan.phase == Phase::Calling {
                    casemate(self.home, &["call", NAME, "echo", r#"{"message": "?"}"#, "--timeout", "5"]);
                }
                return true;
            }
        };
        let Some(pid) = pid else { return false };
        signal(pid, Signal::KILL);
        eventually("the end of one that was killed", || (!is_alive(pid)).then_some(()));
        true
    }
}

/// Whether a command has ended, or was never begun.
pub fn ended(command: &mut Option<Child>) -> bool {
    command.as_mut().is_none_or(|command| command.try_wait().unwrap().is_some())
}

fn run(home: &Home, args: &[&str]) -> Child {
    let mut command: Command = home.command(args);
    // Less than a pipe holds.
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}
