//! How commands start machines and talk to their supervisors.

use crate::{
    home::Home,
    jsonl::{Jsonl, JsonlError},
    leash::{Built, Culprit, Order, Report},
    record::{Record, State},
    registry::{ClaimError, Registry},
    secret::Secrets,
    sock,
    spec::{Level, Origin, Spec},
    supervise::{self, Answer, Asked, FailureKind, Request},
    supervisor, sys,
    template::{Step, Templates},
};
use casemate_link::handshake::{self, HandshakeError};
use casemate_proto::{control::Exit, limits::STOP_TIMEOUT};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::FdFlags,
};
use serde_json::value::RawValue;
use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream as StdStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{net::UnixStream, time::timeout};

/// Variables of the environment that a supervisor has: where programs and authorities are, and how names are looked
/// up.
const INHERITED: [&str; 6] =
    ["PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "LOCALDOMAIN", "RES_OPTIONS"];

/// How long a supervisor may take to tell why a conversation ended.
const END_NEWS: Duration = Duration::from_secs(1);

/// How long a supervisor may take to end after it said that its machine has.
const SUPERVISOR_EXIT: Duration = Duration::from_secs(2);

/// Why a machine did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It could not be planned.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Its supervisor could not be started.
    #[error("cannot start a supervisor")]
    Spawn(#[source] io::Error),
    /// Its supervisor ended without a word.
    #[error("supervisor of machine {id} ended without a word")]
    SupervisorGone {
        /// The machine.
        id: String,
        /// Where its logs are.
        logs: PathBuf,
    },
    /// A machine became a template, or one that was to become a template did not.
    #[error("machine was started for another purpose")]
    Purpose,
    /// The machine or its server failed.
    #[error("{reason}")]
    Failed {
        /// `failed`, or `stopped` where it was told to end.
        state: State,
        /// Why.
        reason: String,
        /// What the user may do.
        hint: Option<String>,
        /// What failed.
        culprit: Culprit,
        /// Where its logs are.
        logs: PathBuf,
    },
}

/// Why a client's conversation with the server of a leased machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConversationEnd {
    /// The server did.
    ServerExited(Exit),
    /// The supervisor broke it off, for this reason.
    Broken(String),
    /// The machine is over, for this reason.
    MachineEnded(String),
}

/// A machine that lives as long as this value, or until it is let go.
#[derive(Debug)]
pub struct Leased {
    record: Record,
    dir: PathBuf,
    leash: Jsonl,
    supervisor: Child,
    server_exit: Option<Exit>,
}

/// Plans a machine, starts its supervisor and waits until it is ready; `progress` hears of its phases.
///
/// Cancelling ends the machine: its supervisor sees the connection end.
pub async fn launch(
    home: &Home,
    spec: &Spec,
    secrets: &Secrets,
    progress: impl FnMut(State),
) -> Result<Leased, LaunchError> {
    match start(home, spec, secrets, progress).await? {
        Started::Ready(leased) => Ok(*leased),
        Started::Built(_) => Err(LaunchError::Purpose),
    }
}

/// Starts a machine from a template that was obtained for its server. Where that fails it starts cold, unless the
/// host failed, or a server that was not in the template: both would fail again.
pub async fn launch_from(
    home: &Home,
    spec: &Spec,
    secrets: &Secrets,
    origin: Origin,
    mut progress: impl FnMut(Step),
) -> Result<Leased, LaunchError> {
    let spec = Spec { origin, ..spec.clone() };
    let mut booted = false;
    let launched = launch(home, &spec, secrets, |state| {
        booted |= state == State::Booted;
        progress(Step::Phase(state));
    });
    let (failure, culprit) = match launched.await {
        // One that was told to end is not to come back.
        Err(failure @ LaunchError::Failed { state: State::Failed, culprit, .. }) => (failure, culprit),
        launched => return launched,
    };
    let Origin::Template { key, level, .. } = &spec.origin else { return Err(failure) };
    let fails_again = culprit == Culprit::Host || culprit == Culprit::Server && *level == Level::Agent;
    if fails_again {
        return Err(failure);
    }
    if !booted {
        discard(home, key);
    }
    let what = if booted { "did not serve" } else { "could not be restored" };
    let reason = format!("template {key} {what}: {failure}");
    let cold = Spec { origin: Origin::Cold { reason }, ..spec.clone() };
    let launched = launch(home, &cold, secrets, |state| progress(Step::Phase(state))).await;
    // What fails as well without the template is itself to blame.
    if booted && launched.is_ok() {
        discard(home, key);
    }
    launched
}

