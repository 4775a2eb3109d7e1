//! Who is killed when: drawn from a seed.

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
#[derive(Debug, Clone, Copy)]
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
    random: SplitMix,
    /// Whose turn it is.
    turns: BTreeMap<Phase, u64>,
    each: u64,
    most_rounds: u64,
    rounds: u64,
    /// Kills by the phase that they hit, and those that are on their way.
    hits: BTreeMap<Phase, u64>,
    under_way: BTreeMap<Phase, u64>,
    killed: BTreeMap<Victim, u64>,
    missed: BTreeMap<Phase, u64>,
}

impl Schedule {
    /// As many kills in each phase as are needed for so many in all.
    pub fn new(seed: u64, points: u64) -> Self {
        let mut random = SplitMix(seed);
        // Few kills are to be of everybody, too.
        let turns = PHASES.into_iter().map(|phase| (phase, random.below(60))).collect();
        Self {
            random,
            turns,
            each: points.div_ceil(PHASES.len() as u64),
            most_rounds: points * ROUNDS_A_POINT,
            rounds: 0,
            hits: BTreeMap::new(),
            under_way: BTreeMap::new(),
            killed: BTreeMap::new(),
            missed: BTreeMap::new(),
        }
    }

    /// The next kill, in a phase that was not hit often enough.
    pub fn next(&mut self) -> Option<Plan> {
        let count = |of: &BTreeMap<Phase, u64>, phase| of.get(&phase).copied().unwrap_or(0);
        let lacking: Vec<Phase> = PHASES
            .into_iter()
            .filter(|&phase| count(&self.hits, phase) + count(&self.under_way, phase) < self.each)
            .collect();
        if lacking.is_empty() || self.rounds == self.most_rounds {
            return None;
        }
        self.rounds += 1;
        let phase = lacking[self.random.below(lacking.len() as u64) as usize];
        *self.under_way.entry(phase).or_default() += 1;
        // In turn, so that each is killed often.
        let (victims, turn) = (phase.victims(), self.turns.entry(phase).or_default());
        let victim = victims[*turn as usize % victims.len()];
        *turn += 1;
        let most = match (phase, victim) {
            // It comes late in this phase, and is waited for.
            (Phase::Planning, Victim::Supervisor) => 3,
            _ => phase.delay_ms(),
        };
        Some(Plan { phase, victim, delay: Duration::from_millis(self.random.below(most)) })
    }

    /// Notes what a plan came to.
    pub fn note(&mut self, plan: Plan, hit: Option<Phase>) {
        *self.under_way.entry(plan.phase).or_default() -= 1;
        match hit {
            Some(phase) => {
                *self.hits.entry(phase).or_default() += 1;
                *self.killed.entry(plan.victim).or_default() += 1;
            }
            None => *self.missed.entry(plan.phase).or_default() += 1,
        }
    }

    /// There were as many kills as were asked for, in every phase.
    pub fn assert_enough(&self) {
        for phase in PHASES {
            let hits = self.hits.get(&phase).copied().unwrap_or(0);
            assert!(hits >= self.each, "{phase:?} was hit {hits} times, not {}", self.each);
            for victim in phase.victims().iter().filter(|_| self.each >= ENOUGH_FOR_ALL) {
                assert!(self.killed.contains_key(victim), "{victim:?} was never killed");
            }
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
}
