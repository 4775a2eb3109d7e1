//! The server process: started, taken by a conversation, ended, started anew.
//!
//! ```text
//! Idle ──start──> waiting ──attach──> taken ──its end──> Exited
//!   └─────────────attach─────────────────┘                │
//!                        a new attach or start ───────────┘
//! ```
//!
//! One process at a time: whoever starts one holds the *turn*, and the end of a conversation keeps it until
//! the old process is dead with everything that it started.

use crate::failure;
use crate::group::Groups;
use crate::journal::{Entry, Journal, Tail};
use crate::launch::Launch;
use crate::reaper::{Reaper, lock};
use crate::spawn::Child;
use casemate_proto::control::{Event, Exit, Failure, FailureCode, ServerState, Started, Transport};
use casemate_proto::limits::STDERR_TAIL_BYTES;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, watch};
use tokio::time::timeout;

/// How long the rest of stderr may take once every writer was killed.
const STDERR_REST: Duration = Duration::from_secs(1);

/// What starts and ends servers.
#[derive(Debug)]
pub struct Server {
    launch: Mutex<Option<Arc<Launch>>>,
    groups: Mutex<Arc<Groups>>,
    reaper: Arc<Reaper>,
    journal: Arc<Journal>,
    turn: AsyncMutex<()>,
    status: Arc<Mutex<Status>>,
    starts: AtomicU64,
}

#[derive(Debug)]
enum Status {
    Idle,
    Running(Arc<Process>),
    Exited(Exit),
}

/// A server process that lives or has just ended.
#[derive(Debug)]
pub struct Process {
    /// Its process id.
    pub pid: i32,
    /// Set once it ended and everything that it started is dead.
    over: watch::Receiver<bool>,
    group: crate::group::Group,
    pipes: Mutex<Pipes>,
}

#[derive(Debug)]
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
}

/// The right to start or end the process; see [`Server::turn`].
pub type Turn<'a> = MutexGuard<'a, ()>;

impl Server {
    /// No server yet.
    pub fn new(groups: Arc<Groups>, reaper: Arc<Reaper>, journal: Arc<Journal>) -> Self {
        Self {
            launch: Mutex::new(None),
            groups: Mutex::new(groups),
            reaper,
            journal,
            turn: AsyncMutex::new(()),
            status: Arc::new(Mutex::new(Status::Idle)),
            starts: AtomicU64::new(0),
        }
    }

    /// What later starts will start. A process that runs stays as it is.
    pub fn configure(&self, launch: Launch, groups: Option<Arc<Groups>>) {
        *lock(&self.launch) = Some(Arc::new(launch));
        if let Some(groups) = groups {
            *lock(&self.groups) = groups;
        }
    }

    /// How programs are started in this machine.
    pub fn launch(&self) -> Result<Arc<Launch>, Failure> {
        lock(&self.launch)
            .clone()
            .ok_or_else(|| failure::new(FailureCode::State, "the machine is not configured yet"))
    }

    /// Starts a program beside the server.
    pub fn spawn_beside(&self, launch: &Launch) -> Result<Child, Failure> {
        let groups = lock(&self.groups).clone();
        launch.spawn(&groups, &self.reaper).map_err(|error| failure::from_spawn(&error))
    }

    /// How many were started.
    pub fn starts(&self) -> u64 {
        self.starts.load(Relaxed)
    }

    /// What the server does.
    pub fn state(&self) -> ServerState {
        match &*lock(&self.status) {
            Status::Idle if lock(&self.launch).is_none() => ServerState::Unconfigured,
            Status::Idle => ServerState::Idle,
            Status::Running(process) => ServerState::Running { pid: process.pid as u32 },
            Status::Exited(exit) => ServerState::Exited(exit.clone()),
        }
    }

    /// The process that runs, if one does.
    pub fn running(&self) -> Option<Arc<Process>> {
        match &*lock(&self.status) {
            Status::Running(process) => Some(process.clone()),
            _ => None,
        }
    }

