//! One client's conversation: what it sent, what runs for it, what was asked of it.

use crate::call::Call;
use crate::lifecycle::{self, Admitted, Phase};
use crate::methods;
use crate::rpc::{self, Answer, ErrorKind, Id, Incoming, Message, NoId, Request, RpcError};
use crate::server::Server;
use crate::signal::{Signal, lock};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most requests that run at once in one conversation; more are refused.
const REQUESTS_AT_ONCE: usize = 64;

/// Where messages to the client go.
pub trait Outlet: Send + Sync {
    /// Sends a notification, or a request of the server's own.
    fn send(&self, message: Value);

    /// Sends the answer to the request that this outlet was given for; nothing follows it.
    fn answer(&self, answer: Answer);

    /// Says that no answer will come, because the request was cancelled.
    fn abandon(&self);
}

/// The answer to a question: a result, or the client's error object.
pub type Reply = Result<Value, Value>;

/// One client's conversation.
pub struct Conversation {
    /// The process that serves it.
    pub server: Arc<Server>,
    /// Where messages go that belong to no request.
    pub push: Arc<dyn Outlet>,
    state: Mutex<State>,
    quiet: Condvar,
}

struct State {
    phase: Phase,
    running: BTreeMap<Id, Arc<Signal<Reply>>>,
    questions: BTreeMap<Id, Arc<Signal<Reply>>>,
    asked: u64,
}

impl Conversation {
    /// A conversation that begins in `phase`.
    pub fn new(server: Arc<Server>, phase: Phase, push: Arc<dyn Outlet>) -> Arc<Self> {
        let state = State { phase, running: BTreeMap::new(), questions: BTreeMap::new(), asked: 0 };
        Arc::new(Self { server, push, state: Mutex::new(state), quiet: Condvar::new() })
    }

    /// Takes what [`rpc::parse`] gave. Quick requests are answered before this returns.
    pub fn take(self: &Arc<Self>, incoming: Result<Incoming, RpcError>, outlet: &Arc<dyn Outlet>) {
        match incoming {
            Ok(Incoming::One(message)) => self.message(message, outlet),
            Ok(Incoming::Batch(messages)) if self.has_batches() => self.batch(messages, outlet),
            Ok(Incoming::Batch(_)) => {
                let message = "only revision 2025-03-26 has batches";
                self.refuse(None, RpcError::new(ErrorKind::InvalidRequest, message), outlet);
            }
            Err(error) => self.refuse(None, error, outlet),
        }
    }

    /// Whether the handshake was done.
    pub fn is_initialised(&self) -> bool {
        matches!(lock(&self.state).phase, Phase::Handshaken(_))
    }

    /// Cancels a running request; it gets no answer. Does nothing if it does not run.
    pub fn cancel(&self, id: &Id) {
        if let Some(signal) = lock(&self.state).running.get(id) {
            signal.cancel();
        }
        self.server.end_cancelled_subscriptions();
    }

    /// Cancels everything that runs.
    pub fn cancel_all(&self) {
        for signal in lock(&self.state).running.values() {
            signal.cancel();
        }
        self.server.end_cancelled_subscriptions();
    }

    /// Waits until nothing runs, at most `patience`.
    pub fn drain(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.state);
        while !state.running.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.quiet.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Forgets a request that has ended; says whether it may still be answered.
    pub fn ended(&self, id: &Id) -> bool {
        let mut state = lock(&self.state);
        let signal = state.running.remove(id);
        self.quiet.notify_all();
        signal.is_some_and(|signal| !signal.is_cancelled())
    }

    /// Makes a question to the client; its answer will be delivered to `signal`.
    pub fn question(&self, signal: &Arc<Signal<Reply>>) -> Id {
        let mut state = lock(&self.state);
        state.asked += 1;
        let id = Id::Text(format!("probe-{}", state.asked));
        state.questions.insert(id.clone(), signal.clone());
        id
    }

    /// Stops waiting for the answer to a question; says whether it was still open.
    pub fn forget(&self, question: &Id) -> bool {
        lock(&self.state).questions.remove(question).is_some()
    }

    /// Whether several messages may come as one array.
    pub fn has_batches(&self) -> bool {
        matches!(&lock(&self.state).phase, Phase::Handshaken(terms) if terms.revision.has_batches())
    }

