//! One client's conversation with one server, which runs in a machine of its own.
//!
//! ```text
//! POST ──ask, tell──> outbox ──> server
//!   ^                              │
//!   └── its stream ──┐             v
//! GET <── own stream ┴─ Streams <─ deliver
//! ```
//!
//! Nothing is rewritten: the session has the server to itself, so ids and tokens are the client's own, and two
//! clients with the same ids speak with two servers. Where a message of the server goes is decided here
//! ([`State::place`]); the task that owns the machine is [`drive`](drive::drive).
//!
//! A session is over once, for one reason ([`Over`]); what is open then is answered with it.

mod body;
mod drive;
mod over;
mod pending;
mod streams;

pub use body::{EventBody, read_event_id};
pub use drive::drive;
pub use over::Over;
pub use pending::{First, Pending};
pub use streams::{AttachError, OWN, StreamId};

use crate::{limits::Limits, refusal::Refusal, respond};
use casemate_mcp::{
    Envelope, Id, Message,
    multiplex::{Refused, places},
};
use hyper::body::Bytes;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    task::Waker,
};
use streams::{Read, Streams, Ticket};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, mpsc},
    time::{Instant, timeout},
};

/// The first revision in which a stream begins with an event that has a name and no data.
const PRIMED: &str = "2025-11-25";

/// A session, as those who answer requests hold it.
pub struct Session {
    server: String,
    limits: Rc<Limits>,
    state: RefCell<State>,
    outbox: mpsc::Sender<Outgoing>,
    /// Told when `state.over` is set.
    ended: Notify,
    /// Told when a reader took something.
    room: Notify,
    initialized: Cell<bool>,
    primed: Cell<bool>,
    last_used: Cell<Instant>,
    watching: Cell<usize>,
}

struct State {
    streams: Streams,
    open: HashMap<Id, Open>,
    over: Option<Over>,
    /// What the server sent and nobody gets: answers to nothing, lines that are no messages.
    dropped: u64,
}

/// A request that the server has not answered.
struct Open {
    stream: StreamId,
    /// The id as the client wrote it.
    raw_id: Box<str>,
    token: Option<Id>,
    /// The client takes a stream, so that more than the answer can be sent on it.
    takes_stream: bool,
    /// It was written to the server.
    delivered: bool,
}

/// A message for the server.
pub struct Outgoing {
    text: String,
    /// The request that it is.
    request: Option<Id>,
    /// Its part of what may be held for all sessions.
    _room: Option<OwnedSemaphorePermit>,
}

/// Where a message of the server goes.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// The answer of that request.
    Answer(Id),
    /// That stream.
    Stream(StreamId),
    /// Nowhere.
    Nowhere,
}

impl Session {
    /// A session whose server is not started yet, and what is to be written to it.
    pub fn new(server: String, limits: Rc<Limits>) -> (Rc<Self>, mpsc::Receiver<Outgoing>) {
        let (outbox, outgoing) = mpsc::channel(limits.outbox);
        let streams = Streams::new(limits.kept_bytes, limits.kept_streams);
        let session = Self {
            server,
            limits,
            state: RefCell::new(State { streams, open: HashMap::new(), over: None, dropped: 0 }),
            outbox,
            ended: Notify::new(),
            room: Notify::new(),
            initialized: Cell::new(false),
            primed: Cell::new(false),
            last_used: Cell::new(Instant::now()),
            watching: Cell::new(0),
        };
        (Rc::new(session), outgoing)
    }

    /// The name of its server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether clients can name it: `initialize` was answered and it is not over.
    pub fn is_usable(&self) -> bool {
        self.initialized.get() && self.state.borrow().over.is_none()
    }

    /// `initialize` was answered with that revision.
    pub fn initialized(&self, revision: &str) {
        self.primed.set(revision >= PRIMED);
        self.initialized.set(true);
    }

    /// How many requests the server has not answered.
    pub fn open_requests(&self) -> usize {
        self.state.borrow().open.len()
    }

