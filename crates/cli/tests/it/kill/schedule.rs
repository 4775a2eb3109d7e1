//! Who is killed when: drawn from a seed, the phase, and how often it had its turn, so that a seed gives the same
//! kills whatever else happens. How often a phase has a turn depends on what was hit.

use crate::support::SplitMix;
use std::{collections::BTreeMap, fmt, time::Duration};

/// How many rounds there may be for each kill that is asked for: some phases are short, and missed.
const ROUNDS_A_POINT: u64 = 5;

/// With so many kills in each phase everybody has had a turn.
const ENOUGH_FOR_ALL: u64 = 5;

/// Where machines and templates are in their lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// `launch` runs; at most a plan is written down (`planned`).
    Planning,
    /// The VMM of a template's builder boots its guest.
    BuilderBooting,
    /// The builder's server starts and comes to rest.
    Settling,
    /// The builder's memory is written down.
    Writing,
    /// It is written, and no template yet.
    Publishing,
    /// A second `launch` waits for the template that a first one builds.
    Waiting,
    /// A VMM boots a machine without a template (`prepared`).
    Booting,
    /// A VMM begins with a template (`prepared`).
    Restoring,
    /// The agent answers, the server does not yet (`booted`).
    Starting,
    /// A call waits for the server.
    Calling,
    /// An idle machine's memory is written down.
    Suspending,
    /// There is no VMM.
    Suspended,
    /// A call waits for a machine that was suspended.
    Resuming,
    /// `stop` runs.
    Stopping,
    /// `template prune` runs.
    Pruning,
}

/// Every phase.
pub const PHASES: [Phase; 15] = [
    Phase::Planning,
    Phase::BuilderBooting,
    Phase::Settling,
    Phase::Writing,
    Phase::Publishing,
    Phase::Waiting,
    Phase::Booting,
    Phase::Restoring,
    Phase::Starting,
    Phase::Calling,
    Phase::Suspending,
    Phase::Suspended,
    Phase::Resuming,
    Phase::Stopping,
    Phase::Pruning,
];

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The command that the phase is about; the one that builds, where another waits for it.
    Command,
    /// The command that waits.
    Waiter,
    /// The supervisor, of the builder where there is one.
    Supervisor,
    /// The VMM, of the builder where there is one.
    Vmm,
    /// Process 1 of the guest.
    Agent,
    /// The MCP server in the guest.
    Server,
}

impl Phase {
    /// Who exists to be killed.
    fn victims(self) -> &'static [Victim] {
        use Victim::{Agent, Command, Server, Supervisor, Vmm, Waiter};
        match self {
            Self::Planning => &[Command, Supervisor],
            Self::BuilderBooting | Self::Writing | Self::Booting | Self::Restoring | Self::Resuming => {
                &[Command, Supervisor, Vmm]
            }
            Self::Settling | Self::Starting | Self::Calling | Self::Stopping => {
                &[Command, Supervisor, Vmm, Agent, Server]
            }
            Self::Publishing | Self::Pruning => &[Command],
            Self::Waiting => &[Waiter, Command, Supervisor, Vmm],
            Self::Suspending => &[Supervisor, Vmm],
            Self::Suspended => &[Supervisor],
        }
    }

    /// The longest delay after the phase began; shorter than the phase usually is.
    fn delay_ms(self) -> u64 {
        match self {
            Self::Publishing => 10,
            Self::Pruning => 40,
            Self::Planning => 25,
            Self::Starting | Self::Restoring => 60,
            Self::Writing | Self::Resuming | Self::Stopping => 120,
            Self::Suspending => 40,
            Self::Calling => 300,
            Self::Settling | Self::Suspended => 600,
            Self::BuilderBooting | Self::Booting => 1200,
            Self::Waiting => 2500,
        }
    }
}

/// One planned kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// In which phase.
    pub phase: Phase,
    /// Of whom.
    pub victim: Victim,
    /// How long after the phase was first seen.
    pub delay: Duration,
}

/// What is still to do, and what was done.
pub struct Schedule {
    seed: u64,
    /// How often each phase had its turn.
    turns: BTreeMap<Phase, u64>,
    each: u64,
    most_rounds: u64,
    rounds: u64,
    /// Kills by the phase that they hit, and those that are on their way.
    hits: BTreeMap<Phase, u64>,
    under_way: BTreeMap<Phase, u64>,
    killed: BTreeMap<(Phase, Victim), u64>,
    missed: BTreeMap<Phase, u64>,
}

impl Schedule {
    /// As many kills in each phase as are needed for so many in all.
    pub fn new(seed: u64, points: u64) -> Self {
        Self {
            seed,
            turns: PHASES.map(|phase| (phase, 0)).into(),
            each: points.div_ceil(PHASES.len() as u64),
            most_rounds: points * ROUNDS_A_POINT,
            rounds: 0,
            hits: BTreeMap::new(),
            under_way: BTreeMap::new(),
            killed: BTreeMap::new(),
            missed: BTreeMap::new(),
        }
    }

