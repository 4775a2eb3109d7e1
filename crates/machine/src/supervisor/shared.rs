//! What the tasks of a supervisor share: the record, and the ways to the machine.

use super::{carrier::Carrier, http::Http};
use crate::{
    backend::{BackendError, Capabilities},
    control::{Control, ControlError},
    home::Home,
    record::Record,
    secret::{Kept, Redacted},
};
use casemate_link::Connector;
use casemate_proto::{
    control::{Exit, Request},
    limits::STDERR_TAIL_BYTES,
    port,
};
use serde::de::DeserializeOwned;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

/// How long the agent may take to tell how a server ended, once its conversation has.
pub(super) const EXIT_NEWS: Duration = Duration::from_secs(1);

/// How much of a line that is no message is logged.
const GARBAGE_BYTES: usize = 1000;

/// Keeps `machine.json` in step with what is known.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) home: Home,
    /// What the server is given, and what is to be written nowhere.
    pub(super) kept: Kept,
    record: RefCell<Record>,
}

impl Recorder {
    pub(super) fn new(home: Home, record: Record, kept: Kept) -> Self {
        Self { home, kept, record: RefCell::new(record) }
    }

    /// A copy of the record.
    pub(super) fn get(&self) -> Record {
        self.record.borrow().clone()
    }

    /// Changes the record and writes it down. A record that cannot be written (a full disk) does not end
    /// the machine: whoever reads it asks the supervisor, or takes the lock for the truth.
    pub(super) fn update(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.borrow_mut();
        change(&mut record);
        record.reason = record.reason.take().map(|reason| self.kept.redactor.text(&reason));
        let _ = record.save(&self.home);
    }
}

/// Wishes that only the owner of the instance can fulfil.
#[derive(Debug)]
pub(super) enum Wish {
    Stop {
        reason: String,
    },
    Pause(oneshot::Sender<Result<(), BackendError>>),
    Resume(oneshot::Sender<Result<(), BackendError>>),
    CutLink(oneshot::Sender<()>),
    /// Goes on, should the machine be suspended.
    Wake(oneshot::Sender<Result<(), ControlError>>),
    Kill,
}

/// The way to a machine's agent, for one of the machine's lives.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) connector: Connector,
    /// Named in the `hello` of every control stream.
    pub(super) epoch: String,
}

/// How much a machine is used.
#[derive(Debug)]
pub(super) struct Use {
    /// Requests and connections that are open.
    open: Cell<usize>,
    /// When the last of them ended.
    since: Cell<Instant>,
}

impl Default for Use {
    fn default() -> Self {
        Self { open: Cell::new(0), since: Cell::new(Instant::now()) }
    }
}

impl Use {
    /// Since when nothing has been open.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.open.get() == 0).then(|| self.since.get())
    }

    /// Something is open, from now on.
    pub(super) fn begin(&self) {
        self.open.set(self.open.get() + 1);
    }

    /// What was open was no use of the machine: it has been idle for as long as before.
    pub(super) fn end_unnoticed(&self) {
        self.open.set(self.open.get().saturating_sub(1));
    }

    /// It is not open any more.
    pub(super) fn end(&self) {
        self.open.set(self.open.get().saturating_sub(1));
        self.since.set(Instant::now());
    }
}

/// The machine is used until this is dropped.
pub(super) struct InUse(Rc<Shared>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.usage.end();
    }
}

/// Who speaks with the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: i32,
    pub(super) program: String,
}

