//! One client's conversation with one server, which runs in a machine of its own.
//!
//! ```text
//! POST ────send──────> outbox ──> server
//!   ^                              │
//!   └── its stream ──┐             v
//! GET <── own stream ┴─ Streams <─ deliver
//! ```
//!
//! Nothing is rewritten: the session has the server to itself, so ids and tokens are the client's own, and two
//! clients with the same ids speak with two servers. Where a message of the server goes is decided here
//! ([`State`]); the task that owns the machine is [`drive`](drive::drive).
//!
//! A session is over once, for one reason ([`Over`]); what is open then is answered with it.

mod body;
mod drive;
mod over;
mod pending;
mod state;
mod streams;

pub use body::{EventBody, read_event_id};
pub use drive::{Outbox, drive};
pub use over::Over;
pub use pending::{First, Pending};
pub use streams::{AttachError, OWN, StreamId};

use crate::{body::Room, limits::Limits, refusal::Refusal};
use casemate_mcp::{
    Envelope, Id, Message,
    multiplex::{Refused, places},
};
use hyper::body::Bytes;
use state::{Open, State};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    task::Waker,
};
use streams::{Read, Streams, Ticket};
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    time::{Instant, timeout},
};

/// The first revision in which a stream begins with an event that has a name and no data.
const PRIMED: &str = "2025-11-25";

/// The most answers to a server whose requests no client took; one that reads none of them waits for none.
const REPLIES: usize = 64;

/// A session, as those who answer requests hold it.
pub struct Session {
    server: String,
    limits: Rc<Limits>,
    state: RefCell<State>,
    outbox: mpsc::Sender<Outgoing>,
    replies: mpsc::Sender<Bytes>,
    /// What its requests may take that are not yet with the server.
    bodies: Arc<Semaphore>,
    /// Told when `state.over` is set.
    ended: Notify,
    /// Told when a reader took something.
    room: Notify,
    initialized: Cell<bool>,
    /// Its client has named it.
    named: Cell<bool>,
    primed: Cell<bool>,
    last_used: Cell<Instant>,
    watching: Cell<usize>,
}

/// A message for the server.
pub struct Outgoing {
    text: String,
    /// The request that it is.
    request: Option<Id>,
    /// Its part of what may be held.
    _room: Room,
}

impl Session {
    /// A session whose server is not started yet, and what is to be written to it.
    pub fn new(server: String, limits: Rc<Limits>) -> (Rc<Self>, Outbox) {
        let (outbox, messages) = mpsc::channel(limits.outbox);
        let (replies, unheard) = mpsc::channel(REPLIES);
        let streams = Streams::new(limits.kept_bytes, limits.kept_streams);
        let session = Self {
            server,
            state: RefCell::new(State::new(streams)),
            outbox,
            replies,
            bodies: Arc::new(Semaphore::new(limits.bodies_of_session().div_ceil(crate::body::UNIT))),
            ended: Notify::new(),
            room: Notify::new(),
            initialized: Cell::new(false),
            named: Cell::new(false),
            primed: Cell::new(false),
            last_used: Cell::new(Instant::now()),
            watching: Cell::new(0),
            limits,
        };
        (Rc::new(session), Outbox { messages, replies: unheard })
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

    /// What its requests may take that are not yet with the server; a permit is of [`body::UNIT`](crate::body::UNIT).
    pub fn bodies(&self) -> &Arc<Semaphore> {
        &self.bodies
    }

    /// Its client has named it, and so knows of it.
    pub fn named(&self) {
        self.named.set(true);
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
        state.may_open(id, self.limits.open_requests)?;
        let (stream, ticket) = state.streams.open();
        let raw_id = message.raw_id().unwrap_or("null").into();
        state.open.insert(id.clone(), Open { stream, raw_id, token, takes_stream, delivered: false });
        Ok(Pending::new(Rc::clone(self), id.clone(), (stream, ticket)))
    }

    /// Sends a message to the server, as it was written. `room` is held until then. Cancelling sends nothing.
    /// A request is sent by who waits for its answer ([`Pending::send`]).
    pub async fn send(&self, message: Message, room: Room) -> Result<(), Refusal> {
        self.touch();
        let request = match message.envelope() {
            Envelope::Request { id, .. } => Some(id.clone()),
            _ => None,
        };
        let cancelled = cancelled(&message)?;
        let outgoing = Outgoing { text: message.into_text(), request, _room: room };
        match timeout(self.limits.outbox_time, self.outbox.send(outgoing)).await {
            Ok(Ok(())) => {
                // Who waits for its answer is told at once.
                cancelled.into_iter().for_each(|id| self.change(|state| state.cancel(id)));
                Ok(())
            }
            Ok(Err(_)) => Err(Refusal::UnknownSession),
            Err(_) => Err(Refusal::Stalled),
        }
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
        let stream = self.change(|state| state.deliver(message));
        // What a server says by itself is no use of it, whoever listens.
        if stream.is_some_and(|stream| stream != OWN && self.state.borrow().streams.is_read(stream)) {
            self.touch();
        }
    }

    /// Ends the session: those that wait for answers are told why, all streams end. The first reason counts.
    pub fn finish(&self, over: Over) {
        if self.state.borrow().over.is_some() {
            return;
        }
        self.change(|state| state.finish(over));
        self.ended.notify_waiters();
        self.ended.notify_one();
    }

    /// Why the session is over, if it is.
    pub fn over(&self) -> Option<Over> {
        self.state.borrow().over.clone()
    }

    /// Changes what is known. A server whose request went unheard thereby is answered.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (changed, unheard) = {
            let mut state = self.state.borrow_mut();
            (change(&mut state), state.streams.unheard())
        };
        for reply in unheard {
            // One that does not read so many has other troubles.
            let _ = self.replies.try_send(reply);
        }
        changed
    }

    fn touch(&self) {
        self.last_used.set(Instant::now());
    }

    /// When the session ends if nothing happens. Somebody who waits for an answer is no idle client; one that
    /// never named the session may not have heard of it.
    fn idle_until(&self) -> Instant {
        let since = if self.watching.get() > 0 { Instant::now() } else { self.last_used.get() };
        let idle = self.limits.session_idle;
        since + if self.named.get() { idle } else { idle.min(self.limits.first_word) }
    }

    fn watch(self: &Rc<Self>) -> Watching {
        self.watching.set(self.watching.get() + 1);
        Watching(Rc::clone(self))
    }

    fn read(&self, stream: StreamId, ticket: Ticket, waker: &Waker) -> Read {
        let read = self.change(|state| state.streams.read(stream, ticket, waker));
        self.room.notify_one();
        read
    }

    fn detach(&self, stream: StreamId, ticket: Ticket) {
        self.change(|state| state.streams.detach(stream, ticket));
        self.room.notify_one();
    }

    fn forget(&self, stream: StreamId) {
        self.change(|state| state.streams.forget(stream));
        self.room.notify_one();
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