    fn message(self: &Arc<Self>, message: Message, outlet: &Arc<dyn Outlet>) {
        match message {
            Message::Request(request) => self.request(request, outlet),
            Message::Notification { method, params } => self.notification(&method, &params),
            Message::Response { id, outcome } => {
                let asked = id.and_then(|id| lock(&self.state).questions.remove(&id));
                if let Some(signal) = asked {
                    signal.deliver(outcome);
                }
            }
            Message::Invalid { id, error } => self.refuse(id.as_ref(), error, outlet),
        }
    }

    fn notification(&self, method: &str, params: &Map<String, Value>) {
        if method == "notifications/cancelled"
            && let Some(id) = params.get("requestId").and_then(Id::read)
        {
            self.cancel(&id);
        }
    }

    fn request(self: &Arc<Self>, request: Request, outlet: &Arc<dyn Outlet>) {
        self.server.count_request();
        let signal = Arc::new(Signal::default());
        let admitted = {
            let mut state = lock(&self.state);
            lifecycle::admit(&mut state.phase, &request).and_then(|admitted| {
                if state.running.contains_key(&request.id) {
                    let message = "a request with this id is still running";
                    return Err(RpcError::new(ErrorKind::InvalidRequest, message));
                }
                if state.running.len() >= REQUESTS_AT_ONCE {
                    let message = format!("more than {REQUESTS_AT_ONCE} requests at once");
                    return Err(RpcError::new(ErrorKind::Internal, message));
                }
                if matches!(admitted, Admitted::Call(_)) {
                    state.running.insert(request.id.clone(), signal.clone());
                }
                Ok(admitted)
            })
        };
        let outcome = match admitted {
            Ok(Admitted::Call(terms)) => {
                let call = Call::new(self, request.id, terms, &request.params, outlet, signal);
                return methods::dispatch(&Arc::new(call), &request.method, &request.params);
            }
            Ok(Admitted::Initialize(terms)) => Ok(methods::initialize(&terms)),
            Ok(Admitted::EarlyPing) => Ok(json!({})),
            Err(error) => Err(error),
        };
        outlet.answer(rpc::answer(Some(&request.id), NoId::Null, outcome));
    }

    fn refuse(&self, id: Option<&Id>, error: RpcError, outlet: &Arc<dyn Outlet>) {
        let modern = lock(&self.state).phase == Phase::Modern;
        let no_id = if modern { NoId::Omitted } else { NoId::Null };
        outlet.answer(rpc::answer(id, no_id, Err(error)));
    }

    fn batch(self: &Arc<Self>, messages: Vec<Message>, outlet: &Arc<dyn Outlet>) {
        let answers = messages
            .iter()
            .filter(|message| matches!(message, Message::Request(_) | Message::Invalid { .. }))
            .count();
        let batch: Arc<dyn Outlet> = Arc::new(Batch {
            outlet: outlet.clone(),
            state: Mutex::new(BatchState { missing: answers, answers: Vec::new() }),
        });
        for message in messages {
            match message {
                // A handshake must not be part of a batch (2025-03-26, lifecycle, initialization); here it
                // would be a second one anyway, and is refused as such.
                message @ (Message::Request(_) | Message::Invalid { .. }) => self.message(message, &batch),
                message => self.message(message, outlet),
            }
        }
    }
}

/// Collects the answers to a batch, and sends them as one array when the last has come.
struct Batch {
    outlet: Arc<dyn Outlet>,
    state: Mutex<BatchState>,
}

struct BatchState {
    missing: usize,
    answers: Vec<Value>,
}

impl Batch {
    fn arrived(&self, answer: Option<Value>) {
        let mut state = lock(&self.state);
        state.answers.extend(answer);
        state.missing -= 1;
        if state.missing > 0 {
            return;
        }
        let answers = std::mem::take(&mut state.answers);
        if answers.is_empty() {
            self.outlet.abandon();
        } else {
            self.outlet.answer(Answer { message: Value::Array(answers), error: None });
        }
    }
}

impl Outlet for Batch {
    fn send(&self, message: Value) {
        self.outlet.send(message);
    }

    fn answer(&self, answer: Answer) {
        self.arrived(Some(answer.message));
    }

    fn abandon(&self) {
        self.arrived(None);
    }
}
