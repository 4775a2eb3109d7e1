//! From a plan to a machine that serves, and to its end. Each step consumes the last one.

use super::{
    builder,
    ending::{self, Ending},
    http::{self, Http},
    owner::Owner,
    serve,
    shared::{EXIT_NEWS, Link, Recorder, Shared, Use, Wish},
    sleep::Machine,
};
use crate::{
    backend::{self, Beginning, Hosting, Instance},
    control::{Control, ControlError, Notice},
    disks::{self, Disks},
    egress::{self, Gate, WayOut},
    home::HomeError,
    leash::Report,
    log::CappedLog,
    record::State,
    secret::Redacted,
    sock,
    spec::{Conversation, Level, Lifetime, Origin, Spec, Workload},
    supervise,
    template::Templates,
};
use casemate_link::{ConnectError, Connector};
use casemate_mcp::client as mcp;
use casemate_proto::{
    control::{Adopt, Configure, Event, Request, Root, Started, Transport, Trust},
    limits::CONTROL_TIMEOUT,
};
use jiff::Timestamp;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

/// The command of a machine in which nothing is to be started yet.
const NO_PROGRAM: &str = "/nothing";

/// How long a restored server has the processor to itself for its first answer.
const FOLLOW_AFTER: Duration = Duration::from_millis(300);

/// Lines on a held conversation's stdout that wait to be logged.
const GARBAGE_QUEUE: usize = 64;

/// Makes the machine and stays with it until it is over.
pub(super) async fn run(
    spec: &Spec,
    disks: &Rc<Disks>,
    recorder: &Rc<Recorder>,
    owner: &mut Owner,
) -> Ending {
    let (reports, begun) = (owner.reports(), Instant::now());
    let making = async {
        let deadline = Instant::now() + Duration::from_millis(spec.deadline_ms);
        let prepared = Planned { spec, disks: Rc::clone(disks), recorder, deadline }.prepare()?;
        reports.send(Report::Phase { state: State::Prepared });
        let booted = prepared.boot().await?;
        reports.send(Report::Phase { state: State::Booted });
        Ok(booted)
    };
    let mut booted = tokio::select! {
        biased;
        // Dropping what was made so far ends it.
        ending = owner.interrupted() => return ending,
        made = making => match made {
            Ok(booted) => booted,
            Err(ending) => return ending,
        },
    };
    let started = tokio::select! {
        biased;
        ending = owner.interrupted() => Err(ending),
        started = booted.start() => started,
    };
    if let Err(ending) = started {
        // What its server wrote until now is to be there for the next one.
        if serve::has_volume(spec) && serve::is_well(&ending) {
            serve::shut_down(spec, &mut *booted.instance, &booted.shared).await;
        }
        return ending;
    }
    let ready = booted.ready();
    recorder.update(|record| {
        record.state = State::Ready;
        // The first time it counts from when it was planned.
        let first = Timestamp::now().duration_since(record.started_at).as_millis().max(0) as u64;
        record.start_ms = Some(if record.restarts == 0 { first } else { begun.elapsed().as_millis() as u64 });
    });
    reports.send(Report::Ready { record: Box::new(recorder.get()) });
    if spec.lifetime == Lifetime::Detached {
        owner.let_go();
    }
    serve::until_the_end(ready, owner).await
}

struct Planned<'a> {
    spec: &'a Spec,
    disks: Rc<Disks>,
    recorder: &'a Rc<Recorder>,
    deadline: Instant,
}

impl<'a> Planned<'a> {
    fn prepare(self) -> Result<Prepared<'a>, Ending> {
        let record = self.recorder.get();
        let dir = self.recorder.home.machine(&record.id);
        let bound = sock::bind(&dir, supervise::SOCKET);
        let listener = bound.map_err(HomeError::io("listen at", &dir.join(supervise::SOCKET)))?;
        let beginning = match &self.spec.origin {
            Origin::Template { key, .. } => {
                Beginning::Template(Templates::open(&self.recorder.home)?.open_for_machine(key)?)
            }
            Origin::Cold { .. } | Origin::Builder { .. } => Beginning::Boot,
        };
        self.recorder.update(|record| record.state = State::Prepared);
        Ok(Prepared { plan: self, dir, listener, beginning })
    }
}

struct Prepared<'a> {
    plan: Planned<'a>,
    dir: PathBuf,
    listener: UnixListener,
    beginning: Beginning,
}