/// Removes a template of no use. One that cannot be removed fails the next machine in the same way, which then
/// starts cold too.
fn discard(home: &Home, key: &str) {
    if let Ok(templates) = Templates::open(home)
        && let Ok(Some(_lock)) = templates.try_lock(key)
    {
        let _ = templates.discard(key);
    }
}

/// Makes a machine that becomes a template.
pub(crate) async fn build(
    home: &Home,
    spec: &Spec,
    progress: impl FnMut(State),
) -> Result<Built, LaunchError> {
    // A template is for every server, whoever keeps secrets from whom.
    match start(home, spec, &Secrets::default(), progress).await? {
        Started::Built(built) => Ok(built),
        Started::Ready(_) => Err(LaunchError::Purpose),
    }
}

/// What a machine was started for.
enum Started {
    Ready(Box<Leased>),
    Built(Built),
}

async fn start(
    home: &Home,
    spec: &Spec,
    secrets: &Secrets,
    mut progress: impl FnMut(State),
) -> Result<Started, LaunchError> {
    let claim = Registry::new(home).limited_to(spec.memory_limit_mb).claim(spec)?;
    let dir = home.machine(&claim.record.id);
    let (leash, theirs) = StdStream::pair().map_err(LaunchError::Spawn)?;
    let supervisor = spawn_supervisor(theirs.into(), claim.lock.into()).map_err(LaunchError::Spawn)?;
    let leash = leash.set_nonblocking(true).and_then(|()| UnixStream::from_std(leash));
    let leash = Jsonl::new(leash.map_err(LaunchError::Spawn)?, supervise::MESSAGE_BYTES);
    let mut leased = Leased { record: claim.record, dir, leash, supervisor, server_exit: None };

    let order = Order {
        home: home.path().to_owned(),
        spec: spec.clone(),
        record: leased.record.clone(),
        secrets: secrets.clone(),
    };
    // A supervisor that is gone already is seen by its silence.
    let _ = leased.leash.send(&order).await;
    loop {
        match leased.leash.receive().await {
            Ok(Some(Report::Phase { state })) => progress(state),
            Ok(Some(Report::Ready { record })) => {
                leased.record = *record;
                progress(State::Ready);
                return Ok(Started::Ready(Box::new(leased)));
            }
            Ok(Some(Report::ServerExited { exit })) => leased.server_exit = Some(exit),
            // No client speaks with a machine that is not ready.
            Ok(Some(Report::ConversationBroken { .. })) => {}
            Ok(Some(Report::Ended { built: Some(built), .. })) => {
                leased.reap().await;
                return Ok(Started::Built(built));
            }
            Ok(Some(Report::Ended { state, reason, hint, culprit, .. })) => {
                let logs = leased.dir.join("logs");
                leased.reap().await;
                return Err(LaunchError::Failed { state, reason, hint, culprit, logs });
            }
            Ok(None) | Err(_) => {
                let (id, logs) = (leased.record.id.clone(), leased.dir.join("logs"));
                leased.reap().await;
                return Err(LaunchError::SupervisorGone { id, logs });
            }
        }
    }
}