    /// Takes a request; its answer comes on a stream of its own. Nothing is sent yet.
    pub fn register(self: &Rc<Self>, message: &Message, takes_stream: bool) -> Result<Pending, Refusal> {
        let Envelope::Request { id, method, params } = message.envelope() else {
            return Err(Refusal::Invalid(casemate_mcp::envelope::Invalid::Shape));
        };
        if method.starts_with("notifications/") {
            return Err(Refused::NotificationWithId.into());
        }
        let token = places::progress_token_of_request(params)?.and_then(Id::parse);
        let mut state = self.state.borrow_mut();
        if state.over.is_some() {
            return Err(Refusal::UnknownSession);
        }
        if state.open.contains_key(id) {
            return Err(Refused::DuplicateId.into());
        }
        if state.open.len() >= self.limits.open_requests {
            return Err(Refused::TooManyOpen.into());
        }
        let (stream, ticket) = state.streams.open();
        let raw_id = message.raw_id().unwrap_or("null").into();
        state.open.insert(id.clone(), Open { stream, raw_id, token, takes_stream, delivered: false });
        Ok(Pending::new(Rc::clone(self), stream, ticket))
    }

    /// Sends a message to the server, as it was written. `room` is held until then. Cancelling sends nothing.
    pub async fn send(&self, message: Message, room: Option<OwnedSemaphorePermit>) -> Result<(), Refusal> {
        self.touch();
        let request = match message.envelope() {
            Envelope::Request { id, .. } => Some(id.clone()),
            _ => None,
        };
        let cancelled = cancelled(&message)?;
        let outgoing = Outgoing { text: message.into_text(), request: request.clone(), _room: room };
        let sent = timeout(self.limits.outbox_time, self.outbox.send(outgoing)).await;
        let refusal = match sent {
            Ok(Ok(())) => {
                // Its answer, should one come, is dropped; who waits for it is told at once.
                cancelled.into_iter().for_each(|id| self.fail(&id, "the request was cancelled", None));
                return Ok(());
            }
            Ok(Err(_)) => Refusal::UnknownSession,
            Err(_) => Refusal::Stalled,
        };
        request.into_iter().for_each(|id| self.take_back(&id));
        Err(refusal)
    }

    /// Lets a client read the session's own stream, or go on reading one after an event.
    pub fn attach(self: &Rc<Self>, stream: StreamId, after: Option<u64>) -> Result<EventBody, AttachError> {
        self.touch();
        let ticket = self.state.borrow_mut().streams.attach(stream, after)?;
        let primer = (after.is_none() && self.primed.get()).then(|| self.state.borrow().streams.seen(stream));
        let watching = (stream != OWN).then(|| self.watch());
        Ok(EventBody::new(Rc::clone(self), (stream, ticket), primer, watching))
    }

    /// Takes a message of the server.
    pub fn deliver(&self, message: Message) {
        let mut state = self.state.borrow_mut();
        match state.place(&message) {
            Place::Answer(id) => {
                let Some(open) = state.open.remove(&id) else { return };
                state.streams.push(open.stream, Bytes::from(message.into_text()));
                state.streams.end(open.stream);
            }
            Place::Stream(stream) => {
                state.streams.push(stream, Bytes::from(message.into_text()));
                if state.streams.is_read(stream) {
                    self.touch();
                }
            }
            Place::Nowhere => state.dropped += 1,
        }
    }

    /// Ends the session: those that wait for answers are told why, all streams end. The first reason counts.
    pub fn finish(&self, over: Over) {
        let mut state = self.state.borrow_mut();
        if state.over.is_some() {
            return;
        }
        let sentence = over.sentence();
        for (_, open) in std::mem::take(&mut state.open) {
            let may_have_run = if open.delivered {
                "; the request may have been executed"
            } else {
                "; the request was not delivered"
            };
            let message = format!("{sentence}{may_have_run}");
            let error = respond::error(&open.raw_id, crate::refusal::SERVER_ERROR, &message, over.data());
            state.streams.push(open.stream, error.into());
            state.streams.end(open.stream);
        }
        state.streams.end(OWN);
        state.over = Some(over);
        self.ended.notify_waiters();
        self.ended.notify_one();
    }

