//! Several owners share one conversation: who asked what, and whose is what the server says.
//!
//! ```text
//! owner A  id 1 ──┐                       ┌── wire id 41 ──> server
//! owner B  id 1 ──┴── Multiplexer::send ──┴── wire id 42 ──>
//!                     Multiplexer::receive <── id 42 ──  B's, as id 1
//! ```
//!
//! The state machine does no I/O. Its rules:
//!
//! * Ids and progress tokens become integers that are never used again; everything else in a message stays
//!   as it was written, byte for byte.
//! * An answer goes to the one that asked, once. Late answers to abandoned requests, repeated answers and
//!   answers to what nobody asked are dropped and counted.
//! * Progress, and the end and the notifications of a modern subscription, follow the request they belong
//!   to; where that is gone they go nowhere.
//! * A shared conversation announces no client capabilities: a request of the server's own is answered
//!   here, `ping` with `{}` and everything else with -32601, whoever listens.
//!
//! What is not decided here: which owner may call what, and who sees notifications that belong to nobody in
//! particular (`list_changed`, `resources/updated` of the legacy era, log messages).

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::ops::Range;

use crate::compose;
use crate::envelope::{Envelope, Id, Message};
use crate::object::{self, ObjectError};

pub mod places;

use places::{Belonging, By};

/// How many abandoned requests are remembered, to tell a late answer from a stray one.
const ABANDONED_REMEMBERED: usize = 1024;

/// Bounds on what one conversation holds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most open requests.
    pub open: usize,
    /// The most open requests of one owner.
    pub open_per_owner: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { open: 1024, open_per_owner: 256 }
    }
}

/// What was not delivered, and what was answered here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Answers to requests that their owner had abandoned.
    pub late_answers: u64,
    /// Answers to what nobody asked, and second answers.
    pub stray_answers: u64,
    /// Progress and subscription notifications that belong to no open request.
    pub stray_notifications: u64,
    /// Requests of the server that were refused.
    pub refused_requests: u64,
}

/// Why a message of an owner was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The conversation or the owner has its share of open requests.
    #[error("too many open requests")]
    TooManyOpen,
    /// The owner has an open request with this id.
    #[error("a request with this id is open")]
    DuplicateId,
    /// The request is called like a notification. A server that goes by the name would do what the owner
    /// may not ask for: its `requestId` is not its own.
    #[error("a notification has no id")]
    NotificationWithId,
    /// Readers would disagree about a key in `params` that is to be rewritten.
    #[error("key {name:?} in params is ambiguous")]
    Ambiguous {
        /// The key.
        name: &'static str,
    },
    /// `progressToken` or `requestId` is no string or integer.
    #[error("{name} is not a string or an integer")]
    NoId {
        /// The key.
        name: &'static str,
    },
}

impl Refused {
    /// The JSON-RPC error code that tells the owner.
    pub fn code(&self) -> i32 {
        match self {
            Self::TooManyOpen => -32000,
            Self::DuplicateId | Self::NotificationWithId => -32600,
            Self::Ambiguous { .. } | Self::NoId { .. } => -32602,
        }
    }
}

/// What becomes of a message of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToServer {
    /// Send this request.
    Request {
        /// What the request is called on the wire.
        wire: u64,
        /// The message.
        text: String,
    },
    /// Send this notification.
    Notification(String),
    /// Send nothing: it would mean nothing to the server, or is not this owner's to say.
    Nothing,
}

/// What becomes of a message of the server.
#[derive(Debug, Clone)]
pub enum FromServer<O> {
    /// The answer to a request, which is closed now.
    Answer(Delivery<O>),
    /// A notification that belongs to one owner.
    Notice(Delivery<O>),
    /// The cancellation with which the server ends a subscription, which is closed now.
    Ended(Delivery<O>),
    /// A notification that belongs to nobody in particular.
    Shared(Message),
    /// A request of the server: send it this answer.
    Reply(String),
    /// Nobody's; counted.
    Dropped,
}

/// A message of the server for one owner.
#[derive(Debug, Clone)]
pub struct Delivery<O> {
    /// Who gets it.
    pub owner: O,
    /// The message as the server wrote it, with wire ids.
    pub message: Message,
    edits: Vec<(Range<usize>, String)>,
}

impl<O> Delivery<O> {
    /// The message with the owner's own ids in place of the wire's.
    pub fn text(&self) -> String {
        let edits: Vec<_> = self.edits.iter().map(|(span, new)| (span.clone(), new.as_str())).collect();
        object::splice(self.message.text(), &edits)
    }
}

