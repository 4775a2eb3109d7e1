//! What the agent knows and does, request by request.

use crate::conversation::{Parking, Seat};
use crate::egress::Egress;
use crate::group::Groups;
use crate::journal::Journal;
use crate::launch::Launch;
use crate::reaper::{Reaper, lock};
use crate::reseed::{Hooked, Reseeder};
use crate::server::{Process, Server};
use crate::{boot, exec, failure, handed, inventory, log, mounts, procfs, root, sys};
use casemate_proto::control::{
    Adopt, Clones, Configure, Failure, FailureCode, Inventory, Limits, Pong, Reseed, Root, ServerState,
    Settled, Started, Stats, VERSION, Welcome,
};
use casemate_proto::limits::STOP_GRACE;
use casemate_proto::mount::{self, Kind, Mount};
use rustix::time::{ClockId, Timespec};
use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};

/// Whose kernel it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The machine's: the agent is its first process, mounts its root and sets its clock.
    Own,
    /// The host's too: the backend has set up everything that needs privilege.
    Shared,
}

/// Kept back from servers, for the agent and the kernel: a sixteenth of the memory, but at least this.
const RESERVE_BYTES: u64 = 12 << 20;

/// A server that rests has used no more than [`REST`] of the processor for so long: in emulation a runtime
/// that still loads uses all of it, and one that waits for its first message uses none.
const QUIET: Duration = Duration::from_millis(250);
const REST: Duration = Duration::from_millis(2);

/// The agent of one machine.
#[derive(Debug)]
pub struct Agent {
    kernel: Kernel,
    started: Instant,
    reaper: Arc<Reaper>,
    /// What the server said and what happened to it.
    pub journal: Arc<Journal>,
    /// The server.
    pub server: Server,
    /// Who holds the conversation.
    pub seat: Seat,
    /// Whether the conversation is to let go of its stream.
    pub parking: Parking,
    /// The ways out of the machine.
    pub egress: Egress,
    /// Room for programs beside the server.
    pub programs: Arc<Semaphore>,
    epoch: Mutex<Option<Epoch>>,
    setup: AsyncMutex<Setup>,
    /// What keeps clones of the server from repeating random numbers.
    reseeder: Mutex<Option<Reseeder>>,
    /// The grace of the shutdown that was asked for.
    ending: watch::Sender<Option<Duration>>,
}

/// A life of the machine, as its host named it.
#[derive(Debug, Clone)]
struct Epoch {
    name: String,
    generation: u64,
}

#[derive(Debug, Default)]
struct Setup {
    /// The epoch of the last `configure`.
    epoch: Option<String>,
    /// What is mounted.
    root: Option<(Root, Vec<Mount>, Limits)>,
    /// What is still to be mounted into it.
    held: Vec<Mount>,
}

impl Agent {
    /// An agent that knows nothing yet.
    pub fn new(kernel: Kernel) -> Self {
        let reaper = Arc::new(Reaper::default());
        let journal = Arc::new(Journal::default());
        Self {
            kernel,
            started: Instant::now(),
            server: Server::new(Arc::new(Groups::by_descent()), reaper.clone(), journal.clone()),
            reaper,
            journal,
            seat: Seat::default(),
            parking: Parking::default(),
            egress: Egress::default(),
            programs: Arc::new(Semaphore::new(exec::PROGRAMS)),
            epoch: Mutex::new(None),
            setup: AsyncMutex::default(),
            reseeder: Mutex::new(None),
            ending: watch::Sender::new(None),
        }
    }

    /// Takes every child's status.
    pub fn reaper(&self) -> Arc<Reaper> {
        self.reaper.clone()
    }

    /// `hello`: the first one after the link was (re)synchronised names the epoch; others have to know it.
    pub fn greet(&self, generation: u64, protocol: u32, epoch: String) -> Result<Welcome, Failure> {
        let refuse = |message| Err(failure::new(FailureCode::Hello, message));
        if protocol != VERSION {
            return refuse(format!("the agent speaks protocol version {VERSION}, not {protocol}"));
        }
        let mut current = lock(&self.epoch);
        match &*current {
            Some(known) if known.generation >= generation && known.name != epoch => {
                return refuse("this machine lives in another epoch".to_owned());
            }
            Some(known) if known.generation >= generation => {}
            _ => *current = Some(Epoch { name: epoch, generation }),
        }
        Ok(Welcome { protocol: VERSION, agent: env!("CARGO_PKG_VERSION").to_owned() })
    }