impl<'a> Prepared<'a> {
    async fn boot(self) -> Result<Booted<'a>, Ending> {
        let Planned { spec, disks, recorder, deadline } = self.plan;
        let (home, record) = (recorder.home.clone(), recorder.get());
        let (way_out, notes) = way_out(spec, recorder, &self.dir.join("logs"))?;
        let hosting = Hosting { home, dir: self.dir, record, disks, way_out };
        let Woken { instance, link, control } = wake(spec, &hosting, self.beginning, deadline, |pid| {
            recorder.update(|record| record.pid = Some(pid));
        })
        .await?;
        recorder.update(|record| record.state = State::Booted);

        let logs = hosting.dir.join("logs");
        let path = logs.join("server.log");
        let server_log = CappedLog::open(&path).map_err(HomeError::io("open", &path))?;
        let server_log = Redacted::new(server_log, Arc::clone(&recorder.kept.redactor));
        let http = Http::of(spec.workload.as_ref());
        let http = http.map_err(|error| Ending::Deaf { reason: error.to_string(), tail: String::new() })?;
        let (wishes, wished) = mpsc::channel(16);
        let capabilities = instance.capabilities();
        let shared = Rc::new(Shared {
            recorder: recorder.clone(),
            link: RefCell::new(Some(link)),
            usage: Use::default(),
            may_be_suspended: spec.idle_ms.is_some() && capabilities.snapshot,
            paused: Cell::new(false),
            carrier: RefCell::default(),
            http,
            capabilities,
            wishes,
            conversation: RefCell::default(),
            holder: RefCell::default(),
            broken: watch::Sender::new(None),
            server_exit: watch::Sender::new(None),
            server_log: RefCell::new(server_log),
            garbage_lines: Cell::new(0),
        });
        if let Some(notes) = notes {
            note_later(&shared, notes);
        }
        Ok(Booted { spec, deadline, instance, shared, control, hosting, listener: self.listener, wished })
    }
}

/// What becomes of the streams that the guest opens, and what is to be noted about that.
fn way_out(
    spec: &Spec,
    recorder: &Recorder,
    logs: &Path,
) -> Result<(WayOut, Option<mpsc::Receiver<String>>), Ending> {
    let Some(workload) = spec.workload.as_ref().filter(|workload| !workload.egress.is_none()) else {
        return Ok((WayOut::None, None));
    };
    if matches!(spec.origin, Origin::Builder { .. }) {
        return Ok((WayOut::Watched(Arc::default()), None));
    }
    let (gate, notes) = Gate::open(workload.egress.clone(), own_port(workload), &recorder.kept, logs)?;
    Ok((WayOut::Open(Arc::new(gate)), Some(notes)))
}

/// The port on guest loopback that the server itself listens on.
fn own_port(workload: &Workload) -> Option<u16> {
    match workload.transport {
        Transport::Http { port } => Some(port),
        Transport::Stdio => None,
    }
}

/// Has what comes out of a queue written to the server's log, as long as the machine lives.
fn note_later(shared: &Rc<Shared>, mut notes: mpsc::Receiver<String>) {
    let shared = Rc::downgrade(shared);
    tokio::task::spawn_local(async move {
        while let Some(note) = notes.recv().await {
            let Some(shared) = shared.upgrade() else { return };
            shared.note(&note);
        }
    });
}

/// A VMM whose guest has said hello.
pub(super) struct Woken {
    pub(super) instance: Box<dyn Instance>,
    pub(super) link: Link,
    pub(super) control: Control,
}

