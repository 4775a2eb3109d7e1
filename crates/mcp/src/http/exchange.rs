//! One message of the client to the server, and what comes of it.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use casemate_proto::limits::MCP_MESSAGE_BYTES;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::answer::{self, Belongs};
use super::connections::{BodyError, Connections, Kind, Reply, SendError};
use super::headers::{Agreed, Fields, Heading, SESSION, value};
use super::params::Mirrors;
use super::room::{Room, Rooms, SMALL_BYTES};
use super::sse::{Decoder, Event};
use super::{Endpoint, Purpose, Reach, schemas};
use crate::compose;
use crate::envelope::{Envelope, Id, Message};
use crate::object;

/// How long a server may take to accept a notification or a response: the next message waits for it.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait for a link that is full, before it is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// What is read of the body of an answer that should have none.
const REFUSAL_BYTES: usize = 64 << 10;

/// How often in a row a stream is resumed that brings nothing.
const RESUMPTIONS: u32 = 5;

/// How long to wait before a stream is asked for again, where the server does not say; at least, and
/// at most.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_LEAST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// Why a conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The server has ended.
    #[error("the server has ended")]
    Over,
    /// The server takes no connection.
    #[error("cannot connect to the server")]
    Unreachable(#[source] io::Error),
    /// A message is too long.
    #[error("message from the {from} is longer than {limit} bytes")]
    TooLong {
        /// `server` or `client`.
        from: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// What the client sends cannot be read.
    #[error("cannot read from the client")]
    Client(#[source] io::Error),
    /// The server does not know the session any more; only another client can begin another.
    #[error("the server ended the session")]
    SessionEnded,
}

/// What all messages of a conversation share.
pub(super) struct Talk<R> {
    pub reach: Rc<R>,
    pub connections: Rc<Connections<R>>,
    pub agreed: RefCell<Agreed>,
    mirrors: RefCell<Mirrors>,
    to_client: mpsc::Sender<Said>,
    pub rooms: Rooms,
}

/// What the client is told.
#[derive(Debug)]
pub(super) struct Said {
    pub line: String,
    /// Held until it was written.
    _room: Room,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub id: Id,
    /// The id as it is written.
    pub raw_id: String,
    pub method: String,
    pub modern: bool,
}

impl Asked {
    /// Of a message that is a request.
    pub fn of(message: &Message, modern: bool) -> Option<Self> {
        let Envelope::Request { id, method, .. } = message.envelope() else { return None };
        let raw_id = message.raw_id()?.to_owned();
        Some(Self { id: id.clone(), raw_id, method: method.to_owned(), modern })
    }

    /// Whether its stream is to stay open.
    pub fn is_subscription(&self) -> bool {
        self.modern && self.method == "subscriptions/listen"
    }
}

/// How far a stream was read, over all connections that carried it.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    last_id: Vec<u8>,
    retry: Option<Duration>,
    /// Connections in a row that brought nothing.
    idle: u32,
}

impl Cursor {
    /// What names the last event, if the server numbers them and the number can be told in a header.
    pub fn after(&self) -> Option<HeaderValue> {
        if self.last_id.is_empty() { None } else { HeaderValue::from_bytes(&self.last_id).ok() }
    }

    /// Waits as long as the server wants, or longer each time that it has nothing to say; false if it is not
    /// to be asked again.
    pub async fn pause(&mut self, times: u32) -> bool {
        if self.idle >= times {
            return false;
        }
        let pause = self.retry.unwrap_or(RETRY * 2u32.saturating_pow(self.idle));
        self.idle += 1;
        sleep(pause.clamp(RETRY_LEAST, RETRY_MOST)).await;
        true
    }
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// The answer has come.
    Answered,
    /// The server closed it.
    Ended,
    /// It broke.
    Broken,
}

impl<R: Reach> Talk<R> {
    pub fn new(reach: R, endpoint: Endpoint, to_client: mpsc::Sender<Said>) -> Self {
        let reach = Rc::new(reach);
        Self {
            connections: Rc::new(Connections::new(reach.clone(), endpoint)),
            reach,
            agreed: RefCell::default(),
            mirrors: RefCell::default(),
            to_client,
            rooms: Rooms::default(),
        }
    }

    /// The headers of a message.
    pub fn heading(&self, message: &Message) -> Heading {
        self.agreed.borrow_mut().heading(message, &self.mirrors.borrow())
    }

    /// Learns from a list of tools which parameters of theirs go into headers.
    pub fn learn(&self, result: &str) {
        self.mirrors.borrow_mut().learn(result);
    }

    /// Says something to the client; one that does not read any more is noticed elsewhere.
    pub async fn say(&self, line: String) {
        self.say_in(line, None).await;
    }

    /// Says something that may be long.
    async fn say_in(&self, line: String, room: Room) {
        let _ = self.to_client.send(Said { line, _room: room }).await;
    }

    /// Has a request answered; whatever happens, the client gets an answer or the conversation is over. May
    /// be cancelled, which closes the request's stream.
    pub async fn ask(&self, message: &Message, heading: Heading) -> Result<(), Lost> {
        let Some(asked) = Asked::of(message, heading.modern) else { return Ok(()) };
        let _busy = self.reach.busy();
        let Ok(_place) = self.rooms.enter(&asked).await else {
            self.say(answer::none(&asked, "too many subscriptions are open")).await;
            return Ok(());
        };
        let Some((mut answer, mut room)) = self.ask_once(message, &asked, heading.fields.clone()).await?
        else {
            return Ok(());
        };
        // Refused and not executed, for want of headers that only the tools' schemas name. What is so long says
        // something else, and has the room that the schemas may need.
        if asked.modern && room.is_none() && answer::is_header_mismatch(&answer) {
            schemas::learn(self, message).await;
            let again = self.heading(message);
            if again != heading {
                match self.ask_once(message, &asked, again.fields).await? {
                    Some(second) => (answer, room) = second,
                    None => return Ok(()),
                }
            }
        }
        self.pass(&asked, answer, room).await;
        Ok(())
    }

    /// Sends a request. What comes in a stream, and what is no answer, the client is told here; an answer alone
    /// is returned.
    async fn ask_once(
        &self,
        message: &Message,
        asked: &Asked,
        fields: Fields,
    ) -> Result<Option<(Message, Room)>, Lost> {
        let had_session = self.agreed.borrow().session.is_some() && !asked.modern;
        let mut reply = match self.connections.post(message.text(), fields).await {
            Ok(reply) => reply,
            Err(error) => return self.unsent(asked, error).await.map(|()| None),
        };
        let status = reply.status();
        if asked.method == "initialize" && !asked.modern && status.is_success() {
            self.agreed.borrow_mut().session = reply.header(&SESSION).cloned();
        }
        if reply.kind() == Kind::Stream {
            return self.streamed(reply, asked).await.map(|()| None);
        }
        let mut room = None;
        let body = match self.whole(&mut reply, &mut room).await {
            Ok(body) => body,
            Err(BodyError::TooLong { limit }) => return Err(Lost::TooLong { from: "server", limit }),
            Err(BodyError::Broken(error)) => {
                return self.unsent(asked, SendError::Broken(error)).await.map(|()| None);
            }
        };
        self.connections.finish(reply);
        match answer::whole(status, body, asked) {
            Ok(answer) => return Ok(Some((answer, room))),
            Err(_) if status == StatusCode::NOT_FOUND && had_session => return Err(Lost::SessionEnded),
            Err(instead) => self.say_in(instead, room).await,
        }
        Ok(None)
    }

    /// Reads a message that is all of a body. May be cancelled.
    pub async fn whole(&self, reply: &mut Reply, room: &mut Room) -> Result<Vec<u8>, BodyError> {
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk().await {
            let chunk = chunk.map_err(BodyError::Broken)?;
            let length = body.len() + chunk.len();
            if length > MCP_MESSAGE_BYTES {
                return Err(BodyError::TooLong { limit: MCP_MESSAGE_BYTES });
            }
            self.rooms.grow(room, length).await;
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Has a notification or a response accepted; false where the server does not take it.
    pub async fn tell(&self, message: &Message, heading: Heading) -> Result<bool, Lost> {
        let _busy = self.reach.busy();
        let had_session = self.agreed.borrow().session.is_some() && !heading.modern;
        let what = match message.envelope() {
            Envelope::Notification { method, .. } => method,
            _ => "a response",
        };
        let mut reply = match timeout(ACCEPT_TIMEOUT, self.post(message, heading.fields)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(SendError::Unreachable(error))) => return Err(self.unreachable(error).await),
            Ok(Err(error)) => {
                if self.reach.is_over().await {
                    return Err(Lost::Over);
                }
                self.reach.note(&format!("{what} was not accepted: {}", chain(&error)));
                return Ok(false);
            }
            Err(_) => {
                self.reach.note(&format!("{what} was not accepted within {} s", ACCEPT_TIMEOUT.as_secs()));
                return Ok(false);
            }
        };
        let status = reply.status();
        if status.is_success() {
            self.connections.finish(reply);
            return Ok(true);
        }
        if status == StatusCode::NOT_FOUND && had_session {
            return Err(Lost::SessionEnded);
        }
        let said = timeout(ACCEPT_TIMEOUT, reply.whole(REFUSAL_BYTES)).await;
        let said = said.ok().and_then(Result::ok).unwrap_or_default();
        let said = answer::preview(&said);
        self.reach.note(format!("{what} was not accepted: HTTP {status} {said}").trim_end());
        Ok(false)
    }

    /// Sends a message that nobody would be told of if it were lost: it waits for a link that is full.
    async fn post(&self, message: &Message, fields: Fields) -> Result<Reply, SendError> {
        loop {
            match self.connections.post(message.text(), fields.clone()).await {
                Err(SendError::Unreachable(error)) if error.kind() == io::ErrorKind::ResourceBusy => {
                    sleep(FULL_PAUSE).await;
                }
                sent => return sent,
            }
        }
    }

    /// Follows the stream of a request to its answer, over as many connections as it takes.
    async fn streamed(&self, mut reply: Reply, asked: &Asked) -> Result<(), Lost> {
        let mut cursor = Cursor::default();
        loop {
            let followed = self.follow(reply, Some(asked), &mut cursor).await?;
            if followed == Followed::Answered {
                return Ok(());
            }
            // Only the streams of a session can be gone on with.
            let after = cursor.after().filter(|_| !asked.modern);
            let resumed = match after {
                Some(after) if cursor.pause(RESUMPTIONS).await => {
                    let fields = self.agreed.borrow().legacy_fields();
                    self.connections.get(Some(after), fields, Purpose::Message).await
                }
                _ => return self.unanswered(asked, &followed).await,
            };
            reply = match resumed {
                Ok(reply) if reply.kind() == Kind::Stream => reply,
                Ok(_) => return self.unanswered(asked, &followed).await,
                Err(error) => return self.unsent(asked, error).await,
            };
        }
    }

    /// Reads one connection of a stream. What is said on it goes to the client.
    pub async fn follow(
        &self,
        mut reply: Reply,
        asked: Option<&Asked>,
        cursor: &mut Cursor,
    ) -> Result<Followed, Lost> {
        let mut decoder = Decoder::new(MCP_MESSAGE_BYTES);
        let (mut answered, mut room) = (false, None);
        while let Some(chunk) = reply.chunk().await {
            let Ok(chunk) = chunk else { return Ok(Followed::Broken) };
            self.rooms.grow(&mut room, decoder.held() + chunk.len()).await;
            let pushed = decoder.push(&chunk);
            while let Some(event) = decoder.next_event() {
                cursor.idle = 0;
                // No second one can be long: all of it came with this piece.
                let room = if event.data.len() > SMALL_BYTES { room.take() } else { None };
                answered |= self.take(event, asked, room).await;
            }
            if decoder.held() <= SMALL_BYTES {
                room = None;
            }
            pushed.map_err(|error| Lost::TooLong { from: "server", limit: error.limit })?;
            if !decoder.last_id().is_empty() {
                cursor.last_id = decoder.last_id().to_vec();
            }
            cursor.retry = decoder.retry().or(cursor.retry);
            if answered {
                self.connections.finish(reply);
                return Ok(Followed::Answered);
            }
        }
        self.connections.finish(reply);
        Ok(Followed::Ended)
    }

    /// Takes an event; whether it was the answer.
    async fn take(&self, event: Event, asked: Option<&Asked>, room: Room) -> bool {
        // Without data it only names a place in the stream.
        if event.data.is_empty() || event.kind != b"message" {
            return false;
        }
        let shown = answer::preview(&event.data);
        let message = match Message::parse(event.data) {
            Ok(message) => message,
            Err(reason) => {
                self.reach.note(&format!("not a message in a stream ({reason}): {shown}"));
                return false;
            }
        };
        let is_request = matches!(message.envelope(), Envelope::Request { .. });
        match (answer::belongs(&message, asked.map(|asked| &asked.id)), asked) {
            (Belongs::Answer, Some(asked)) => {
                self.pass(asked, message, room).await;
                return true;
            }
            (Belongs::Unnamed, Some(asked)) => {
                self.say_in(answer::named(&message, asked), room).await;
                return true;
            }
            // In this era servers ask in their answers.
            (Belongs::NoAnswer, Some(asked)) if asked.modern && is_request => {
                self.reach.note(&format!("a request in the stream of {}: {shown}", asked.method));
            }
            (Belongs::NoAnswer, _) => self.say_in(message.into_text(), room).await,
            _ => self.reach.note(&format!("an answer that nobody waits for in this stream: {shown}")),
        }
        false
    }

    /// Gives the client its answer, and learns from it.
    async fn pass(&self, asked: &Asked, answer: Message, room: Room) {
        if let Envelope::Response { result, .. } = answer.envelope() {
            match (asked.method.as_str(), asked.modern) {
                ("initialize", false) => {
                    let version =
                        object::find(result, ["protocolVersion"]).ok().and_then(|[version]| version);
                    let version =
                        version.and_then(|version| serde_json::from_str::<String>(version.get()).ok());
                    self.agreed.borrow_mut().legacy = version.as_deref().and_then(value);
                }
                ("tools/list", true) => self.learn(result),
                _ => {}
            }
        }
        self.say_in(answer.into_text(), room).await;
    }

    /// A request got no answer for want of a connection.
    async fn unsent(&self, asked: &Asked, error: SendError) -> Result<(), Lost> {
        match error {
            SendError::Unreachable(error) if error.kind() != io::ErrorKind::ResourceBusy => {
                Err(self.unreachable(error).await)
            }
            _ if self.reach.is_over().await => Err(Lost::Over),
            error => {
                self.say(answer::none(asked, &chain(&error))).await;
                Ok(())
            }
        }
    }

    async fn unreachable(&self, error: io::Error) -> Lost {
        if self.reach.is_over().await { Lost::Over } else { Lost::Unreachable(error) }
    }

    /// A stream ended before its answer.
    async fn unanswered(&self, asked: &Asked, followed: &Followed) -> Result<(), Lost> {
        if self.reach.is_over().await {
            return Err(Lost::Over);
        }
        if asked.is_subscription() {
            // Over a stream that all share, this is how a server ends one.
            let reason = compose::quoted("the server closed the stream");
            let params = format!(r#"{{"requestId":{},"reason":{reason}}}"#, asked.raw_id);
            self.say(compose::notification("notifications/cancelled", Some(&params))).await;
            return Ok(());
        }
        let why = match followed {
            Followed::Broken => "the server broke off its stream before the answer",
            _ => "the server closed its stream before the answer",
        };
        self.say(answer::none(asked, why)).await;
        Ok(())
    }
}

/// An error and its sources on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
