//! `kill -9` of anything at any moment: nothing of casemate remains after the next `casemate status`, and the
//! next call works.
//!
//! The schedule (who is killed in which phase, after which delay) is drawn from a seed, which is printed and
//! can be given as `CASEMATE_KILL_SEED`. The phase in which a kill really hit is what was seen just before
//! it; rounds are added until there were enough in each.

use crate::{
    home::{Home, casemate},
    support::{Agent, PROBE, child_of, eventually, is_alive, is_supervisor, signal, start},
};
use rustix::process::Signal;
use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    process::Child,
    sync::Mutex,
    thread,
    time::Duration,
};

/// Rounds that are planned for each phase; a few may hit another one.
const ROUNDS: usize = 12;

/// Kills that must have hit each phase.
const ENOUGH: usize = 10;

/// Rounds after which it is given up to hit a phase often enough.
const MOST_ROUNDS: usize = 120;

/// Homes in which rounds run at once: a guest in emulation waits for little but its processor.
const HOMES: usize = 3;

/// After so many rounds of a home a fresh machine is asked.
const ASK_EVERY: usize = 5;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// `launch` runs; at most the plan is written down (`planned`).
    Planning,
    /// The VMM boots the guest (`prepared`).
    Booting,
    /// The agent answers, the server does not yet (`booted`).
    Starting,
    /// A call waits for the server.
    Calling,
    /// `stop` runs.
    Stopping,
}

const PHASES: [Phase; 5] =
    [Phase::Planning, Phase::Booting, Phase::Starting, Phase::Calling, Phase::Stopping];

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Command,
    Supervisor,
    Vmm,
    Agent,
}

impl Phase {
    /// Who exists to be killed.
    fn victims(self) -> &'static [Victim] {
        match self {
            Self::Planning => &[Victim::Command, Victim::Supervisor],
            Self::Booting => &[Victim::Command, Victim::Supervisor, Victim::Vmm],
            _ => &[Victim::Command, Victim::Supervisor, Victim::Vmm, Victim::Agent],
        }
    }

    /// The longest delay after the phase began; shorter than the phase usually is.
    fn delay_ms(self) -> u64 {
        match self {
            Self::Planning => 25,
            Self::Booting => 1200,
            Self::Starting => 100,
            Self::Calling => 300,
            Self::Stopping => 150,
        }
    }
}

/// One planned kill.
#[derive(Debug, Clone, Copy)]
struct Plan {
    phase: Phase,
    victim: Victim,
    delay: Duration,
}

/// What is still to do, and what was done.
struct Schedule {
    random: SplitMix,
    planned: Vec<Plan>,
    rounds: usize,
    hits: BTreeMap<Phase, usize>,
    killed: BTreeMap<Victim, usize>,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let planned = PHASES.iter().flat_map(|&phase| (0..ROUNDS).map(move |n| (phase, n)));
        let mut planned: Vec<Plan> = planned.map(|(phase, n)| random.plan(phase, n)).collect();
        for n in (1..planned.len()).rev() {
            planned.swap(n, random.below(n as u64 + 1) as usize);
        }
        Self { random, planned, rounds: 0, hits: BTreeMap::new(), killed: BTreeMap::new() }
    }

    fn next(&mut self) -> Option<Plan> {
        let lacking = |phase: &&Phase| self.hits.get(phase).copied().unwrap_or(0) < ENOUGH;
        let plan = match self.planned.pop() {
            Some(plan) => plan,
            None if self.rounds == MOST_ROUNDS => return None,
            None => {
                let phase = *PHASES.iter().find(lacking)?;
                let n = self.random.below(4) as usize;
                self.random.plan(phase, n)
            }
        };
        self.rounds += 1;
        Some(plan)
    }

    fn note(&mut self, phase: Phase, victim: Victim) {
        *self.hits.entry(phase).or_default() += 1;
        *self.killed.entry(victim).or_default() += 1;
    }
}

/// SplitMix64: small, and good enough to choose with.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// The victims of a phase come in turn, so that each is killed often.
    fn plan(&mut self, phase: Phase, n: usize) -> Plan {
        let victims = phase.victims();
        let victim = victims[n % victims.len()];
        let most = match (phase, victim) {
            // It comes late in this phase, and is waited for.
            (Phase::Planning, Victim::Supervisor) => 3,
            _ => phase.delay_ms(),
        };
        Plan { phase, victim, delay: Duration::from_millis(self.below(most)) }
    }
}