/// Starts a VMM and waits for the agent; a machine that was restored or resumed gets its clock, its name and
/// fresh randomness before anything else happens in it.
pub(super) async fn wake(
    spec: &Spec,
    hosting: &Hosting,
    beginning: Beginning,
    deadline: Instant,
    started: impl FnOnce(u32),
) -> Result<Woken, Ending> {
    let logs = hosting.dir.join("logs");
    let (boots, is_clone) =
        (matches!(beginning, Beginning::Boot), matches!(beginning, Beginning::Template(_)));
    let begun = backend::start(spec, hosting, beginning).await;
    let mut instance = begun.map_err(|error| Ending::Backend { error, tail: ending::tails(&logs) })?;
    started(instance.pid());

    let epoch = random_hex::<16>()?;
    let connector = instance.connector();
    let hello = async {
        let mut control = first_hello(&connector, &epoch, deadline).await?;
        if !boots {
            let adopt = Adopt {
                hostname: hosting.record.name.to_string(),
                clock_unix_ns: clock(),
                entropy: random_hex::<32>().map_err(io::Error::other)?,
                reseed: is_clone,
            };
            let _: serde_json::Value =
                control.request("adopt", Request::Adopt(adopt), CONTROL_TIMEOUT).await?;
        }
        Ok(control)
    };
    let control = match while_alive(&mut *instance, &logs, hello).await? {
        Err(ControlError::Timeout { .. } | ControlError::Connect(ConnectError::TimedOut { .. })) => {
            let patience = Duration::from_millis(spec.deadline_ms);
            return Err(Ending::Slow { what: "booted", patience, tail: ending::tails(&logs) });
        }
        // A link that breaks is most often a VMM that is about to be seen to have ended.
        Err(error) => {
            let ended = tokio::time::timeout(EXIT_NEWS, instance.exited()).await;
            return Err(match ended {
                Ok(Ok(status)) => Ending::VmmEnded { status, tail: ending::tails(&logs) },
                _ => error.into(),
            });
        }
        Ok(control) => control,
    };
    Ok(Woken { instance, link: Link { connector, epoch }, control })
}

fn clock() -> u64 {
    Timestamp::now().as_nanosecond().max(0) as u64
}

struct Booted<'a> {
    spec: &'a Spec,
    deadline: Instant,
    instance: Box<dyn Instance>,
    shared: Rc<Shared>,
    control: Control,
    hosting: Hosting,
    listener: UnixListener,
    wished: mpsc::Receiver<Wish>,
}

/// A machine that serves.
pub(super) struct Ready<'a> {
    pub(super) spec: &'a Spec,
    pub(super) hosting: Hosting,
    pub(super) machine: Machine,
    pub(super) shared: Rc<Shared>,
    pub(super) listener: UnixListener,
    pub(super) wished: mpsc::Receiver<Wish>,
}

impl<'a> Booted<'a> {
    /// Makes it ready, unless it is to become a template and looks outside: what it learnt there, and the
    /// connection that it waits on, would be in every clone.
    async fn start(&mut self) -> Result<(), Ending> {
        let watched = match &self.hosting.way_out {
            WayOut::Watched(tried) => Some(Arc::clone(tried)),
            WayOut::None | WayOut::Open(_) => None,
        };
        let looked_outside = async {
            match watched {
                Some(tried) => tried.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = looked_outside => {
                Err(Ending::NoTemplate("its server uses the network while it starts".to_owned()))
            }
            ready = self.make_ready() => ready,
        }
    }

    async fn make_ready(&mut self) -> Result<(), Ending> {
        let logs = self.hosting.dir.join("logs");
        if let Some(workload) = &self.spec.workload {
            let patience = Duration::from_millis(self.spec.deadline_ms);
            let trust = self.hosting.way_out.trust();
            let starting =
                start_server(self.spec, workload, trust, &self.shared, &mut self.control, self.deadline);
            let bounded = timeout_at(self.deadline, starting);
            let started = while_alive(&mut *self.instance, &logs, bounded).await?;
            match started {
                Ok(Ok(())) => {}
                Ok(Err(ending)) if ending.is_final_word() => return Err(ending),
                Ok(Err(ending)) => {
                    return Err(match self.shared.exit_news().await {
                        // It was ended because it closed its output, or ended without a complaint.
                        Some(exit) if exit.code == Some(0) && exit.stderr_tail.trim().is_empty() => ending,
                        // Why the server ended says more than that its conversation did.
                        Some(exit) => Ending::ServerExited(exit),
                        None => ending,
                    });
                }
                Err(_) => {
                    let tail = crate::log::tail(&logs.join("server.log"), 1500);
                    return Err(Ending::Slow { what: "ready", patience, tail });
                }
            }
        }
        if let Origin::Builder { folder, level } = &self.spec.origin {
            let built = builder::finish(&mut *self.instance, &mut self.control, &self.shared, folder, *level);
            let built = built.await;
            self.instance.kill().await;
            return Err(built.map_or_else(|ending| ending, Ending::Built));
        }
        Ok(())
    }

    fn ready(self) -> Ready<'a> {
        let Self { spec, instance, shared, hosting, listener, wished, .. } = self;
        Ready { spec, hosting, machine: Machine::Awake(instance), shared, listener, wished }
    }
}