    /// Why the session is over, if it is.
    pub fn over(&self) -> Option<Over> {
        self.state.borrow().over.clone()
    }

    /// Answers a request in the server's place.
    fn fail(&self, id: &Id, message: &str, data: Option<serde_json::Value>) {
        let mut state = self.state.borrow_mut();
        let Some(open) = state.open.remove(id) else { return };
        let error = respond::error(&open.raw_id, crate::refusal::SERVER_ERROR, message, data);
        state.streams.push(open.stream, error.into());
        state.streams.end(open.stream);
    }

    /// Forgets a request that was not sent.
    fn take_back(&self, id: &Id) {
        self.state.borrow_mut().open.remove(id);
    }

    fn touch(&self) {
        self.last_used.set(Instant::now());
    }

    /// When the session ends if nothing happens. Somebody who waits for an answer is no idle client.
    fn idle_until(&self) -> Instant {
        let since = if self.watching.get() > 0 { Instant::now() } else { self.last_used.get() };
        since + self.limits.session_idle
    }

    fn watch(self: &Rc<Self>) -> Watching {
        self.watching.set(self.watching.get() + 1);
        Watching(Rc::clone(self))
    }

    fn read(&self, stream: StreamId, ticket: Ticket, waker: &Waker) -> Read {
        let read = self.state.borrow_mut().streams.read(stream, ticket, waker);
        self.room.notify_one();
        read
    }

    fn detach(&self, stream: StreamId, ticket: Ticket) {
        self.state.borrow_mut().streams.detach(stream, ticket);
        self.room.notify_one();
    }
}

impl State {
    /// Where a message of the server goes. What belongs to an open request goes to its stream. MCP's legacy
    /// revisions do not say to which request one of the server's own belongs: with a single request open it is
    /// that one; else the session's own stream takes it, or where nobody reads that, the latest request's.
    fn place(&self, message: &Message) -> Place {
        match message.envelope() {
            Envelope::Response { id, .. } | Envelope::Error { id: Some(id), .. } => {
                if self.open.contains_key(id) { Place::Answer(id.clone()) } else { Place::Nowhere }
            }
            Envelope::Error { id: None, .. } => Place::Nowhere,
            Envelope::Notification { method: "notifications/progress", params } => {
                let token = places::token_of_progress(params).ok().flatten().and_then(Id::parse);
                let owner = self.open.values().find(|open| open.takes_stream && open.token == token);
                Place::Stream(owner.filter(|_| token.is_some()).map_or(OWN, |open| open.stream))
            }
            Envelope::Request { .. } => {
                let only = if self.open.len() == 1 { self.latest() } else { None };
                let own = || self.streams.is_read(OWN).then_some(OWN);
                Place::Stream(only.or_else(own).or_else(|| self.latest()).unwrap_or(OWN))
            }
            Envelope::Notification { .. } => {
                let only = if self.open.len() == 1 { self.latest() } else { None };
                let own = self.streams.is_read(OWN).then_some(OWN);
                Place::Stream(own.or(only).unwrap_or(OWN))
            }
        }
    }

    /// The stream of the latest request whose client reads it.
    fn latest(&self) -> Option<StreamId> {
        let takes = |open: &&Open| open.takes_stream && self.streams.is_read(open.stream);
        self.open.values().filter(takes).map(|open| open.stream).max()
    }
}

/// Somebody waits for an answer of the session until this is dropped.
pub struct Watching(Rc<Session>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watching.set(self.0.watching.get() - 1);
        self.0.touch();
    }
}

/// The request that a message cancels.
fn cancelled(message: &Message) -> Result<Option<Id>, Refusal> {
    match message.envelope() {
        Envelope::Notification { method: "notifications/cancelled", params } => {
            Ok(places::request_id_of_cancellation(params)?.and_then(Id::parse))
        }
        _ => Ok(None),
    }
}