fn spawn_supervisor(leash: OwnedFd, lock: OwnedFd) -> io::Result<Child> {
    // Not by its path, where another version may have been put meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::args_os().next().unwrap_or_else(|| "casemate".into()));
    command.arg(supervisor::SUBCOMMAND).arg(leash.as_raw_fd().to_string()).arg(lock.as_raw_fd().to_string());
    // What else stands in the environment is nobody's business there, least of all secrets.
    command
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| INHERITED.iter().any(|kept| name == kept)));
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sys::before_exec(&mut command, move || {
        // System calls only: the command that starts a supervisor may have threads.
        rustix::io::fcntl_setfd(&leash, FdFlags::empty())?;
        rustix::io::fcntl_setfd(&lock, FdFlags::empty())?;
        // The terminal's signals are for the command, which then decides.
        rustix::process::setsid()?;
        Ok(())
    });
    // Dropping the command closes this process's copies of both descriptors.
    command.spawn()
}

impl Leased {
    /// What was written down about the machine when it became ready.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Lets a detached machine go on without this process.
    pub fn let_go(self) -> Record {
        self.record
    }

    /// Connects to a port of the machine.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, SessionError> {
        connect(&self.dir, port).await
    }

    /// Opens a session with the machine's supervisor.
    pub async fn session(&self) -> Result<Session, SessionError> {
        Session::open_in(&self.dir).await
    }

    /// Why the conversation of a client ended, if the supervisor tells within a moment.
    pub async fn conversation_end(&mut self) -> Option<ConversationEnd> {
        if let Some(exit) = self.server_exit.take() {
            return Some(ConversationEnd::ServerExited(exit));
        }
        match timeout(END_NEWS, self.leash.receive::<Report>()).await {
            Ok(Ok(Some(Report::ServerExited { exit }))) => Some(ConversationEnd::ServerExited(exit)),
            Ok(Ok(Some(Report::ConversationBroken { reason }))) => Some(ConversationEnd::Broken(reason)),
            Ok(Ok(Some(Report::Ended { reason, .. }))) => Some(ConversationEnd::MachineEnded(reason)),
            Ok(Ok(None) | Err(_)) => {
                Some(ConversationEnd::MachineEnded("its supervisor was killed".to_owned()))
            }
            _ => None,
        }
    }

    /// Stops the machine and waits until nothing of it is left; says how it ended.
    pub async fn stop(mut self) -> (State, String) {
        let ended = timeout(STOP_TIMEOUT, async {
            let asked = async {
                let mut session = self.session().await?;
                session.ask(&Request::Stop { reason: "stopped by its owner".to_owned() }).await
            };
            // A machine that cannot be asked sees its lease end below.
            let _ = asked.await;
            loop {
                match self.leash.receive::<Report>().await {
                    Ok(Some(Report::Ended { state, reason, .. })) => return (state, reason),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => {
                        return (State::Failed, "supervisor ended without a word".to_owned());
                    }
                }
            }
        })
        .await;
        let ended = ended.unwrap_or_else(|_| (State::Failed, "machine did not stop in time".to_owned()));
        self.reap().await;
        ended
    }

    /// Waits for the supervisor's process to end; it ends soon after the leash does. One that hangs is killed,
    /// and the kernel ends its VMM with it.
    async fn reap(self) {
        let Self { leash, mut supervisor, .. } = self;
        drop(leash);
        let until = std::time::Instant::now() + SUPERVISOR_EXIT;
        while matches!(supervisor.try_wait(), Ok(None)) && std::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Not reaped yet: the process id is still its own. One that ended meanwhile only is reaped.
        if matches!(supervisor.try_wait(), Ok(None)) && supervisor.kill().is_ok() {
            let _ = supervisor.wait();
        }
    }
}