/// Makes of the machine what it is to be and, where the supervisor speaks with its server, opens the
/// conversation.
async fn start_server(
    spec: &Spec,
    workload: &Workload,
    trust: Option<Trust>,
    shared: &Rc<Shared>,
    control: &mut Control,
    deadline: Instant,
) -> Result<(), Ending> {
    let patience = Duration::from_millis(spec.deadline_ms);
    let logs = shared.recorder.home.machine(&shared.recorder.get().id).join("logs");
    let level = match &spec.origin {
        Origin::Cold { .. } => None,
        Origin::Template { level, .. } | Origin::Builder { level, .. } => Some(*level),
    };
    let is_builder = matches!(spec.origin, Origin::Builder { .. });
    let is_running = level == Some(Level::Server) && !is_builder;
    // Its clones are for every server of the image: it must hold nothing of this one.
    let is_bare = is_builder && level == Some(Level::Agent);
    if !is_running {
        let mut env = if is_bare { BTreeMap::new() } else { workload.env.clone() };
        let ways_out = workload.egress.ways(own_port(workload)).filter(|_| !is_bare);
        if ways_out.as_ref().is_some_and(|ways| ways.proxy.is_some()) {
            egress::environment::extend(&mut env);
        }
        if !is_bare {
            shared.recorder.kept.extend(&mut env);
        }
        if trust.is_some() {
            egress::environment::extend_trust(&mut env);
        }
        let configure = Configure {
            hostname: shared.recorder.get().name.to_string(),
            command: if is_bare { vec![NO_PROGRAM.to_owned()] } else { workload.command.clone() },
            env,
            cwd: if is_bare { "/".to_owned() } else { workload.cwd.clone() },
            root: Root::Device {
                device: "/dev/vda".to_owned(),
                overlay: workload.overlay.then(|| "/dev/vdb".to_owned()),
            },
            mounts: disks::mounts(workload),
            hold_volumes: is_builder,
            transport: workload.transport,
            limits: workload.limits,
            clock_unix_ns: Some(clock()),
            entropy: Some(random_hex::<32>()?),
            reseed: workload.reseed.filter(|_| level == Some(Level::Server)),
            egress: ways_out,
            trust,
        };
        let request = Request::Configure(Box::new(configure));
        let _: serde_json::Value = control.request("configure", request, patience).await?;
    }
    if is_bare {
        return Ok(());
    }
    if is_builder {
        let warmed = workload.reseed.filter(|_| workload.transport == Transport::Stdio);
        builder::start(control, shared, warmed, patience).await?;
    }
    if is_running {
        follow_later(shared);
    } else {
        follow_server(shared).await?;
    }
    if !is_running && !is_builder {
        let _: Started = control.request("start", Request::Start, patience).await?;
        if shared.http.is_some() {
            http::listening(control, deadline, &logs).await?;
        }
    }
    if workload.conversation == Conversation::Held && !is_builder {
        let stream = http::talk(shared).await?;
        let (reader, writer) = tokio::io::split(stream);
        let mut options = mcp::Options::new("casemate", env!("CARGO_PKG_VERSION"));
        // A server in emulation may take as long to begin as the machine was given, and whoever calls this
        // has begun to count earlier.
        options.negotiate_timeout = patience;
        options.observer = garbage_observer(shared);
        let opened = mcp::Conversation::open(reader, writer, options).await;
        let opened = opened.map_err(|error| match shared.broken.borrow().clone() {
            Some(reason) => Ending::ConversationEnded(reason),
            None => Ending::Server(error),
        })?;
        *shared.conversation.borrow_mut() = Some(opened);
    }
    Ok(())
}

/// Has what the server prints on stdout, and what is no message, written to its log.
fn garbage_observer(shared: &Rc<Shared>) -> mcp::Observer {
    let (rejected, mut rejections) = mpsc::channel::<String>(GARBAGE_QUEUE);
    let shared = Rc::downgrade(shared);
    tokio::task::spawn_local(async move {
        while let Some(line) = rejections.recv().await {
            let Some(shared) = shared.upgrade() else { return };
            shared.note_garbage(line.as_bytes());
        }
    });
    Arc::new(move |event| {
        if let mcp::Event::Rejected(line) = event {
            // A flood of garbage loses some of it.
            let _ = rejected.try_send(line.preview.clone());
        }
    })
}

