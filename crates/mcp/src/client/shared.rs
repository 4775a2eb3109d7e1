//! What the handles and the two tasks of a conversation share: who waits for what.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{Answer, CloseReason, Event, Observer, RequestError};
use crate::envelope::{Envelope, Message};
use crate::framing::{Incoming, Rejected};
use crate::multiplex::{self, Delivery, FromServer, Limits, Multiplexer, ToServer};

/// What a conversation dropped and refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Lines that are no JSON object.
    pub garbage_lines: u64,
    /// JSON objects that are no valid message.
    pub invalid_messages: u64,
    /// Replies and cancellations that were not sent because the server does not read.
    pub dropped_replies: u64,
    /// Progress reports and notifications of subscriptions that were dropped because nobody took them.
    pub dropped_progress: u64,
    /// What the multiplexer dropped and refused.
    pub routing: multiplex::Counters,
}

impl Counters {
    /// Answers that went to nobody: late ones, second ones, and those that nobody asked for.
    pub fn dropped_answers(&self) -> u64 {
        self.routing.late_answers + self.routing.stray_answers
    }
}

/// One request of this side. Each is an owner of its own to the multiplexer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Call(u64);

/// A request that waits for its answer.
pub(super) struct Opened {
    pub call: Call,
    pub text: String,
    pub answer: oneshot::Receiver<Result<Answer, RequestError>>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    over: watch::Sender<Option<CloseReason>>,
    input_broke: Notify,
    observer: Observer,
    replies: mpsc::Sender<String>,
}

struct State {
    multiplexer: Multiplexer<Call>,
    waiting: HashMap<Call, Waiting>,
    next_call: u64,
    counters: Counters,
    /// Set once nothing can be sent any more; answers may still come.
    input_closed: Option<CloseReason>,
}

struct Waiting {
    method: String,
    wire: u64,
    /// Whether the writer has begun to write it.
    sent: bool,
    answer: oneshot::Sender<Result<Answer, RequestError>>,
    progress: Option<mpsc::Sender<Box<RawValue>>>,
}

impl Shared {
    pub fn new(open_requests: usize, observer: Observer, replies: mpsc::Sender<String>) -> Self {
        // Each request is an owner of its own.
        let limits = Limits { open: open_requests, open_per_owner: 1 };
        let state = State {
            multiplexer: Multiplexer::new(limits),
            waiting: HashMap::new(),
            next_call: 0,
            counters: Counters::default(),
            input_closed: None,
        };
        let (over, _) = watch::channel(None);
        Self { state: Mutex::new(state), over, input_broke: Notify::new(), observer, replies }
    }

    pub fn counters(&self) -> Counters {
        let state = self.lock();
        Counters { routing: state.multiplexer.counters(), ..state.counters }
    }

    /// Registers a request before it is queued.
    pub fn open(
        &self,
        method: &str,
        message: &Message,
        progress: Option<mpsc::Sender<Box<RawValue>>>,
    ) -> Result<Opened, RequestError> {
        let state = &mut *self.lock();
        if let Some(reason) = &state.input_closed {
            return Err(closed(method, false, reason));
        }
        let call = Call(state.next_call);
        let refused = |reason| RequestError::Refused { method: method.to_owned(), reason };
        let ToServer::Request { wire, text } = state.multiplexer.send(call, message).map_err(refused)? else {
            unreachable!("the multiplexer sends or refuses a request");
        };
        state.next_call += 1;
        let (sender, answer) = oneshot::channel();
        let waiting = Waiting { method: method.to_owned(), wire, sent: false, answer: sender, progress };
        state.waiting.insert(call, waiting);
        Ok(Opened { call, text, answer })
    }

    /// The writer is about to write a request; false if nobody waits for it any more.
    pub fn begin(&self, call: Call) -> bool {
        match self.lock().waiting.get_mut(&call) {
            Some(waiting) => {
                waiting.sent = true;
                true
            }
            None => false,
        }
    }

    /// Nobody waits for the request any more. The server is told, if it saw it.
    pub fn abandon(&self, call: Call) {
        let mut state = self.lock();
        let Some(waiting) = state.waiting.remove(&call) else { return };
        let cancellation = state.multiplexer.abandon(waiting.wire);
        drop(state);
        if let Some(cancellation) = cancellation.filter(|_| waiting.sent) {
            self.reply(cancellation);
        }
    }

    /// Takes one line of the server.
    pub fn receive(&self, incoming: Incoming) {
        match incoming {
            Incoming::Rejected(line) => self.reject(&line),
            Incoming::Message(message) => self.route(message),
        }
    }

    /// Nothing can be sent any more. What was not sent fails, and so does `unfinished`, of which a part was;
    /// the rest may still be answered.
    pub fn close_input(&self, reason: CloseReason, unfinished: Option<Call>) {
        let mut state = self.lock();
        let broke = matches!(reason, CloseReason::WriteFailed(_));
        let unsent = state.waiting.iter().filter(|(_, waiting)| !waiting.sent).map(|(call, _)| *call);
        let unsent: Vec<_> = unsent.chain(unfinished).collect();
        for call in unsent {
            if let Some(waiting) = state.waiting.remove(&call) {
                state.multiplexer.abandon(waiting.wire);
                waiting.fail(&reason);
            }
        }
        state.input_closed.get_or_insert(reason);
        drop(state);
        if broke {
            self.input_broke.notify_one();
        }
    }