/// The state of one shared conversation. `O` names an owner and is never reused for another one.
#[derive(Debug)]
pub struct Multiplexer<O> {
    limits: Limits,
    next: u64,
    open: HashMap<u64, Open<O>>,
    owners: HashMap<O, HashMap<Id, u64>>,
    abandoned: BTreeSet<u64>,
    counters: Counters,
}

#[derive(Debug)]
struct Open<O> {
    owner: O,
    id: Id,
    raw_id: String,
    raw_token: Option<String>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Must not be cancelled, says the specification.
    Initialize,
    /// `subscriptions/listen`: notifications carry its id.
    Listen,
    Other,
}

impl<O: Copy + Eq + Hash> Multiplexer<O> {
    /// A conversation in which nothing was asked yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            next: 1,
            open: HashMap::new(),
            owners: HashMap::new(),
            abandoned: BTreeSet::new(),
            counters: Counters::default(),
        }
    }

    /// What was not delivered so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many requests are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Takes a message that `owner` wants to send.
    pub fn send(&mut self, owner: O, message: &Message) -> Result<ToServer, Refused> {
        match message.envelope() {
            Envelope::Request { id, method, params } => {
                let kind = match method {
                    name if name.starts_with("notifications/") => return Err(Refused::NotificationWithId),
                    "initialize" => Kind::Initialize,
                    "subscriptions/listen" => Kind::Listen,
                    _ => Kind::Other,
                };
                let token = places::progress_token_of_request(params)?;
                self.admit(owner, id)?;
                let wire = self.next;
                self.next += 1;
                let number = wire.to_string();
                // A request always has an id with a place.
                let mut edits: Vec<_> =
                    message.id_span().map(|span| (span, number.as_str())).into_iter().collect();
                if let Some(token) = token {
                    edits.push((object::span(message.text(), token), number.as_str()));
                }
                edits.sort_by_key(|(span, _)| span.start);
                let text = object::splice(message.text(), &edits);
                let raw_id = message.raw_id().unwrap_or_default().to_owned();
                let raw_token = token.map(str::to_owned);
                self.owners.entry(owner).or_default().insert(id.clone(), wire);
                self.open.insert(wire, Open { owner, id: id.clone(), raw_id, raw_token, kind });
                Ok(ToServer::Request { wire, text })
            }
            Envelope::Notification { method: "notifications/cancelled", params } => {
                self.cancel(owner, message, params)
            }
            // The conversation was initialised once, has no roots, and no request of the server is open
            // of which an owner could report progress.
            Envelope::Notification {
                method:
                    "notifications/initialized" | "notifications/roots/list_changed" | "notifications/progress",
                ..
            } => Ok(ToServer::Nothing),
            Envelope::Notification { .. } => Ok(ToServer::Notification(message.text().to_owned())),
            Envelope::Response { .. } | Envelope::Error { .. } => Ok(ToServer::Nothing),
        }
    }

    /// Forgets an open request whose owner does not wait any more. Gives the cancellation for the server,
    /// where there is something to cancel.
    pub fn abandon(&mut self, wire: u64) -> Option<String> {
        let open = self.forget(wire)?;
        let params = format!(r#"{{"requestId":{wire}}}"#);
        let cancellation = compose::notification("notifications/cancelled", Some(&params));
        (open.kind != Kind::Initialize).then_some(cancellation)
    }

    /// Forgets all that `owner` asked. Gives the cancellations for the server.
    pub fn leave(&mut self, owner: O) -> Vec<String> {
        let wires = self.owners.remove(&owner).unwrap_or_default();
        wires.into_values().filter_map(|wire| self.abandon(wire)).collect()
    }

    /// Takes a message of the server.
    pub fn receive(&mut self, message: Message) -> FromServer<O> {
        match message.envelope() {
            Envelope::Response { id, .. } => {
                let wire = id.as_u64();
                self.answer(wire, message)
            }
            Envelope::Error { id, .. } => {
                let wire = id.and_then(Id::as_u64);
                self.answer(wire, message)
            }
            Envelope::Request { method, .. } => {
                let id = message.raw_id().unwrap_or("null");
                if method == "ping" {
                    return FromServer::Reply(compose::response(id, "{}"));
                }
                self.counters.refused_requests += 1;
                let text = "this client takes no requests";
                FromServer::Reply(compose::error(id, compose::METHOD_NOT_FOUND, text))
            }
            Envelope::Notification { .. } => self.notice(message),
        }
    }

    fn admit(&self, owner: O, id: &Id) -> Result<(), Refused> {
        let own = self.owners.get(&owner);
        if own.is_some_and(|own| own.contains_key(id)) {
            return Err(Refused::DuplicateId);
        }
        let full = own.is_some_and(|own| own.len() >= self.limits.open_per_owner);
        if full || self.open.len() >= self.limits.open { Err(Refused::TooManyOpen) } else { Ok(()) }
    }

    fn cancel(&mut self, owner: O, message: &Message, params: Option<&str>) -> Result<ToServer, Refused> {
        let Some(raw) = places::request_id_of_cancellation(params)? else { return Ok(ToServer::Nothing) };
        let id = Id::parse(raw).ok_or(Refused::NoId { name: "requestId" })?;
        let Some(&wire) = self.owners.get(&owner).and_then(|own| own.get(&id)) else {
            return Ok(ToServer::Nothing);
        };
        if self.open.get(&wire).is_none_or(|open| open.kind == Kind::Initialize) {
            return Ok(ToServer::Nothing);
        }
        self.forget(wire);
        let edit = (object::span(message.text(), raw), &*wire.to_string());
        Ok(ToServer::Notification(object::splice(message.text(), &[edit])))
    }

    fn answer(&mut self, wire: Option<u64>, message: Message) -> FromServer<O> {
        let Some((wire, open)) = wire.and_then(|wire| self.close(wire).map(|open| (wire, open))) else {
            match wire {
                Some(wire) if self.abandoned.remove(&wire) => self.counters.late_answers += 1,
                _ => self.counters.stray_answers += 1,
            }
            return FromServer::Dropped;
        };
        let mut edits: Vec<_> =
            message.id_span().map(|span| (span, open.raw_id.clone())).into_iter().collect();
        if let (Kind::Listen, Envelope::Response { result, .. }) = (open.kind, message.envelope())
            && let Some(named) = places::subscription_of(result)
            && Id::parse(named).and_then(|id| id.as_u64()) == Some(wire)
        {
            edits.push((object::span(message.text(), named), open.raw_id));
            edits.sort_by_key(|(span, _)| span.start);
        }
        FromServer::Answer(Delivery { owner: open.owner, message, edits })
    }

    fn notice(&mut self, message: Message) -> FromServer<O> {
        match places::place_of_notification(&message) {
            Belonging::Nobody => FromServer::Shared(message),
            Belonging::Request { raw, by } => {
                let span = object::span(message.text(), raw);
                let wire = Id::parse(raw).and_then(|id| id.as_u64());
                let Some((owner, name)) = wire.and_then(|wire| self.own_name(wire, by)) else {
                    return self.stray_notification();
                };
                let delivery = Delivery { owner, message, edits: vec![(span, name)] };
                match by {
                    By::Token | By::Subscription => FromServer::Notice(delivery),
                    By::End => FromServer::Ended(delivery),
                }
            }
            Belonging::Unclear => self.stray_notification(),
        }
    }

    /// Who is told of a notification for the request `wire`, and what the owner calls it.
    fn own_name(&mut self, wire: u64, by: By) -> Option<(O, String)> {
        let open = self.open.get(&wire)?;
        match by {
            By::Token => open.raw_token.clone().map(|token| (open.owner, token)),
            By::Subscription if open.kind == Kind::Listen => Some((open.owner, open.raw_id.clone())),
            By::End if open.kind == Kind::Listen => self.close(wire).map(|open| (open.owner, open.raw_id)),
            By::Subscription | By::End => None,
        }
    }

    fn stray_notification(&mut self) -> FromServer<O> {
        self.counters.stray_notifications += 1;
        FromServer::Dropped
    }

    fn forget(&mut self, wire: u64) -> Option<Open<O>> {
        let open = self.close(wire)?;
        self.abandoned.insert(wire);
        if self.abandoned.len() > ABANDONED_REMEMBERED {
            self.abandoned.pop_first();
        }
        Some(open)
    }

    fn close(&mut self, wire: u64) -> Option<Open<O>> {
        let open = self.open.remove(&wire)?;
        if let Some(own) = self.owners.get_mut(&open.owner) {
            own.remove(&open.id);
            if own.is_empty() {
                self.owners.remove(&open.owner);
            }
        }
        Some(open)
    }
}

impl From<ObjectError> for Refused {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Ambiguous { name } => Self::Ambiguous { name },
            // The message was valid JSON, so at worst a key in it is no valid Unicode.
            ObjectError::Syntax(_) => Self::Ambiguous { name: "params" },
        }
    }
}

#[cfg(test)]
mod tests;