/// Why a supervisor did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection to its socket.
    #[error("cannot connect to the machine's supervisor")]
    Connect(#[source] io::Error),
    /// The port was refused, or the supervisor is no supervisor.
    #[error("cannot open port {port} of the machine")]
    Handshake {
        /// The port.
        port: u32,
        /// Why.
        #[source]
        source: HandshakeError,
    },
    /// The connection broke.
    #[error("lost the machine's supervisor")]
    Lost(#[from] JsonlError),
    /// The supervisor ended instead of answering.
    #[error("machine ended before it answered: {reason}")]
    Ended {
        /// What it wrote down as its last word.
        reason: String,
    },
    /// It could not be done.
    #[error("{message}")]
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// Operation and cause, in words.
        message: String,
        /// How the server ended, if that is why.
        exit: Option<Exit>,
    },
    /// The supervisor's answer belongs to another request.
    #[error("supervisor gave the wrong answer")]
    Answer,
}

/// A connection to a machine's supervisor; requests are answered in turn.
#[derive(Debug)]
pub struct Session {
    stream: Jsonl,
    dir: PathBuf,
}

/// What a server answered to an MCP request.
#[derive(Debug)]
pub enum McpAnswer {
    /// Its result, as it sent it.
    Result(Box<RawValue>),
    /// Its error, as it sent it.
    Error(Box<RawValue>),
}

/// Answer to [`Session::ping`].
#[derive(Debug, Clone, Copy)]
pub struct Health {
    /// How long the agent took.
    pub agent: Duration,
    /// How long the server took, where the supervisor speaks with it.
    pub server: Option<Duration>,
}

impl Session {
    /// Opens a session with the supervisor of a live machine.
    pub async fn open(home: &Home, record: &Record) -> Result<Self, SessionError> {
        Self::open_in(&home.machine(&record.id)).await
    }

    async fn open_in(dir: &std::path::Path) -> Result<Self, SessionError> {
        let stream = Jsonl::new(connect(dir, supervise::PORT).await?, supervise::MESSAGE_BYTES);
        Ok(Self { stream, dir: dir.to_owned() })
    }

    /// Asks anything. Dropping the future, and the session with it, cancels what was asked.
    pub async fn ask(&mut self, request: &Request) -> Result<Answer, SessionError> {
        let request = serde_json::value::to_raw_value(request).map_err(JsonlError::Syntax)?;
        let answer = match self.stream.send(&Asked { version: supervise::VERSION, request }).await {
            Ok(()) => self.stream.receive().await,
            Err(error) => Err(error),
        };
        match answer {
            // A supervisor that ended with the request unread resets the connection.
            Ok(None) | Err(JsonlError::Io(_)) => Err(SessionError::Ended { reason: self.last_word() }),
            Ok(Some(Answer::Failed { kind, message, exit })) => {
                Err(SessionError::Failed { kind, message, exit })
            }
            Ok(Some(answer)) => Ok(answer),
            Err(error) => Err(error.into()),
        }
    }

    /// Why the machine ended. Its supervisor writes that down before its connections end.
    fn last_word(&self) -> String {
        let record = Record::load_from(&self.dir).filter(|record| record.state.is_final());
        record.and_then(|record| record.reason).unwrap_or_else(|| "its supervisor was killed".to_owned())
    }

    /// An MCP request in the conversation that the supervisor holds.
    pub async fn mcp(
        &mut self,
        method: &str,
        params: Option<Box<RawValue>>,
        timeout: Duration,
    ) -> Result<McpAnswer, SessionError> {
        let timeout_ms = timeout.as_millis() as u64;
        match self.ask(&Request::Mcp { method: method.to_owned(), params, timeout_ms }).await? {
            Answer::Result { result } => Ok(McpAnswer::Result(result)),
            Answer::Error { error } => Ok(McpAnswer::Error(error)),
            _ => Err(SessionError::Answer),
        }
    }

    /// Does the machine answer, and how quickly?
    pub async fn ping(&mut self) -> Result<Health, SessionError> {
        match self.ask(&Request::Ping).await? {
            Answer::Pong { agent_us, server_us, .. } => Ok(Health {
                agent: Duration::from_micros(agent_us),
                server: server_us.map(Duration::from_micros),
            }),
            _ => Err(SessionError::Answer),
        }
    }
}

