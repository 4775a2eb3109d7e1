//! The process that owns one machine.
//!
//! ```text
//! command ──order──> supervisor ── Planned ─> Prepared ─> Booted ─> Ready ── serves its socket
//!    ^                  │                                            │
//!    └────reports───────┘                            stop, lease's end, server's or VMM's end
//! ```
//!
//! It has one thread: a death signal of the VMM follows the thread that spawned it, and a small process is
//! what makes a hundred machines affordable. Whatever ends it, the kernel ends the VMM, and the next
//! command sweeps up the folder.

mod answer;
mod attach;
mod builder;
mod carrier;
mod ending;
mod health;
mod http;
mod ledger;
mod owner;
mod phases;
#[cfg(test)]
mod played;
mod serve;
mod shared;
mod sleep;

pub(crate) use ending::chain;

use crate::{
    disks::Disks,
    home::Home,
    jsonl::Jsonl,
    leash::{Order, Report},
    log::CappedLog,
    record::{Start, State},
    registry,
    secret::Kept,
    spec::{Origin, Restart, Spec},
    supervise::MESSAGE_BYTES,
    sys,
    template::Templates,
};
use ending::Ending;
use jiff::Timestamp;
use owner::Owner;
use shared::Recorder;
use std::{
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::net::UnixStream as StdStream,
    },
    process::ExitCode,
    rc::Rc,
    time::Duration,
};
use tokio::{net::UnixStream, time::Instant};

/// The hidden subcommand that becomes a supervisor: `casemate __supervisor LEASH LOCK`, two numbers of
/// inherited descriptors.
pub const SUBCOMMAND: &str = "__supervisor";

/// Becomes a supervisor if the program's arguments say so. To be called before anything else happens: no
/// thread may exist yet.
pub fn main() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).take(3).collect();
    let [name, leash, lock] = arguments.as_slice() else { return None };
    if name != SUBCOMMAND {
        return None;
    }
    Some(match supervise(leash, lock) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("casemate supervisor: {error}");
            ExitCode::from(5)
        }
    })
}

fn supervise(leash: &str, lock: &str) -> io::Result<()> {
    let number = |text: &str| text.parse::<RawFd>().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (leash, lock) = (number(leash)?, number(lock)?);
    sys::close_foreign(&[leash, lock])?;
    let leash = sys::inherited(leash)?;
    // Held until this process ends: the registry takes it for the machine's life.
    let _lock: OwnedFd = sys::inherited(lock)?;
    rustix::process::umask(rustix::fs::Mode::from(0o077));
    // No core dump of a process that sees every message, and no tracing by others of the same user.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;

    in_one_thread(async {
        let leash = StdStream::from(leash);
        leash.set_nonblocking(true)?;
        let leash = Jsonl::new(UnixStream::from_std(leash)?, MESSAGE_BYTES);
        run(leash).await
    })
}

/// Runs all that a supervisor does. A lookup that hangs in the system's resolver is left behind: to wait for it
/// would keep this process, and with it the machine's lock.
fn in_one_thread<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let done = local.block_on(&runtime, work);
    drop(local);
    runtime.shutdown_background();
    done
}

async fn run(mut leash: Jsonl) -> io::Result<()> {
    let order: Option<Order> = leash.receive().await.map_err(io::Error::other)?;
    // The command was killed before it said what to make.
    let Some(Order { home, spec, record, secrets }) = order else { return Ok(()) };
    let home = Home::open(&home).map_err(io::Error::other)?;
    let dir = home.machine(&record.id);
    let mut log = CappedLog::open(&dir.join("logs/supervisor.log"))?;
    let recorder = Rc::new(Recorder::new(home, record, Kept::new(secrets)?));
    recorder.update(|record| record.supervisor_pid = Some(std::process::id()));
    let mut owner = Owner::new(leash)?;

    let memory_mb = spec.resources.memory_mb;
    let ending = live(spec, &recorder, &mut owner, &mut log).await;
    let clean = |text: String| recorder.kept.redactor.text(&text);
    let (state, reason) = (ending.state(), clean(ending.to_string()));
    let hint = ending.hint(memory_mb).map(clean);
    let (culprit, built) = (ending.culprit(), ending.built());
    log.write(format!("{} {} {reason}\n", Timestamp::now(), state.as_str()).as_bytes());
    recorder.update(|record| {
        record.state = state;
        record.reason = Some(reason.clone());
        record.ended_at = Some(Timestamp::now());
        record.suspend_bytes = None;
    });
    registry::tidy_ended(&dir);
    // A command that was killed, or let a detached machine go, does not listen any more.
    owner.farewell(Report::Ended { state, reason, hint, culprit, built }).await;
    if let Ending::Unrecorded(error) = ending { Err(error) } else { Ok(()) }
}

/// The first pause before a machine that failed is started anew; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How many times in a row a machine is started anew.
const RESTARTS: u32 = 5;