    /// `configure`.
    pub async fn configure(&self, mut config: Configure) -> Result<(), Failure> {
        let mut setup = self.setup.lock().await;
        let epoch = lock(&self.epoch).as_ref().map(|epoch| epoch.name.clone());
        if setup.epoch.is_some() && setup.epoch == epoch {
            return Err(failure::new(FailureCode::State, "the machine is configured already"));
        }
        let entropy = config.entropy.as_deref().map(parse_entropy).transpose()?;
        let inside = match &config.root {
            Root::Ready => None,
            Root::Device { .. } if self.kernel == Kernel::Own => Some(root_path()),
            Root::Device { .. } => {
                return Err(failure::new(FailureCode::Params, "the root of this machine is ready already"));
            }
        };
        if !config.mounts.is_empty() {
            self.own_kernel("file systems")?;
        }
        if config.mounts.len() > mount::MOST {
            let message = format!("more than {} file systems are to be mounted", mount::MOST);
            return Err(failure::new(FailureCode::Params, message));
        }
        let mut launch = Launch::new(&config, inside.clone())?;
        // Before anything that could use it.
        if let Some(entropy) = entropy {
            self.add_entropy(entropy)?;
        }
        self.set_clock_and_name(config.clock_unix_ns, &config.hostname)?;
        let groups = self.prepare_root(&mut setup, &config).await?;
        self.egress.configure(config.egress.as_ref(), self.kernel).await.map_err(|error| {
            failure::new(FailureCode::System, format!("listen for the ways out: {error}"))
        })?;
        if let Some(trust) = &config.trust {
            let run = Path::new(if inside.is_some() { root::ROOT } else { "/" }).join("run");
            handed::hand_trust(&run, trust)
                .map_err(|error| failure::new(FailureCode::System, format!("write certificates: {error}")))?;
        }
        if let Some(kind) = config.reseed {
            self.own_kernel("hooks against repeated random numbers")?;
            let run = Path::new(root::ROOT).join("run");
            let reseeder = Reseeder::install(&run, Path::new("/run"), kind)
                .map_err(|error| failure::new(FailureCode::System, format!("install hooks: {error}")))?;
            reseeder.extend_environment(&mut config.env);
            if kind == Reseed::Node {
                let kept = root::mount_code_cache().map_err(|error| failure::system(&error))?;
                config.env.entry("NODE_COMPILE_CACHE".to_owned()).or_insert(kept);
            }
            launch = Launch::new(&config, inside)?;
            *lock(&self.reseeder) = Some(reseeder);
        }
        self.server.configure(launch, groups);
        setup.epoch = epoch;
        Ok(())
    }

    fn add_entropy(&self, bytes: [u8; 32]) -> Result<(), Failure> {
        self.own_kernel("entropy")?;
        let added =
            std::fs::File::open("/dev/urandom").and_then(|random| sys::add_entropy(random.as_fd(), bytes));
        added.map_err(|error| failure::new(FailureCode::System, format!("add entropy: {error}")))
    }

    fn set_clock_and_name(&self, clock_unix_ns: Option<u64>, hostname: &str) -> Result<(), Failure> {
        if let Some(nanoseconds) = clock_unix_ns {
            self.own_kernel("a clock")?;
            let time = Timespec {
                tv_sec: (nanoseconds / 1_000_000_000) as i64,
                tv_nsec: (nanoseconds % 1_000_000_000) as _,
            };
            rustix::time::clock_settime(ClockId::Realtime, time)
                .map_err(|error| failure::new(FailureCode::System, format!("set the clock: {error}")))?;
        }
        if self.kernel == Kernel::Own {
            rustix::system::sethostname(hostname.as_bytes())
                .map_err(|error| failure::new(FailureCode::System, format!("set the host name: {error}")))?;
        }
        Ok(())
    }

    /// What is only for a machine with a kernel of its own: elsewhere it would change the host.
    fn own_kernel(&self, what: &str) -> Result<(), Failure> {
        match self.kernel {
            Kernel::Own => Ok(()),
            Kernel::Shared => Err(failure::new(
                FailureCode::Params,
                format!("this machine shares the host's kernel and takes no {what}"),
            )),
        }
    }

