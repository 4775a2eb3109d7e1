//! What a session knows, and what follows from it: where a message of the server goes, which request may be
//! taken. Decisions only, no I/O.

use super::{
    Over,
    streams::{Instead, OWN, StreamId, Streams},
};
use crate::{refusal::SERVER_ERROR, respond};
use casemate_mcp::{
    Envelope, Id, Message,
    multiplex::{Refused, places},
};
use hyper::body::Bytes;
use std::collections::{HashMap, VecDeque};

/// How many cancelled requests are remembered, to tell a late answer from that to another request.
const CANCELLED: usize = 64;

/// What a client is told in place of an answer that was given up.
const NOT_KEPT: &str =
    "the answer was too long to be kept while its client was away; the request was executed";

/// What a server is told whose request no client took.
const NOT_TAKEN: &str = "the client is away, and the request was not kept for it";

/// What a session knows.
pub(super) struct State {
    pub streams: Streams,
    pub open: HashMap<Id, Open>,
    pub over: Option<Over>,
    /// What the server sent and nobody gets: answers to nothing, lines that are no messages.
    pub dropped: u64,
    /// Requests that their client cancelled and the server may answer nevertheless, the latest first.
    cancelled: VecDeque<Id>,
}

/// A request that the server has not answered.
pub(super) struct Open {
    pub stream: StreamId,
    /// The id as the client wrote it.
    pub raw_id: Box<str>,
    pub token: Option<Id>,
    /// The client takes a stream, so that more than the answer can be sent on it.
    pub takes_stream: bool,
    /// It was written to the server.
    pub delivered: bool,
}

/// Where a message of the server goes.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// The answer of that request.
    Answer(Id),
    /// That stream.
    Stream(StreamId),
    /// Nowhere: its request was cancelled.
    Cancelled(Id),
    /// Nowhere.
    Nowhere,
}

impl State {
    /// Nothing open, nothing said.
    pub fn new(streams: Streams) -> Self {
        Self { streams, open: HashMap::new(), over: None, dropped: 0, cancelled: VecDeque::new() }
    }

    /// Whether one more request may be taken, with that id.
    pub fn may_open(&self, id: &Id, limit: usize) -> Result<(), Refused> {
        if self.open.contains_key(id) || self.cancelled.contains(id) {
            return Err(Refused::DuplicateId);
        }
        if self.open.len() >= limit { Err(Refused::TooManyOpen) } else { Ok(()) }
    }

    /// Takes a message of the server; the stream on which it is passed on, if it is no answer.
    pub fn deliver(&mut self, message: Message) -> Option<StreamId> {
        match self.place(&message) {
            Place::Answer(id) => {
                let open = self.open.remove(&id)?;
                let short = respond::error(&open.raw_id, SERVER_ERROR, NOT_KEPT, None);
                self.streams.push(open.stream, message.into_text().into(), Instead::Tell(short.into()));
                self.streams.end(open.stream);
                None
            }
            Place::Stream(stream) => {
                let instead = match message.envelope() {
                    Envelope::Request { .. } => {
                        let id = message.raw_id().unwrap_or("null");
                        Instead::Reply(respond::error(id, SERVER_ERROR, NOT_TAKEN, None).into())
                    }
                    _ => Instead::Nothing,
                };
                self.streams.push(stream, message.into_text().into(), instead);
                Some(stream)
            }
            Place::Cancelled(id) => {
                self.cancelled.retain(|other| *other != id);
                None
            }
            Place::Nowhere => {
                self.dropped += 1;
                None
            }
        }
    }

    /// Answers a request that its client cancelled. What the server says to it later is for nobody.
    pub fn cancel(&mut self, id: Id) {
        let Some(open) = self.open.remove(&id) else { return };
        let error = respond::error(&open.raw_id, SERVER_ERROR, "the request was cancelled", None);
        self.tell(open.stream, error.into());
        self.cancelled.truncate(CANCELLED - 1);
        self.cancelled.push_front(id);
    }

    /// Forgets a request that was not sent.
    pub fn take_back(&mut self, id: &Id, stream: StreamId) {
        if self.open.get(id).is_some_and(|open| open.stream == stream) {
            self.open.remove(id);
        }
    }

    /// Answers every open request with why the session is over, and ends all streams.
    pub fn finish(&mut self, over: Over) {
        let sentence = over.sentence();
        for (_, open) in std::mem::take(&mut self.open) {
            let may_have_run = if open.delivered {
                "; the request may have been executed"
            } else {
                "; the request was not delivered"
            };
            let message = format!("{sentence}{may_have_run}");
            self.tell(open.stream, respond::error(&open.raw_id, SERVER_ERROR, &message, over.data()).into());
        }
        self.streams.end(OWN);
        self.over = Some(over);
    }

    /// Answers in the server's place.
    fn tell(&mut self, stream: StreamId, answer: Bytes) {
        self.streams.push(stream, answer, Instead::Told);
        self.streams.end(stream);
    }

    /// Where a message of the server goes. What belongs to an open request goes to its stream. MCP's legacy
    /// revisions do not say to which request one of the server's own messages belongs: with a single request
    /// open it is that one; else the session's own stream takes it, or where nobody reads that, the latest
    /// request's. What tells of the server as a whole is the session's first.
    fn place(&self, message: &Message) -> Place {
        let read = || self.streams.is_read(OWN).then_some(OWN);
        match message.envelope() {
            Envelope::Response { id, .. } | Envelope::Error { id: Some(id), .. } => {
                if self.open.contains_key(id) {
                    Place::Answer(id.clone())
                } else if self.cancelled.contains(id) {
                    Place::Cancelled(id.clone())
                } else {
                    Place::Nowhere
                }
            }
            Envelope::Error { id: None, .. } => Place::Nowhere,
            Envelope::Notification { method: "notifications/progress", params } => {
                let token = places::token_of_progress(params).ok().flatten().and_then(Id::parse);
                let owner = self.open.values().find(|open| open.takes_stream && open.token == token);
                Place::Stream(owner.filter(|_| token.is_some()).map_or(OWN, |open| open.stream))
            }
            Envelope::Notification { method, .. } if is_of_the_server(method) => {
                Place::Stream(read().or_else(|| self.only()).unwrap_or(OWN))
            }
            Envelope::Notification { .. } => Place::Stream(self.only().or_else(read).unwrap_or(OWN)),
            Envelope::Request { .. } => {
                Place::Stream(self.only().or_else(read).or_else(|| self.latest()).unwrap_or(OWN))
            }
        }
    }

    /// The stream of the only request that is open. Nobody may read it now: its client is between two
    /// connections.
    fn only(&self) -> Option<StreamId> {
        let mut open = self.open.values();
        let only = open.next().filter(|_| open.next().is_none())?;
        (only.takes_stream && self.streams.is_kept(only.stream)).then_some(only.stream)
    }

    /// The stream of the latest request whose client reads it, or may come back to it.
    fn latest(&self) -> Option<StreamId> {
        let takes = self.open.values().filter(|open| open.takes_stream);
        let kept = takes.map(|open| open.stream).filter(|&stream| self.streams.is_kept(stream));
        kept.max_by_key(|&stream| (self.streams.is_read(stream), stream))
    }
}

/// Whether a notification tells of what the server has, whatever it is asked.
fn is_of_the_server(method: &str) -> bool {
    method.ends_with("/list_changed") || method == "notifications/resources/updated"
}