#[test]
fn a_kill_of_anything_at_any_moment_leaves_nothing() {
    let seed = std::env::var("CASEMATE_KILL_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("CASEMATE_KILL_SEED={seed}");
    let homes: Vec<Home> = (0..HOMES).map(|_| Home::new()).collect();
    for home in &homes {
        let added = casemate(home, &["add", "probe", PROBE]);
        assert_eq!(added.code, 0, "{added:?}");
    }
    // Fetches and builds what all machines share, so that a phase is a phase of a machine.
    ask(&homes[0]);
    let schedule = Mutex::new(Schedule::new(seed));
    thread::scope(|scope| {
        for home in &homes {
            scope.spawn(|| rounds(home, &schedule));
        }
    });
    let Schedule { rounds, hits, killed, .. } = schedule.into_inner().unwrap();
    println!("{rounds} rounds, {hits:?}, {killed:?}");
    assert!(rounds >= PHASES.len() * ROUNDS);
    for phase in PHASES {
        assert!(
            hits.get(&phase).is_some_and(|&hits| hits >= ENOUGH),
            "{phase:?} was hit too rarely: {hits:?}"
        );
    }
    for victim in Phase::Calling.victims() {
        assert!(
            killed.get(victim).is_some_and(|&kills| kills >= 4),
            "{victim:?} was killed too rarely: {killed:?}"
        );
    }
}

fn rounds(home: &Home, schedule: &Mutex<Schedule>) {
    for number in 1.. {
        let Some(plan) = schedule.lock().unwrap().next() else { break };
        match round(home, plan) {
            Some(hit) => schedule.lock().unwrap().note(hit, plan.victim),
            None => println!("missed: {plan:?}"),
        }
        if number % ASK_EVERY == 0 {
            ask(home);
        }
    }
    ask(home);
}

/// A call on a machine of its own works.
fn ask(home: &Home) {
    let asked = casemate(home, &["call", "probe", "echo", r#"{"message": "still here"}"#]);
    assert!(asked.code == 0 && asked.stdout.contains("still here"), "{asked:?}");
}

/// One machine's life until something is killed, and what came after; the phase that was hit.
fn round(home: &Home, plan: Plan) -> Option<Phase> {
    let mut machine = Machine { home, launch: start(home.command(&LAUNCH)), other: None, vmms: Vec::new() };
    let hit = machine.live_until(plan).and_then(|agent| {
        thread::sleep(plan.delay);
        let hit = machine.phase()?;
        machine.kill(plan.victim, agent).then_some(hit)
    });
    machine.settle(hit, plan);
    hit
}

const LAUNCH: [&str; 4] = ["mcp", "microvm", "launch", "m"];

/// A machine called `m` and the commands that deal with it.
struct Machine<'a> {
    home: &'a Home,
    launch: Child,
    /// A call or a stop.
    other: Option<(Phase, Child)>,
    /// Every VMM that was seen: not all are written down.
    vmms: Vec<u32>,
}

impl Machine<'_> {
    /// Goes on until a phase begins; nothing if the machine was past it when it was looked at. Finds the
    /// agent, where it is to be killed.
    fn live_until(&mut self, plan: Plan) -> Option<Option<Agent>> {
        let mut agent = None;
        if plan.phase >= Phase::Calling {
            let status = eventually("launch", || self.launch.try_wait().unwrap());
            assert!(status.success(), "launch ended with {status}");
        }
        if plan.victim == Victim::Agent {
            // Before the phase begins, because to find it takes longer than some phases.
            agent = eventually("the agent", || match self.vmm().and_then(Agent::find) {
                None if self.phase().is_some_and(|now| now <= plan.phase) => None,
                found => Some(found),
            });
        }
        if plan.victim == Victim::Supervisor {
            eventually("the supervisor", || match self.supervisor() {
                None if self.phase().is_some_and(|now| now <= plan.phase) => None,
                found => Some(found),
            });
        }
        if plan.phase >= Phase::Calling {
            let args: &[&str] = match plan.phase {
                Phase::Calling => &["call", "m", "sleep", r#"{"ms": 60000}"#],
                _ => &["stop", "m"],
            };
            self.vmm();
            self.other = Some((plan.phase, start(self.home.command(args))));
        }
        eventually("phase", || self.phase().is_none_or(|now| now >= plan.phase).then_some(()));
        self.phase().filter(|&now| now == plan.phase).map(|_| agent)
    }

    /// Where the machine is, as it can be seen; nothing while it does nothing, or is over.
    fn phase(&mut self) -> Option<Phase> {
        if let Some((phase, command)) = &mut self.other {
            return command.try_wait().unwrap().is_none().then_some(*phase);
        }
        if self.launch.try_wait().unwrap().is_some() {
            return None;
        }
        match self.live_record().as_ref().and_then(|record| record["state"].as_str()) {
            None | Some("planned") => Some(Phase::Planning),
            Some("prepared") => Some(Phase::Booting),
            Some("booted") => Some(Phase::Starting),
            Some(_) => None,
        }
    }

    fn live_record(&self) -> Option<serde_json::Value> {
        let is_live =
            |record: &serde_json::Value| record["state"] != "failed" && record["state"] != "stopped";
        self.home.records().into_iter().rfind(is_live)
    }

    fn supervisor(&mut self) -> Option<u32> {
        let recorded = || u32::try_from(self.live_record()?["supervisor_pid"].as_u64()?).ok();
        // A child of the command before it is written down; the number of a command that ended is anybody's.
        recorded().filter(|&pid| is_supervisor(pid)).or_else(|| match self.launch.try_wait().unwrap() {
            None => child_of(self.launch.id()),
            Some(_) => None,
        })
    }

    fn vmm(&mut self) -> Option<u32> {
        let vmm = self.supervisor().and_then(child_of)?;
        self.vmms.push(vmm);
        Some(vmm)
    }

    /// Kills, if there is something to kill.
    fn kill(&mut self, victim: Victim, agent: Option<Agent>) -> bool {
        let vmm = self.vmm();
        let pid = match victim {
            Victim::Command => Some(self.other.as_ref().map_or(self.launch.id(), |(_, other)| other.id())),
            Victim::Supervisor => self.supervisor(),
            Victim::Vmm => vmm,
            Victim::Agent => {
                let Some(agent) = agent else { return false };
                agent.kill();
                // It dies when it does something, and an agent that only waits does nothing.
                if matches!(self.other, Some((Phase::Calling, _))) {
                    casemate(self.home, &["call", "m", "echo", r#"{"message": "?"}"#]);
                }
                return true;
            }
        };
        if let Some(pid) = pid {
            signal(pid, Signal::KILL);
        }
        pid.is_some()
    }

    /// Waits until everything has ended by itself, looks at how commands ended, and at what is left.
    fn settle(mut self, hit: Option<Phase>, plan: Plan) {
        let context = format!("{plan:?}, hit {hit:?}");
        let spared = hit.is_none() || plan.victim == Victim::Command;
        let code = eventually("launch", || self.launch.try_wait().unwrap()).code();
        let launched = self.other.is_some() || (spared && code == Some(0));
        if !launched && plan.victim != Victim::Command {
            assert_eq!(code, Some(5), "launch, {context}");
        }
        if let Some((phase, mut command)) = self.other.take() {
            if hit.is_none() && phase == Phase::Calling {
                command.kill().unwrap();
            }
            let code = eventually("command", || command.try_wait().unwrap()).code();
            match (phase, plan.victim) {
                _ if spared => {}
                (Phase::Calling, _) => assert_eq!(code, Some(5), "call, {context}"),
                // What was to be stopped is gone.
                _ => assert_eq!(code, Some(0), "stop, {context}"),
            }
        }
        if spared {
            self.outlive(&context, plan);
        }
        eventually(&format!("the supervisor's end, {context}"), || self.supervisor().is_none().then_some(()));
        self.vmms.dedup();
        eventually(&format!("the VMM's end, {context}"), || {
            (!self.vmms.iter().any(|&vmm| is_alive(vmm))).then_some(())
        });
        let status = casemate(self.home, &["status"]);
        assert_eq!(status.code, 0, "{status:?}, {context}");
        assert_eq!(self.home.leftovers(), [""; 0], "{context}");
        let live = self.live_record();
        assert!(live.is_none(), "{live:?}, {context}");
    }

    /// A machine that lives on without the command that was killed answers, and can be stopped.
    fn outlive(&mut self, context: &str, plan: Plan) {
        let lives = eventually(context, || {
            let Some(record) = self.live_record() else { return Some(false) };
            match record["state"].as_str() {
                Some("ready") => Some(true),
                // Its supervisor is on the way to its end, or was killed before it wrote that down.
                Some(_) if self.supervisor().is_some() => None,
                _ => Some(false),
            }
        });
        if !lives {
            return;
        }
        // One that is being stopped is `ready` until it is gone.
        if plan.phase != Phase::Stopping {
            let asked = casemate(self.home, &["call", "m", "echo", r#"{"message": "alive"}"#]);
            assert!(asked.code == 0 && asked.stdout.contains("alive"), "{asked:?}, {context}");
        }
        let stopped = casemate(self.home, &["stop", "m"]);
        assert_eq!(stopped.code, 0, "{stopped:?}, {context}");
    }
}