    /// The next kill: in the phase that had the fewest turns of those that were not hit often enough.
    pub fn next(&mut self) -> Option<Plan> {
        let lacking = PHASES.into_iter().filter(|&phase| self.lacks(phase));
        let phase = lacking.min_by_key(|phase| self.turns[phase])?;
        if self.rounds == self.most_rounds {
            return None;
        }
        self.rounds += 1;
        *self.under_way.entry(phase).or_default() += 1;
        let turn = self.turns.entry(phase).or_default();
        let plan = Self::plan(self.seed, phase, *turn);
        *turn += 1;
        Some(plan)
    }

    fn lacks(&self, phase: Phase) -> bool {
        let count = |of: &BTreeMap<Phase, u64>| of.get(&phase).copied().unwrap_or(0);
        let under_way = count(&self.under_way);
        count(&self.hits) + under_way < self.each || (under_way == 0 && !self.spared(phase).is_empty())
    }

    /// Who was to be killed in a phase, and was not.
    fn spared(&self, phase: Phase) -> Vec<Victim> {
        let all = phase.victims().iter().filter(|_| self.each >= ENOUGH_FOR_ALL);
        all.copied().filter(|&victim| !self.killed.contains_key(&(phase, victim))).collect()
    }

    fn plan(seed: u64, phase: Phase, turn: u64) -> Plan {
        let of_phase = SplitMix::new(seed).below(u64::MAX) ^ phase as u64;
        // With few kills everybody is to have a chance.
        let first = SplitMix::new(of_phase).below(60);
        // In turn, so that each is killed often.
        let victims = phase.victims();
        let victim = victims[(first + turn) as usize % victims.len()];
        let most = match (phase, victim) {
            // It comes late in this phase, and is waited for.
            (Phase::Planning, Victim::Supervisor) => 3,
            _ => phase.delay_ms(),
        };
        let mut random = SplitMix::new(SplitMix::new(of_phase).below(u64::MAX) ^ turn);
        Plan { phase, victim, delay: Duration::from_millis(random.below(most)) }
    }

    /// Notes what a plan came to.
    pub fn note(&mut self, plan: Plan, hit: Option<Phase>) {
        *self.under_way.entry(plan.phase).or_default() -= 1;
        match hit {
            Some(phase) => {
                *self.hits.entry(phase).or_default() += 1;
                *self.killed.entry((phase, plan.victim)).or_default() += 1;
            }
            None => *self.missed.entry(plan.phase).or_default() += 1,
        }
    }

    /// There were as many kills as were asked for in every phase, and if they are many, of everybody in it.
    pub fn assert_enough(&self) {
        for phase in PHASES {
            let hits = self.hits.get(&phase).copied().unwrap_or(0);
            assert!(hits >= self.each, "{phase:?} was hit {hits} times, not {}", self.each);
            let spared = self.spared(phase);
            let spared: Vec<String> = spared.iter().map(|victim| format!("{victim:?}")).collect();
            assert!(spared.is_empty(), "{} was never killed in {phase:?}", spared.join(", "));
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.hits.values().sum();
        write!(f, "{} rounds, {all} kills: {:?}, {:?}", self.rounds, self.hits, self.killed)?;
        write!(f, "; missed: {:?}", self.missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes through a schedule of which each kill hits what it was meant for, or something else.
    fn played(seed: u64, points: u64, hit: impl Fn(u64, Plan) -> Option<Phase>) -> (Schedule, Vec<Plan>) {
        let (mut schedule, mut plans) = (Schedule::new(seed, points), Vec::new());
        while let Some(plan) = schedule.next() {
            schedule.note(plan, hit(plans.len() as u64, plan));
            plans.push(plan);
        }
        (schedule, plans)
    }

    #[test]
    fn a_seed_gives_the_same_kills_of_each_phase_whatever_was_hit() {
        let of = |phase: Phase, plans: &[Plan]| -> Vec<Plan> {
            plans.iter().filter(|plan| plan.phase == phase).copied().collect()
        };
        let (all, straight) = played(7, 300, |_, plan| Some(plan.phase));
        all.assert_enough();
        let (_, crooked) = played(7, 300, |round, plan| (round % 7 > 0).then_some(plan.phase));
        let (_, other) = played(8, 300, |_, plan| Some(plan.phase));
        for phase in PHASES {
            let (one, two) = (of(phase, &straight), of(phase, &crooked));
            assert!(one.len() >= 20 && two.len() > one.len(), "{phase:?}");
            assert_eq!(two[..one.len()], one, "{phase:?}");
            assert_ne!(of(phase, &other), one, "{phase:?}");
        }
    }

    #[test]
    #[should_panic(expected = "Server was never killed in Settling")]
    fn a_victim_that_is_missed_in_one_phase_is_not_made_up_for_in_another() {
        let is_missed = |plan: Plan| (plan.phase, plan.victim) == (Phase::Settling, Victim::Server);
        let (schedule, _) = played(7, 300, |_, plan| (!is_missed(plan)).then_some(plan.phase));
        schedule.assert_enough();
    }
}