/// Follows a server that runs already, once its first answer is out of the way: the agent keeps what it says
/// meanwhile.
fn follow_later(shared: &Rc<Shared>) {
    let life = |shared: &Shared| shared.link.borrow().as_ref().map(|link| link.epoch.clone());
    let (begun, shared) = (life(shared), Rc::downgrade(shared));
    tokio::task::spawn_local(async move {
        let shared = loop {
            tokio::time::sleep(FOLLOW_AFTER).await;
            let Some(shared) = shared.upgrade() else { return };
            match life(&shared) {
                now if now == begun => break shared,
                // It was suspended and goes on, and is followed.
                Some(_) => return,
                // It is being suspended, which may fail, or is suspended, and is not woken for this.
                None => {}
            }
        };
        if let Err(error) = follow_server(&shared).await {
            // Most often the machine is over already, which is seen by other means.
            shared.note(&format!("its stderr is not followed: {}", ending::chain(&error)));
        }
    });
}

/// Writes the server's stderr to its log, and notes how it ends.
pub(super) async fn follow_server(shared: &Rc<Shared>) -> Result<(), ControlError> {
    let link = shared.link().await?;
    let control = Control::open(&link.connector, &link.epoch, CONTROL_TIMEOUT).await?;
    let mut watch = control.watch().await?;
    let shared = Rc::clone(shared);
    tokio::task::spawn_local(async move {
        // The end of the stream, or nonsense on it, ends the following: the VMM's end is seen elsewhere.
        while let Ok(Some(notice)) = watch.next().await {
            match notice {
                Notice::Stderr(bytes) => shared.server_log.borrow_mut().stream(&bytes),
                Notice::Event(Event::Started(_)) => drop(shared.server_exit.send_replace(None)),
                Notice::Event(Event::Exited(exit)) => shared.server_ended(exit),
                Notice::Event(Event::Dropped { bytes }) => {
                    shared.server_log.borrow_mut().gap();
                    shared.note(&format!("{bytes} bytes of stderr were dropped"));
                }
            }
        }
    });
    Ok(())
}

/// Waits for the agent: a connection is given up long before a busy host has booted a guest.
async fn first_hello(connector: &Connector, epoch: &str, deadline: Instant) -> Result<Control, ControlError> {
    loop {
        let patience = deadline.saturating_duration_since(Instant::now());
        match Control::open(connector, epoch, patience).await {
            Err(ControlError::Connect(ConnectError::TimedOut { .. })) if Instant::now() < deadline => {}
            opened => return opened,
        }
    }
}

/// Waits for something that only a living VMM can give.
async fn while_alive<T>(
    instance: &mut dyn Instance,
    logs: &std::path::Path,
    waited_for: impl Future<Output = T>,
) -> Result<T, Ending> {
    tokio::select! {
        biased;
        value = waited_for => Ok(value),
        status = instance.exited() => {
            // What it printed last is still on its way to the log.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let tail = ending::tails(logs);
            Err(status.map_or_else(Ending::Unrecorded, |status| Ending::VmmEnded { status, tail }))
        }
    }
}

fn random_hex<const N: usize>() -> Result<String, Ending> {
    let mut bytes = [0u8; N];
    let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    drawn.map_err(|errno| Ending::Unrecorded(errno.into()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::{
        super::played::{Played, asked, at_rest, within_a_minute},
        *,
    };
    use casemate_proto::port;

    #[test]
    fn a_server_is_followed_later_in_the_life_in_which_it_began() {
        within_a_minute(async {
            let played = Played::new();
            let control = played.listen(port::CONTROL);
            follow_later(&played.shared);
            let (_, watch) = asked(&control).await;
            assert!(matches!(watch.request, Request::Watch));
        });
    }

    #[test]
    fn a_machine_that_sleeps_is_not_woken_to_be_followed_nor_followed_twice_after_it_woke() {
        within_a_minute(async {
            let mut played = Played::new();
            let control = played.listen(port::CONTROL);
            follow_later(&played.shared);
            played.shared.link.take();
            // Its own pause has begun before the same one here, and so ends before.
            at_rest().await;
            tokio::time::sleep(FOLLOW_AFTER).await;
            at_rest().await;
            assert!(played.wished.try_recv().is_err(), "it was woken");

            *played.shared.link.borrow_mut() = Some(played.link("two"));
            let resumed = async {
                while Rc::weak_count(&played.shared) > 0 {
                    tokio::time::sleep(FOLLOW_AFTER).await;
                }
            };
            tokio::select! {
                biased;
                _ = control.accept() => panic!("it was followed twice"),
                () = resumed => {}
            }
        });
    }
}
