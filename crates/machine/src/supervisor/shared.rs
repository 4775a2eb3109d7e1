//! What the tasks of a supervisor share: the record, and the ways to the machine.

use crate::{
    backend::{BackendError, Capabilities},
    control::{Control, ControlError},
    home::Home,
    log::CappedLog,
    record::Record,
};
use casemate_link::Connector;
use casemate_proto::control::{Exit, Request};
use serde::de::DeserializeOwned;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// How long the agent may take to tell how a server ended, once its conversation has.
pub(super) const EXIT_NEWS: Duration = Duration::from_secs(1);

/// How much of a line that is no message is logged.
const GARBAGE_BYTES: usize = 1000;

/// Keeps `machine.json` in step with what is known.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) home: Home,
    record: RefCell<Record>,
}

impl Recorder {
    pub(super) fn new(home: Home, record: Record) -> Self {
        Self { home, record: RefCell::new(record) }
    }

    /// A copy of the record.
    pub(super) fn get(&self) -> Record {
        self.record.borrow().clone()
    }

    /// Changes the record and writes it down. A record that cannot be written (a full disk) does not end
    /// the machine: whoever reads it asks the supervisor, or takes the lock for the truth.
    pub(super) fn update(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record.borrow_mut());
        let _ = self.record.borrow().save(&self.home);
    }
}

/// Wishes that only the owner of the instance can fulfil.
#[derive(Debug)]
pub(super) enum Wish {
    Stop { reason: String },
    Pause(oneshot::Sender<Result<(), BackendError>>),
    Resume(oneshot::Sender<Result<(), BackendError>>),
    CutLink(oneshot::Sender<()>),
    Kill,
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
    pub(super) epoch: String,
    pub(super) connector: Connector,
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
    pub(super) server_log: RefCell<CappedLog>,
    /// Lines on a client's conversation that were no JSON objects.
    pub(super) garbage_lines: Cell<u64>,
}

impl Shared {
    /// How the server ended, once the agent has told; it may take a moment after its conversation ended.
    pub(super) async fn exit_news(&self) -> Option<Exit> {
        let mut news = self.server_exit.subscribe();
        let told = tokio::time::timeout(EXIT_NEWS, news.wait_for(Option::is_some)).await;
        told.ok()?.ok()?.clone()
    }

    /// Writes a line that the server printed on stdout, and that is no message, to its log.
    pub(super) fn note_garbage(&self, line: &[u8]) {
        self.garbage_lines.set(self.garbage_lines.get() + 1);
        let line = String::from_utf8_lossy(&line[..line.len().min(GARBAGE_BYTES)]).into_owned();
        self.note(&format!("not a message on stdout: {line}"));
    }

    /// Writes a line of casemate's own to the server's log.
    pub(super) fn note(&self, line: &str) {
        self.server_log.borrow_mut().write(format!("[casemate] {line}\n").as_bytes());
    }

    /// Asks the agent something on a stream of its own.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: &'static str,
        request: Request,
        patience: Duration,
    ) -> Result<T, ControlError> {
        let mut control = Control::open(&self.connector, &self.epoch, patience).await?;
        control.request(method, request, patience).await
    }
}