/// A machine whose agent answers.
pub(super) struct Shared {
    pub(super) recorder: Rc<Recorder>,
    /// Nothing while the machine is suspended, or is about to be.
    pub(super) link: RefCell<Option<Link>>,
    pub(super) usage: Use,
    /// Whether it is suspended when it is idle.
    pub(super) may_be_suspended: bool,
    /// Its processors were stopped on demand.
    pub(super) paused: Cell<bool>,
    /// Carries the conversation, where the machine may be suspended under it.
    pub(super) carrier: RefCell<Option<Rc<Carrier>>>,
    /// Its server, where that is reached by HTTP.
    pub(super) http: Option<Http>,
    pub(super) capabilities: Capabilities,
    pub(super) wishes: mpsc::Sender<Wish>,
    /// The conversation, where the supervisor holds it.
    pub(super) conversation: RefCell<Option<casemate_mcp::Conversation>>,
    /// The client, where one is attached.
    pub(super) holder: RefCell<Option<Holder>>,
    /// Why a client's conversation was broken off, the last time that one was.
    pub(super) broken: watch::Sender<Option<String>>,
    /// How the server last ended.
    pub(super) server_exit: watch::Sender<Option<Exit>>,
    /// What the server prints, and what is to be said of it.
    pub(super) server_log: RefCell<Redacted>,
    /// Lines on a client's conversation that were no JSON objects.
    pub(super) garbage_lines: Cell<u64>,
}

impl Shared {
    /// Keeps the machine from being suspended.
    pub(super) fn in_use(self: &Rc<Self>) -> InUse {
        self.usage.begin();
        InUse(Rc::clone(self))
    }

    /// The way to the agent. A suspended machine goes on first; who asks keeps it [in use](Self::in_use).
    pub(super) async fn link(&self) -> Result<Link, ControlError> {
        loop {
            if let Some(link) = self.link.borrow().clone() {
                return Ok(link);
            }
            let (done, told) = oneshot::channel();
            let ending = || ControlError::Resume("machine is ending".to_owned());
            self.wishes.send(Wish::Wake(done)).await.map_err(|_| ending())?;
            told.await.map_err(|_| ending())??;
        }
    }

    /// The stream that a conversation is held over: one that outlives the VMM, where the machine may be
    /// suspended.
    pub(super) async fn converse(&self) -> Result<Talk, ControlError> {
        let stream = self.link().await?.connector.connect(port::CONVERSATION).await?;
        if !self.may_be_suspended {
            return Ok(Box::new(stream));
        }
        let (carrier, near) = Carrier::begin(stream);
        *self.carrier.borrow_mut() = Some(Rc::new(carrier));
        Ok(Box::new(near))
    }

    /// How the server ended, once the agent has told; it may take a moment after its conversation ended.
    pub(super) async fn exit_news(&self) -> Option<Exit> {
        let mut news = self.server_exit.subscribe();
        let told = tokio::time::timeout(EXIT_NEWS, news.wait_for(Option::is_some)).await;
        told.ok()?.ok()?.clone()
    }

    /// Writes a line that the server printed on stdout, and that is no message, to its log.
    pub(super) fn note_garbage(&self, line: &[u8]) {
        self.garbage_lines.set(self.garbage_lines.get() + 1);
        // Whoever gives a part of a line has cut it, too.
        let line = self.recorder.kept.redactor.beginning(&line[..line.len().min(GARBAGE_BYTES)]);
        self.note(&format!("not a message on stdout: {line}"));
    }

    /// Writes a line of casemate's own to the server's log.
    pub(super) fn note(&self, line: &str) {
        self.server_log.borrow_mut().line(&format!("[casemate] {line}"));
    }

    /// The agent tells how the server ended.
    pub(super) fn server_ended(&self, mut exit: Exit) {
        self.server_log.borrow_mut().flush();
        let is_whole = exit.stderr_tail.len() < STDERR_TAIL_BYTES;
        exit.stderr_tail = self.recorder.kept.redactor.end(&exit.stderr_tail, is_whole);
        self.server_exit.send_replace(Some(exit));
    }

    /// A text without secrets.
    pub(super) fn clean(&self, text: &str) -> String {
        self.recorder.kept.redactor.text(text)
    }

    /// Asks the agent something on a stream of its own.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: &'static str,
        request: Request,
        patience: Duration,
    ) -> Result<T, ControlError> {
        let link = self.link().await?;
        let mut control = Control::open(&link.connector, &link.epoch, patience).await?;
        control.request(method, request, patience).await
    }
}

/// A stream to the server's stdin and stdout.
pub(super) type Talk = Box<dyn Duplex>;

/// Reads and writes.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