    /// Mounts the root, or finds it mounted by an earlier epoch.
    async fn prepare_root(
        &self,
        setup: &mut Setup,
        config: &Configure,
    ) -> Result<Option<Arc<Groups>>, Failure> {
        let wanted = (config.root.clone(), config.mounts.clone(), config.limits);
        match &setup.root {
            Some(mounted) if *mounted == wanted => {
                self.mount_held(setup, config.hold_volumes).await?;
                return Ok(None);
            }
            Some(_) => {
                return Err(failure::new(
                    FailureCode::State,
                    "the root is mounted already, and another or with other limits",
                ));
            }
            None => {}
        }
        if let Root::Device { device, overlay } = &config.root {
            root::assemble(device, overlay.as_deref(), &config.mounts, &config.limits)
                .await
                .map_err(|error| failure::system(&error))?;
        }
        setup.held = config.mounts.clone();
        setup.root = Some(wanted);
        self.mount_held(setup, config.hold_volumes).await?;
        if self.kernel == Kernel::Shared {
            if let Err(error) = boot::loopback_up() {
                // The backend's affair; a server without need of it runs all the same.
                log::warn(format_args!("bring up the loopback interface: {error}"));
            }
            return Ok(None);
        }
        boot::settle();
        let total = procfs::memory_kb().0 * 1024;
        let memory = total.saturating_sub((total / 16).max(RESERVE_BYTES));
        Ok(Some(Arc::new(Groups::control(config.limits.processes, memory))))
    }

    /// Mounts what is not mounted yet, but for volumes where those are to wait.
    async fn mount_held(&self, setup: &mut Setup, hold_volumes: bool) -> Result<(), Failure> {
        let waits = |mount: &Mount| hold_volumes && mount.kind == Kind::Volume;
        let (held, now) = std::mem::take(&mut setup.held).into_iter().partition(waits);
        setup.held = held;
        mounts::mount_all(&now).await.map_err(|error| failure::system(&error))
    }

    /// `start`.
    pub async fn start(&self) -> Result<Started, Failure> {
        let turn = self.server.turn().await;
        let process = self.server.ensure(&turn)?;
        Ok(Started { pid: process.pid as u32 })
    }

    /// `rinse`: ends a server that was started for what its runtime keeps of it.
    pub async fn rinse(&self) -> Result<(), Failure> {
        self.own_kernel("rinsing")?;
        self.seat.free().await;
        let turn = self.server.turn().await;
        self.server.stop(&turn, STOP_GRACE).await;
        self.server.forget(&turn);
        let failed = |error: std::io::Error| {
            failure::new(FailureCode::System, format!("remove what the server wrote: {error}"))
        };
        // Nothing that is mounted is removed with the rest.
        let aside = mounts::in_writable(&self.mounts().await);
        mounts::unmount_all(&aside).map_err(failed)?;
        root::wipe().map_err(failed)?;
        mounts::mount_all(&aside).await.map_err(|error| failure::system(&error))?;
        root::seal_code_cache().map_err(failed)?;
        self.journal.clear();
        Ok(())
    }

    /// What is mounted beside the root.
    async fn mounts(&self) -> Vec<Mount> {
        let setup = self.setup.lock().await;
        let mut mounts = setup.root.as_ref().map(|(_, mounts, _)| mounts.clone()).unwrap_or_default();
        mounts.retain(|mount| !setup.held.contains(mount));
        mounts
    }