/// Connects to a port of a live machine.
pub async fn connect_to(home: &Home, record: &Record, port: u32) -> Result<UnixStream, SessionError> {
    connect(&home.machine(&record.id), port).await
}

async fn connect(dir: &std::path::Path, port: u32) -> Result<UnixStream, SessionError> {
    let mut stream = sock::connect(dir, supervise::SOCKET).await.map_err(SessionError::Connect)?;
    handshake::request(&mut stream, port).await.map_err(|source| SessionError::Handshake { port, source })?;
    Ok(stream)
}

/// Stops a live machine that somebody else started, and waits until nothing of it is left. `false`: it was
/// still there after some ten seconds.
pub async fn stop(home: &Home, record: &Record) -> Result<bool, SessionError> {
    let registry = Registry::new(home);
    // Held before it is told to end: a number that another process has later is not waited for.
    let process = record.supervisor_pid.and_then(pidfd);
    let asked = async {
        Session::open(home, record)
            .await?
            .ask(&Request::Stop { reason: "stopped on request".to_owned() })
            .await
    };
    let mut told = true;
    match asked.await {
        Err(error) if registry.is_over(&record.id) => drop(error),
        // A machine that is still starting has a socket and nobody who accepts: its supervisor's signal
        // handler is there from the first moment.
        Err(SessionError::Connect(_) | SessionError::Handshake { .. }) => told = false,
        // It ends for another reason, or its supervisor was killed and is not quite gone.
        Err(SessionError::Ended { .. }) | Ok(_) => {}
        Err(error) => return Err(error),
    }
    let over = timeout(STOP_TIMEOUT, async {
        while !registry.is_over(&record.id) {
            told = told || terminate(home, &record.id);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let over = over.await.is_ok();
    if let (true, Some(process)) = (over, process) {
        gone(process).await;
    }
    Ok(over)
}

fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid as i32)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK).ok()
}

/// Waits until a process is gone, which gave up its machine's lock a moment before. It does so by itself.
async fn gone(process: OwnedFd) {
    let lives = || {
        let mut polled = [PollFd::new(&process, PollFlags::IN)];
        matches!(poll(&mut polled, Some(&Timespec::default())), Ok(0))
    };
    let until = std::time::Instant::now() + SUPERVISOR_EXIT;
    while lives() && std::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Has a live machine's supervisor end; `false` if it has not written down yet which process it is.
fn terminate(home: &Home, id: &str) -> bool {
    let pid = Record::load(home, id).and_then(|record| record.supervisor_pid);
    let Some(pid) = pid.and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) else { return false };
    // Gone already: then it is over.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::BackendKind;
    use casemate_proto::ids::Cid;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_hangs_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let listener = sock::bind(dir.path(), supervise::SOCKET).unwrap();
        tokio::spawn(async move {
            let (mut asked, _) = listener.accept().await.unwrap();
            asked.write_all(b"OK 1\n").await.unwrap();
            // It reads what it is asked, and says nothing.
            let mut said = Vec::new();
            asked.read_to_end(&mut said).await.unwrap();
        });
        let spec = Spec::bare("m".parse().unwrap(), BackendKind::Qemu, PathBuf::new(), PathBuf::new());
        let (leash, _theirs) = UnixStream::pair().unwrap();
        let leased = Leased {
            record: Record::planned("abc".to_owned(), Cid(100), &spec),
            dir: dir.path().to_owned(),
            leash: Jsonl::new(leash, supervise::MESSAGE_BYTES),
            supervisor: Command::new("true").spawn().unwrap(),
            server_exit: None,
        };
        let began = tokio::time::Instant::now();
        let stopped = timeout(Duration::from_secs(3600), leased.stop()).await;
        assert_eq!(stopped.unwrap(), (State::Failed, "machine did not stop in time".to_owned()));
        assert!(began.elapsed() < STOP_TIMEOUT + SUPERVISOR_EXIT);
    }
}
