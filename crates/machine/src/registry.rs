//! Which machines exist: names and CIDs are given out here, and what was killed is swept up.
//!
//! A machine lives as long as its folder's `lock` is held. The lock belongs to an open file that the
//! command which plans the machine hands to the supervisor, so there is no moment in which a living
//! machine is unlocked, and no process id that could have been used again decides anything.

use crate::{
    admission::{self, Demand, Refusal},
    cgroup,
    home::{Home, HomeError, create_private_dir, open_lock},
    record::{Record, State},
    spec::Spec,
    template::Templates,
};
use casemate_proto::ids::{Cid, Name};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::PathBuf,
};

/// Ended machines are forgotten after this time …
const KEEP: SignedDuration = SignedDuration::from_hours(7 * 24);

/// … and beyond this many, the oldest first.
const KEEP_COUNT: usize = 50;

/// What stays of a machine that ended.
const KEPT: [&str; 2] = ["machine.json", "logs"];

/// Why a machine cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A live machine has that name.
    #[error("a machine named {name} is already {}", state.as_str())]
    NameTaken {
        /// The name.
        name: Name,
        /// What it does.
        state: State,
    },
    /// The host has not the memory for it.
    #[error(transparent)]
    NoMemory(#[from] Refusal),
    /// Others were being admitted all the time.
    #[error("other machines are being admitted, one after the other")]
    Busy,
    /// The home folder failed.
    #[error("cannot write down the machine")]
    Home(#[from] HomeError),
    /// The host gives no random numbers.
    #[error("cannot draw a machine id")]
    Random(#[source] std::io::Error),
}

/// A planned machine: a name, a CID and a folder that are its own as long as `lock` is held.
#[derive(Debug)]
pub struct Claim {
    /// What was written down.
    pub record: Record,
    /// The machine's life.
    pub lock: File,
}

/// The machines of a home folder.
#[derive(Debug, Clone)]
pub struct Registry {
    home: Home,
    /// Memory for all machines, in MiB.
    limit_mb: Option<u64>,
}

impl Registry {
    /// Opens the registry of a home folder.
    pub fn new(home: &Home) -> Self {
        Self { home: home.clone(), limit_mb: None }
    }

    /// The same registry, which lets all machines together expect no more than this memory, in MiB, even
    /// where the host has more.
    pub fn limited_to(self, limit_mb: Option<u64>) -> Self {
        Self { limit_mb, ..self }
    }

    /// Sweeps up after what was killed, then gives a new machine a name, a CID and a folder, if there is
    /// memory for it.
    pub fn claim(&self, spec: &Spec) -> Result<Claim, ClaimError> {
        let _decision = self.home.lock_machines()?;
        let live: Vec<Record> = self.sweep_locked()?.into_iter().filter(|r| !r.state.is_final()).collect();
        if let Some(other) = live.iter().find(|record| record.name == spec.name) {
            return Err(ClaimError::NameTaken { name: spec.name.clone(), state: other.state });
        }
        admission::admit(&Demand::of(spec), self.limit_mb, &live)?;
        let taken: BTreeSet<Cid> = live.iter().map(|record| record.cid).collect();
        let free = Cid::candidates().find(|cid| !taken.contains(cid));
        // There are four thousand million candidates and one process for each that is taken.
        let cid = free.unwrap_or(Cid(100));
        let id = random_id().map_err(ClaimError::Random)?;
        let dir = self.home.machine(&id);
        create_private_dir(&dir.join("logs"))?;
        let lock_path = dir.join("lock");
        let lock = open_lock(&lock_path)?;
        lock.lock().map_err(HomeError::io("lock", &lock_path))?;
        let record = Record::planned(id, cid, spec);
        match record.save(&self.home) {
            Ok(()) => Ok(Claim { record, lock }),
            Err(error) => {
                // A folder without a record is swept by the next command, should this fail too.
                let _ = fs::remove_dir_all(&dir);
                Err(error.into())
            }
        }
    }

    /// Asks for memory for a suspended machine that is to run again; `None` while others are being admitted,
    /// without waiting for them.
    ///
    /// `mark` writes down that it is suspended no longer; it runs before anybody else is admitted, and only if
    /// there is memory.
    pub fn try_admit_resume<T>(
        &self,
        record: &Record,
        mark: impl FnOnce() -> T,
    ) -> Result<Option<T>, ClaimError> {
        let Some(_decision) = self.home.try_lock_machines()? else { return Ok(None) };
        let mut live = self.sweep_locked()?;
        live.retain(|other| !other.state.is_final() && other.id != record.id);
        admission::admit(&Demand::of_record(record), self.limit_mb, &live)?;
        Ok(Some(mark()))
    }

    /// All machines, live and ended, oldest first. Sweeps up after what was killed.
    pub fn list(&self) -> Result<Vec<Record>, HomeError> {
        let _decision = self.home.lock_machines()?;
        self.sweep_locked()
    }

    /// The live machine of that name.
    pub fn find(&self, name: &Name) -> Result<Option<Record>, HomeError> {
        Ok(self.list()?.into_iter().find(|record| record.name == *name && !record.state.is_final()))
    }

    /// Whether the machine of that id is over, without changing anything.
    pub fn is_over(&self, id: &str) -> bool {
        lock_if_over(&self.home.machine(id)).is_some()
    }

    fn sweep_locked(&self) -> Result<Vec<Record>, HomeError> {
        let machines = self.home.machines();
        let mut records = Vec::new();
        for entry in fs::read_dir(&machines).map_err(HomeError::io("list", &machines))?.flatten() {
            let Some(id) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                records.extend(self.sweep_machine(&id));
            }
        }
        records.sort_by_key(|record| record.started_at);
        self.prune(&mut records);
        Templates::sweep_home(&self.home);
        Ok(records)
    }

    /// The record of one machine, after what a killed supervisor left was removed.
    fn sweep_machine(&self, id: &str) -> Option<Record> {
        let dir = self.home.machine(id);
        let over = lock_if_over(&dir);
        let record = Record::load(&self.home, id);
        let Some(_lock) = over else { return record };
        let Some(mut record) = record else {
            // Planning was killed before the record was written: nothing ran.
            let _ = fs::remove_dir_all(&dir);
            return None;
        };
        if !record.state.is_final() {
            record.reason = Some(format!("supervisor ended without a word while {}", record.state.as_str()));
            record.state = State::Failed;
            record.ended_at = Some(Timestamp::now());
            // A full disk must not make the machine look alive; the next sweep tries again.
            let _ = record.save(&self.home);
        }
        tidy_ended(&dir);
        Some(record)
    }

    fn prune(&self, records: &mut Vec<Record>) {
        let now = Timestamp::now();
        let ended = records.iter().filter(|record| record.state.is_final()).count();
        let mut excess = ended.saturating_sub(KEEP_COUNT);
        records.retain(|record| {
            let Some(ended_at) = record.ended_at else { return true };
            let drop = excess > 0 || now.duration_since(ended_at) > KEEP;
            excess = excess.saturating_sub(1);
            if drop {
                let _ = fs::remove_dir_all(self.home.machine(&record.id));
            }
            !drop
        });
    }
}

/// Removes an ended machine's control groups, and from its folder what does not stay.
pub(crate) fn tidy_ended(dir: &std::path::Path) {
    let groups_left = !cgroup::sweep(dir);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if groups_left && entry.file_name() == cgroup::NOTE {
            continue;
        }
        if KEPT.iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        let path: PathBuf = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // What cannot be removed now is tried again by the next sweep.
        let _ = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}

/// The machine's lock, if nobody holds it: then no supervisor lives, nor does a command that plans it. A
/// machine whose lock was removed is over too.
fn lock_if_over(dir: &std::path::Path) -> Option<Option<File>> {
    match File::open(dir.join("lock")) {
        Ok(file) => file.try_lock().is_ok().then_some(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(None),
        // Out of descriptors, or closed to this user: nothing is known, so nothing may be removed.
        Err(_) => None,
    }
}

fn random_id() -> std::io::Result<String> {
    let mut bytes = [0u8; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::Bound,
        spec::{BackendKind, Level, Lifetime, Origin},
    };

    fn spec(name: &str) -> Spec {
        let nowhere = PathBuf::new;
        let spec = Spec::bare(name.parse().unwrap(), BackendKind::Qemu, nowhere(), nowhere());
        Spec { lifetime: Lifetime::Detached, ..spec }
    }

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        (dir, Registry::new(&home))
    }

    #[test]
    fn live_machines_have_distinct_names_and_cids() {
        let (_dir, registry) = registry();
        let claims: Vec<Claim> = (0..3).map(|n| registry.claim(&spec(&format!("m{n}"))).unwrap()).collect();
        assert_eq!(claims.iter().map(|c| c.record.cid).collect::<Vec<_>>(), [Cid(100), Cid(101), Cid(102)]);
        assert!(matches!(registry.claim(&spec("m1")), Err(ClaimError::NameTaken { .. })));
    }

    #[test]
    fn a_machine_whose_lock_is_free_is_over_and_its_name_and_cid_are_free() {
        let (_dir, registry) = registry();
        let claim = registry.claim(&spec("m")).unwrap();
        fs::write(registry.home.machine(&claim.record.id).join("supervisor.sock"), "").unwrap();
        assert!(!registry.is_over(&claim.record.id));
        drop(claim.lock);
        assert!(registry.is_over(&claim.record.id));
        let listed = registry.list().unwrap();
        assert_eq!(listed[0].state, State::Failed);
        assert!(listed[0].reason.as_ref().unwrap().contains("planned"));
        let left: Vec<_> = fs::read_dir(registry.home.machine(&claim.record.id)).unwrap().flatten().collect();
        assert!(left.iter().all(|entry| KEPT.iter().any(|kept| entry.file_name() == *kept)), "{left:?}");
        assert_eq!(registry.claim(&spec("m")).unwrap().record.cid, Cid(100));
    }

    #[test]
    fn a_machine_whose_lock_cannot_be_opened_is_left_alone() {
        let (_dir, registry) = registry();
        let claim = registry.claim(&spec("m")).unwrap();
        let lock = registry.home.machine(&claim.record.id).join("lock");
        fs::remove_file(&lock).unwrap();
        // A link to itself: an error that even root gets, and not that nothing is there.
        std::os::unix::fs::symlink(&lock, &lock).unwrap();
        assert!(!registry.is_over(&claim.record.id));
        assert_eq!(registry.list().unwrap()[0].state, State::Planned);
    }

    #[test]
    fn a_folder_that_planning_left_is_removed() {
        let (_dir, registry) = registry();
        let dir = registry.home.machine("abc");
        fs::create_dir(&dir).unwrap();
        assert_eq!(registry.list().unwrap(), []);
        assert!(!dir.exists());
    }

    #[test]
    fn at_most_fifty_ended_machines_are_kept() {
        let (_dir, registry) = registry();
        for n in 0..KEEP_COUNT + 3 {
            drop(registry.claim(&spec(&format!("m{n}"))).unwrap());
        }
        let listed = registry.list().unwrap();
        assert_eq!(listed.len(), KEEP_COUNT);
        assert_eq!(fs::read_dir(registry.home.machines()).unwrap().flatten().count(), KEEP_COUNT + 1);
    }

    #[test]
    fn machines_start_as_far_as_the_memory_reaches_and_no_further() {
        let (_dir, registry) = registry();
        let each = Demand::of(&spec("m")).expected_bytes() >> 20;
        let registry = registry.limited_to(Some(3 * each + each / 2));
        let mut claims = Vec::new();
        let refusal = loop {
            match registry.claim(&spec(&format!("m{}", claims.len()))) {
                Ok(claim) => claims.push(claim),
                Err(ClaimError::NoMemory(refusal)) => break refusal,
                Err(error) => panic!("{error}"),
            }
            assert!(claims.len() <= 3);
        };
        assert_eq!(claims.len(), 3);
        assert_eq!((refusal.running, refusal.left >> 20, refusal.bound), (3, each / 2, Bound::Configured));
        // What was refused has left nothing; what ends makes room.
        assert_eq!(registry.list().unwrap().len(), 3);
        drop(claims.pop());
        registry.claim(&spec("again")).unwrap();
    }

    #[test]
    fn a_suspended_machine_needs_nothing_until_it_resumes() {
        let (_dir, registry) = registry();
        let each = Demand::of(&spec("m")).expected_bytes() >> 20;
        let registry = registry.limited_to(Some(each));
        let mut first = registry.claim(&spec("first")).unwrap();
        first.record.state = State::Suspended;
        first.record.save(&registry.home).unwrap();
        let second = registry.claim(&spec("second")).unwrap();
        let refused = registry.try_admit_resume(&first.record, || panic!("marked without memory"));
        assert!(matches!(refused, Err(ClaimError::NoMemory(_))));
        let decision = registry.home.lock_machines().unwrap();
        let waiting = registry.try_admit_resume(&first.record, || panic!("marked while another decides"));
        assert!(matches!(waiting, Ok(None)));
        drop(decision);

        drop(second);
        let resumed = Record { state: State::Booted, ..first.record.clone() };
        let marked = registry.try_admit_resume(&first.record, || resumed.save(&registry.home)).unwrap();
        marked.unwrap().unwrap();
        assert!(matches!(registry.claim(&spec("third")), Err(ClaimError::NoMemory(_))));
    }

    #[test]
    fn a_machine_that_runs_is_expected_to_need_what_it_was_admitted_with() {
        let (_dir, registry) = registry();
        let template = |level, reason: Option<&str>| Origin::Template {
            key: "k".to_owned(),
            level,
            reason: reason.map(str::to_owned),
        };
        for origin in [
            Origin::Cold { reason: "why not".to_owned() },
            template(Level::Server, None),
            template(Level::Agent, Some("it has a volume")),
        ] {
            let spec = Spec { origin, ..spec("m") };
            let claim = registry.claim(&spec).unwrap();
            assert_eq!(Demand::of_record(&claim.record), Demand::of(&spec), "{:?}", spec.origin);
        }
    }
}