/// A machine that has been ready for so long had no part in the failures before.
const PROVEN: Duration = Duration::from_secs(300);

/// Makes the machine, and makes it again where it fails and is to be restarted.
async fn live(mut spec: Spec, recorder: &Rc<Recorder>, owner: &mut Owner, log: &mut CappedLog) -> Ending {
    // Also while nothing runs: what is taken for the machine is nobody else's until it is over.
    let disks = match Disks::open(&recorder.home, &spec, &recorder.get()) {
        Ok(disks) => Rc::new(disks),
        Err(error) => return error.into(),
    };
    let mut in_a_row = 0;
    loop {
        let begun = Instant::now();
        let ending = phases::run(&spec, &disks, recorder, owner).await;
        let record = recorder.get();
        // Nobody would learn why one that was never ready does not become so.
        let was_ready = record.start_ms.is_some();
        if spec.restart == Restart::Never || !was_ready || !ending.may_restart() {
            return ending;
        }
        in_a_row = if begun.elapsed() > PROVEN { 1 } else { in_a_row + 1 };
        if in_a_row > RESTARTS {
            let text = format!("{} times in a row it failed and was started anew", RESTARTS);
            return Ending::GaveUp { text, last: Box::new(ending) };
        }
        let pause = FIRST_PAUSE * 2u32.saturating_pow(in_a_row - 1);
        let reason = format!("started anew in {} s: {ending}", pause.as_secs());
        let reason = recorder.kept.redactor.text(&reason);
        log.write(format!("{} {reason}\n", Timestamp::now()).as_bytes());
        plan_anew(recorder, reason);
        tokio::select! {
            ending = owner.interrupted() => return ending,
            () = tokio::time::sleep(pause) => {}
        }
        if let Origin::Template { key, .. } = &spec.origin
            && Templates::open(&recorder.home).is_ok_and(|templates| templates.open_for_machine(key).is_err())
        {
            let reason = "its template is gone".to_owned();
            recorder.update(|record| {
                record.start = Start::Cold;
                record.template = None;
                record.template_reason = Some(reason.clone());
            });
            spec.origin = Origin::Cold { reason };
        }
        recorder.update(|record| record.reason = Some(format!("was started anew after: {ending}")));
    }
}

/// Makes a machine that failed one that is planned.
fn plan_anew(recorder: &Recorder, reason: String) {
    // What it was when it was suspended is of no use any more.
    let _ = std::fs::remove_file(recorder.home.machine(&recorder.get().id).join(sleep::FILE));
    recorder.update(|record| {
        record.state = State::Planned;
        record.pid = None;
        record.suspend_bytes = None;
        record.restarts += 1;
        record.reason = Some(reason);
    });
}

#[cfg(test)]
mod tests {
    use super::{
        played::{Played, within_a_minute},
        *,
    };
    use crate::{record::Record, secret::Secrets, spec::BackendKind};

    /// A machine that is written down as suspended.
    fn suspended() -> Played {
        let played = Played::new();
        std::fs::write(played.hosting().dir.join(sleep::FILE), "pages").unwrap();
        played.shared.recorder.update(|record| {
            record.state = State::Suspended;
            record.suspend_bytes = Some(5);
        });
        played
    }

    #[test]
    fn a_lookup_that_hangs_does_not_outlive_the_machine() {
        let (_hold, held) = std::sync::mpsc::channel::<()>();
        let (ended, seen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let done = in_one_thread(async {
                tokio::task::spawn_blocking(move || held.recv());
                Ok(())
            });
            ended.send(done.is_ok())
        });
        assert_eq!(seen.recv_timeout(Duration::from_secs(30)), Ok(true));
    }

    #[test]
    fn a_machine_that_is_started_anew_keeps_nothing_of_what_it_was_when_it_slept() {
        let played = suspended();
        let dir = played.hosting().dir;
        plan_anew(&played.shared.recorder, "it failed".to_owned());
        assert!(!dir.join(sleep::FILE).exists());
        let written = Record::load_from(&dir).unwrap();
        assert_eq!((written.state, written.suspend_bytes, written.restarts), (State::Planned, None, 1));
    }

    #[test]
    fn a_machine_that_is_over_is_not_written_down_as_one_that_takes_room() {
        within_a_minute(async {
            let played = suspended();
            let recorder = &played.shared.recorder;
            // No machine can be made of this.
            let spec = Spec { backend: BackendKind::Docker, ..played.spec.clone() };
            let (leash, command) = UnixStream::pair().unwrap();
            let home = recorder.home.path().to_owned();
            let order = Order { home, spec, record: recorder.get(), secrets: Secrets::default() };
            let mut command = Jsonl::new(command, MESSAGE_BYTES);
            command.send(&order).await.unwrap();
            run(Jsonl::new(leash, MESSAGE_BYTES)).await.unwrap();
            let written = Record::load_from(&played.hosting().dir).unwrap();
            assert_eq!((written.state, written.suspend_bytes), (State::Failed, None));
        });
    }
}