    /// `settle`: waits until the server has used next to no processor time for a while, then freezes it.
    pub async fn settle(&self) -> Result<Settled, Failure> {
        let process = self.running()?;
        let failed = |doing: &'static str| {
            move |error: std::io::Error| {
                failure::new(FailureCode::System, format!("{doing} of the server: {error}"))
            }
        };
        let mut seen = process.cpu().map_err(failed("read the processor time"))?;
        loop {
            tokio::time::sleep(QUIET).await;
            if !matches!(self.server.state(), ServerState::Running { .. }) {
                return Err(failure::new(FailureCode::State, "the server ended"));
            }
            let now = process.cpu().map_err(failed("read the processor time"))?;
            if now.saturating_sub(seen) <= REST {
                process.freeze().await.map_err(failed("stop all processes"))?;
                let clones = match self.hooked(&process)? {
                    Hooked::Complete => Clones::Differ,
                    Hooked::Missing(_) => Clones::Repeat,
                    Hooked::Drawn(_) => Clones::Share,
                };
                return Ok(Settled { cpu_ms: now.as_millis() as u64, clones });
            }
            seen = now;
        }
    }

    /// Whether clones of the frozen server would draw numbers of their own.
    fn hooked(&self, process: &Process) -> Result<Hooked, Failure> {
        let members = process.members().map_err(|error| {
            failure::new(FailureCode::System, format!("list the processes of the server: {error}"))
        })?;
        Ok(lock(&self.reseeder).as_ref().map_or(Hooked::Missing(None), |reseeder| reseeder.state(&members)))
    }

    /// `adopt`: a clone becomes a machine of its own, or a resumed machine finds out how late it is.
    pub fn adopt(&self, adopt: &Adopt) -> Result<(), Failure> {
        // The kernel's numbers first: those of runtimes are drawn from them.
        self.add_entropy(parse_entropy(&adopt.entropy)?)?;
        self.set_clock_and_name(Some(adopt.clock_unix_ns), &adopt.hostname)?;
        if !adopt.reseed {
            return Ok(());
        }
        if let Some(reseeder) = &*lock(&self.reseeder) {
            let bumped = reseeder.bump();
            bumped.map_err(|error| failure::new(FailureCode::System, format!("count the clone: {error}")))?;
        }
        if let Some(process) = self.server.running() {
            process.thaw().map_err(|error| {
                failure::new(FailureCode::System, format!("let the server go on: {error}"))
            })?;
        }
        Ok(())
    }

    /// `park`.
    pub async fn park(&self) {
        self.parking.park(self).await;
        self.journal.mark();
        // It may be ended without ever being resumed.
        mounts::sync(&self.mounts().await);
    }

    fn running(&self) -> Result<Arc<Process>, Failure> {
        let running = self.server.running();
        running.ok_or_else(|| failure::new(FailureCode::State, "the server does not run"))
    }

    /// `ping`.
    pub fn ping(&self) -> Pong {
        Pong { uptime_ms: self.started.elapsed().as_millis() as u64, server: self.server.state() }
    }

    /// `stats`.
    pub fn stats(&self) -> Stats {
        let (memory_total_kb, memory_available_kb) = procfs::memory_kb();
        Stats {
            memory_total_kb,
            memory_available_kb,
            processes: procfs::processes().filter(|process| !process.kernel).count() as u32,
            cpu_ms: procfs::cpu_ms(),
            reaped: self.reaper.reaped(),
            starts: self.server.starts(),
            stderr_dropped_bytes: self.journal.lost_bytes(),
        }
    }

    /// `signal`.
    pub fn signal(&self, signal: i32) -> Result<(), Failure> {
        if !(1..=64).contains(&signal) {
            return Err(failure::new(FailureCode::Params, format!("there is no signal {signal}")));
        }
        self.running()?.signal(signal).map_err(|error| {
            failure::new(FailureCode::System, format!("send signal {signal} to the server: {error}"))
        })
    }

    /// `inventory`.
    pub fn inventory(&self) -> Inventory {
        inventory::take(match self.kernel {
            Kernel::Own => root::ROOT,
            Kernel::Shared => "",
        })
    }

    /// `shutdown`: begins the end, see [`Agent::ended`].
    pub fn shut_down(&self, grace: Duration) {
        self.ending.send_replace(Some(grace));
    }

    /// Waits until a shutdown was asked for and the server has ended.
    pub async fn ended(&self) {
        let mut ending = self.ending.subscribe();
        // The sender lives as long as this agent.
        let grace = ending.wait_for(Option::is_some).await.ok().and_then(|grace| *grace).unwrap_or_default();
        // A conversation's end may have the turn; then the server is ending already.
        let turn = self.server.turn().await;
        self.server.stop(&turn, grace).await;
        let mut volumes = self.mounts().await;
        volumes.retain(|mount| mount.kind == Kind::Volume);
        // What is not written now is in the journal.
        if let Err(error) = mounts::unmount_all(&volumes) {
            log::warn(format_args!("unmount volumes: {error}"));
        }
    }
}

fn root_path() -> CString {
    // A constant without a zero byte.
    CString::new(root::ROOT).unwrap_or_default()
}

fn parse_entropy(text: &str) -> Result<[u8; 32], Failure> {
    let mut bytes = [0; 32];
    let valid = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !valid {
        return Err(failure::new(FailureCode::Params, "the entropy is not 32 bytes in hexadecimal"));
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| (digits[at] as char).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(0) << 4 | digit(1);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_32_bytes_of_hexadecimal() {
        assert_eq!(parse_entropy(&"0aF1".repeat(16)).unwrap()[..2], [0x0a, 0xf1]);
        for bad in ["", "0", &"0".repeat(63), &"+1".repeat(32), &"ä".repeat(32)] {
            assert!(parse_entropy(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_epoch_is_adopted_at_each_synchronisation_and_else_refused() {
        let agent = Agent::new(Kernel::Shared);
        assert!(agent.greet(1, VERSION + 1, "a".into()).is_err());
        assert!(agent.greet(1, VERSION, "a".into()).is_ok());
        assert!(agent.greet(1, VERSION, "a".into()).is_ok());
        assert_eq!(agent.greet(1, VERSION, "b".into()).unwrap_err().code, FailureCode::Hello);
        assert!(agent.greet(2, VERSION, "b".into()).is_ok());
        assert!(agent.greet(2, VERSION, "a".into()).is_err());
    }
}