    /// The conversation is over. Everything that waits fails at once.
    pub fn close(&self, reason: CloseReason) {
        let waiting = {
            let mut state = self.lock();
            state.input_closed.get_or_insert_with(|| reason.clone());
            std::mem::take(&mut state.waiting)
        };
        let mut first = reason.clone();
        self.over.send_if_modified(|over| match over {
            Some(earlier) => {
                first = earlier.clone();
                false
            }
            None => {
                *over = Some(reason);
                true
            }
        });
        for waiting in waiting.into_values() {
            waiting.fail(&first);
        }
    }

    pub async fn closed(&self) -> CloseReason {
        let mut over = self.over.subscribe();
        let reason = over.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        // The sender is in `self`, so there is a reason.
        reason.unwrap_or(CloseReason::Closed)
    }

    /// Waits until writing to the server has failed, and gives why.
    pub async fn input_broke(&self) -> CloseReason {
        self.input_broke.notified().await;
        self.lock().input_closed.clone().unwrap_or(CloseReason::Closed)
    }

    pub fn check_open(&self, method: &str) -> Result<(), RequestError> {
        match &self.lock().input_closed {
            Some(reason) => Err(closed(method, false, reason)),
            None => Ok(()),
        }
    }

    /// The error of a request that could not be queued.
    pub fn over(&self, method: &str) -> RequestError {
        let reason = self.lock().input_closed.clone().unwrap_or(CloseReason::Closed);
        closed(method, false, &reason)
    }

    fn route(&self, message: Message) {
        let method = match message.envelope() {
            Envelope::Request { method, .. } if method != "ping" => Some(method.to_owned()),
            _ => None,
        };
        let mut state = self.lock();
        let routed = state.multiplexer.receive(message);
        match routed {
            FromServer::Answer(delivery) => {
                let waiting = state.waiting.remove(&delivery.owner);
                drop(state);
                if let (Some(waiting), Some(answer)) = (waiting, answer(&delivery.message)) {
                    // The request may have been dropped at this moment.
                    let _ = waiting.answer.send(Ok(answer));
                }
            }
            FromServer::Notice(delivery) => {
                let progress =
                    state.waiting.get(&delivery.owner).and_then(|waiting| waiting.progress.clone());
                drop(state);
                if !progress.is_some_and(|progress| report(&progress, &delivery)) {
                    self.lock().counters.dropped_progress += 1;
                }
            }
            FromServer::Ended(delivery) => {
                let waiting = state.waiting.remove(&delivery.owner);
                drop(state);
                if let Some(Waiting { method, answer, .. }) = waiting {
                    // The request may have been dropped at this moment.
                    let _ = answer.send(Err(RequestError::Ended { method }));
                }
            }
            FromServer::Shared(message) => {
                drop(state);
                (self.observer)(Event::Notification(&message));
            }
            FromServer::Reply(text) => {
                drop(state);
                if let Some(method) = &method {
                    (self.observer)(Event::RefusedRequest { method });
                }
                self.reply(text);
            }
            FromServer::Dropped => {}
        }
    }

    fn reject(&self, line: &Rejected) {
        {
            let counters = &mut self.lock().counters;
            if line.reason.is_garbage() {
                counters.garbage_lines += 1;
            } else {
                counters.invalid_messages += 1;
            }
        }
        (self.observer)(Event::Rejected(line));
    }

    fn reply(&self, text: String) {
        if self.replies.try_send(text).is_err() {
            self.lock().counters.dropped_replies += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn fail(self, reason: &CloseReason) {
        // The request may have been dropped at this moment.
        let _ = self.answer.send(Err(closed(&self.method, self.sent, reason)));
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("over", &*self.over.borrow()).finish_non_exhaustive()
    }
}

fn closed(method: &str, delivered: bool, reason: &CloseReason) -> RequestError {
    RequestError::Closed { method: method.to_owned(), delivered, reason: reason.clone() }
}

fn answer(message: &Message) -> Option<Answer> {
    match message.envelope() {
        Envelope::Response { result, .. } => raw(result).map(Answer::Result),
        Envelope::Error { error, .. } => raw(error).map(Answer::Error),
        Envelope::Request { .. } | Envelope::Notification { .. } => None,
    }
}

/// Hands a progress report over; false if it could not be.
fn report(progress: &mpsc::Sender<Box<RawValue>>, delivery: &Delivery<Call>) -> bool {
    let Ok(message) = Message::parse(delivery.text()) else { return false };
    match message.envelope() {
        Envelope::Notification { params: Some(params), .. } => {
            raw(params).is_some_and(|params| progress.try_send(params).is_ok())
        }
        _ => false,
    }
}

fn raw(json: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(json.to_owned()).ok()
}