    /// Waits until nobody else starts or ends a process. May be cancelled.
    pub async fn turn(&self) -> Turn<'_> {
        self.turn.lock().await
    }

    /// The process that runs, or a new one.
    pub fn ensure(&self, _turn: &Turn<'_>) -> Result<Arc<Process>, Failure> {
        if let Some(process) = self.running() {
            return Ok(process);
        }
        let launch = self.launch()?;
        let child = self.spawn_beside(&launch)?;
        self.starts.fetch_add(1, Relaxed);
        self.journal.push(Entry::Event(Event::Started(Started { pid: child.pid as u32 })));
        let (over_sender, over) = watch::channel(false);
        let Child { pid, stdin, stdout, stderr, status, group } = child;
        let mut pipes = Pipes { stdin: Some(stdin), stdout: Some(stdout) };
        let stdout = match launch.transport {
            Transport::Stdio => None,
            // Nobody else will read it, and it is no conversation: it is told like stderr.
            Transport::Http { .. } => pipes.stdout.take(),
        };
        let process = Arc::new(Process { pid, over, group, pipes: Mutex::new(pipes) });
        *lock(&self.status) = Status::Running(process.clone());

        let (journal, state, attended) = (self.journal.clone(), self.status.clone(), process.clone());
        tokio::spawn(async move {
            let tail = Mutex::new(Tail::default());
            let reading = async {
                let extra = async {
                    if let Some(stdout) = stdout {
                        follow(stdout, &journal, &tail).await;
                    }
                };
                tokio::join!(follow(stderr, &journal, &tail), extra);
            };
            tokio::pin!(reading);
            let ending = async {
                let ended = status.await.ok();
                attended.group.kill(true).await;
                ended
            };
            tokio::pin!(ending);
            let ended = tokio::select! {
                ended = &mut ending => {
                    // Only a writer that hangs inside the kernel keeps it open.
                    let _ = timeout(STDERR_REST, reading).await;
                    ended
                }
                () = &mut reading => ending.await,
            };
            let exit = Exit {
                code: ended.and_then(|status| status.exit_status()),
                signal: ended.and_then(|status| status.terminating_signal()),
                stderr_tail: lock(&tail).text(),
            };
            *lock(&state) = Status::Exited(exit.clone());
            journal.push(Entry::Event(Event::Exited(exit)));
            // The last to know are those who may start the next one. Nobody may be waiting.
            let _ = over_sender.send(true);
        });
        Ok(process)
    }

    /// Forgets the process that ended.
    pub fn forget(&self, _turn: &Turn<'_>) {
        *lock(&self.status) = Status::Idle;
        self.starts.store(0, Relaxed);
    }

    /// Ends the process that runs, if one does: its stdin is closed; after half of `grace` it is told to
    /// terminate; after `grace` it is killed with everything that it started. Returns when all are dead.
    pub async fn stop(&self, _turn: &Turn<'_>, grace: Duration) {
        let Some(process) = self.running() else { return };
        drop(process.take_stdin());
        let asked_first = match self.launch().map(|launch| launch.transport) {
            Ok(Transport::Http { .. }) => Duration::ZERO,
            _ => grace / 2,
        };
        if timeout(asked_first, process.over()).await.is_ok() {
            return;
        }
        // Fails if it ended this moment.
        let _ = process.signal(libc::SIGTERM);
        if timeout(grace - asked_first, process.over()).await.is_ok() {
            return;
        }
        process.group.kill(true).await;
        process.over().await;
    }
}

impl Process {
    /// Waits for its end and that of everything that it started. May be cancelled.
    pub async fn over(&self) {
        let mut over = self.over.clone();
        // An error says that the sender is gone, after which nothing of the process is left either.
        let _ = over.wait_for(|&over| over).await;
    }

    /// Its pipes, for the one conversation that it gets.
    pub fn take_pipes(&self) -> Option<(pipe::Sender, pipe::Receiver)> {
        let mut pipes = lock(&self.pipes);
        match (pipes.stdin.take(), pipes.stdout.take()) {
            (Some(stdin), Some(stdout)) => Some((stdin, stdout)),
            (stdin, stdout) => {
                *pipes = Pipes { stdin, stdout };
                None
            }
        }
    }

    /// Puts the pipes back for the conversation that goes on later. Without both it cannot.
    pub fn give_back(&self, stdin: Option<pipe::Sender>, stdout: pipe::Receiver) {
        *lock(&self.pipes) = Pipes { stdin, stdout: Some(stdout) };
    }

    /// Stops it with everything that it started, where it stands.
    pub async fn freeze(&self) -> std::io::Result<()> {
        self.group.freeze().await
    }

    /// Lets it go on.
    pub fn thaw(&self) -> std::io::Result<()> {
        self.group.thaw()
    }

    /// Processor time that it and everything that it started have used, where control groups count it.
    pub fn cpu(&self) -> std::io::Result<Duration> {
        self.group.cpu()
    }

    /// The ids of it and of everything that it started.
    pub fn members(&self) -> std::io::Result<Vec<i32>> {
        self.group.processes()
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: i32) -> std::io::Result<()> {
        self.group.signal(signal)
    }

    fn take_stdin(&self) -> Option<pipe::Sender> {
        lock(&self.pipes).stdin.take()
    }
}

async fn follow(mut pipe: pipe::Receiver, journal: &Journal, tail: &Mutex<Tail>) {
    let mut buffer = vec![0; 8 << 10];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        lock(tail).push(&buffer[..length], STDERR_TAIL_BYTES);
        journal.push(Entry::Stderr(buffer[..length].to_vec()));
    }
}
