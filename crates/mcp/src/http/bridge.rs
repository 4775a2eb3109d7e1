//! Joins a client that writes lines to a server that takes requests.

use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::exchange::{Lost, Said, Talk};
use super::headers::Agreed;
use super::listen::listen;
use super::{Endpoint, Reach};
use crate::compose;
use crate::envelope::{Envelope, Id, Message};
use crate::framing::{self, Incoming, MessageReader, ReadError};
use crate::multiplex::Refused;
use crate::object;

/// How many messages wait for the client to read them; of long ones, fewer ([`Rooms`](super::room::Rooms)).
const WAITING: usize = 16;

/// The most requests of the client that are open at once.
const OPEN: usize = 1024;

/// How long a server may take to end a session.
const GOODBYE: Duration = Duration::from_secs(2);

/// How long a client may take to read the last messages.
const LAST_WORDS: Duration = Duration::from_secs(10);

const CANCELLED: &str = "notifications/cancelled";
const INITIALIZED: &str = "notifications/initialized";

/// How a conversation ended.
#[derive(Debug)]
pub enum End {
    /// The client said no more, and everything that it had asked was answered.
    Client,
    /// The client does not read any more.
    Gone,
    /// It cannot go on.
    Lost(Lost),
}

/// Leads a conversation to its end: the client's lines go to the server, the server's messages to the client.
/// To be called within a [`LocalSet`](tokio::task::LocalSet). When it is dropped, nothing of it goes on.
pub async fn bridge<R: Reach, C: AsyncRead + AsyncWrite>(reach: R, endpoint: Endpoint, client: C) -> End {
    let (from_client, to_client) = tokio::io::split(client);
    let (say, said) = mpsc::channel(WAITING);
    let talk = Rc::new(Talk::new(reach, endpoint, say));
    let mut writing = pin!(write(to_client, said));
    let mut tasks = JoinSet::new();
    let end = {
        let leading = lead(&talk, MessageReader::new(from_client), &mut tasks);
        tokio::select! {
            end = leading => end,
            () = &mut writing => return End::Gone,
        }
    };
    tasks.shutdown().await;
    if matches!(end, End::Client) && talk.agreed.borrow().session.is_some() {
        let fields = talk.agreed.borrow().legacy_fields();
        // A server that cannot end sessions ends this one with itself.
        let _ = timeout(GOODBYE, talk.connections.delete(fields)).await;
    }
    // The last that could say anything.
    drop(talk);
    let _ = timeout(LAST_WORDS, writing).await;
    end
}

/// Writes until nobody says any more, or the client does not read.
async fn write<C: AsyncWrite>(mut to_client: WriteHalf<C>, mut said: mpsc::Receiver<Said>) {
    while let Some(message) = said.recv().await {
        if framing::write_message(&mut to_client, &message.line).await.is_err() {
            return;
        }
    }
    // It may have gone.
    let _ = to_client.shutdown().await;
}

/// A request whose answer is still to come.
struct Open {
    task: AbortHandle,
    modern: bool,
    /// Whether it is open for as long as the client is there.
    endless: bool,
}

type Tasks = JoinSet<Result<(), Lost>>;

/// Takes the client's messages in turn.
async fn lead<R: Reach, C: AsyncRead + Unpin>(
    talk: &Rc<Talk<R>>,
    mut reader: MessageReader<C>,
    tasks: &mut Tasks,
) -> End {
    let mut led = Led { talk: talk.clone(), open: HashMap::new(), listening: false };
    let mut at_end = false;
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next() => {
                if let Ok(Err(lost)) = ended {
                    return End::Lost(lost);
                }
                led.open.retain(|_, open| !open.task.is_finished());
            }
            incoming = reader.next(), if !at_end => {
                let taken = match incoming {
                    Ok(Some(Incoming::Message(message))) => led.take(message, tasks).await,
                    Ok(Some(Incoming::Rejected(line))) => {
                        // What a server on stdio would say to this.
                        talk.say(compose::error("null", line.reason.code(), &line.reason.to_string())).await;
                        Ok(())
                    }
                    Ok(None) => {
                        at_end = true;
                        led.open.values().filter(|open| open.endless).for_each(|open| open.task.abort());
                        Ok(())
                    }
                    Err(ReadError::TooLong { limit }) => Err(Lost::TooLong { from: "client", limit }),
                    Err(ReadError::Io(error)) => Err(Lost::Client(error)),
                };
                if let Err(lost) = taken {
                    return End::Lost(lost);
                }
            }
            else => {}
        }
        if at_end && led.open.is_empty() {
            return End::Client;
        }
    }
}

/// A conversation as it is led.
struct Led<R> {
    talk: Rc<Talk<R>>,
    open: HashMap<Id, Open>,
    listening: bool,
}

impl<R: Reach> Led<R> {
    async fn take(&mut self, message: Message, tasks: &mut Tasks) -> Result<(), Lost> {
        match message.envelope() {
            Envelope::Request { id, method, .. } => {
                if let Some(refused) = self.refused(id) {
                    let raw_id = message.raw_id().unwrap_or("null");
                    self.talk.say(compose::error(raw_id, refused.code(), &refused.to_string())).await;
                    return Ok(());
                }
                if method == "initialize" {
                    // What was agreed on before is over; what follows has to name the new session.
                    *self.talk.agreed.borrow_mut() = Agreed::default();
                    let heading = self.talk.heading(&message);
                    return self.talk.ask(&message, heading).await;
                }
                let heading = self.talk.heading(&message);
                let (id, modern) = (id.clone(), heading.modern);
                let endless = modern && method == "subscriptions/listen";
                let talk = self.talk.clone();
                let task = tasks.spawn_local(async move { talk.ask(&message, heading).await });
                self.open.insert(id, Open { task, modern, endless });
                Ok(())
            }
            Envelope::Notification { method: CANCELLED, params } => {
                let cancelled = params.and_then(cancelled);
                self.cancel(&message, cancelled).await
            }
            Envelope::Notification { method, .. } => {
                let begins = method == INITIALIZED;
                let heading = self.talk.heading(&message);
                let legacy = !heading.modern;
                let accepted = self.talk.tell(&message, heading).await?;
                if begins && accepted && legacy && !self.listening {
                    self.listening = true;
                    let talk = self.talk.clone();
                    tasks.spawn_local(async move { listen(&talk).await });
                }
                Ok(())
            }
            Envelope::Response { .. } | Envelope::Error { .. } => {
                let heading = self.talk.heading(&message);
                self.talk.tell(&message, heading).await.map(|_| ())
            }
        }
    }

    fn refused(&self, id: &Id) -> Option<Refused> {
        if self.open.contains_key(id) {
            return Some(Refused::DuplicateId);
        }
        (self.open.len() >= OPEN).then_some(Refused::TooManyOpen)
    }

    /// A request is given up: in the modern era by closing its stream, else by telling the server.
    async fn cancel(&mut self, message: &Message, id: Option<Id>) -> Result<(), Lost> {
        let open = id.and_then(|id| self.open.remove(&id));
        let heading = self.talk.heading(message);
        let modern = open.as_ref().map_or(heading.modern, |open| open.modern);
        if !modern {
            self.talk.tell(message, heading).await?;
        }
        if let Some(open) = open {
            open.task.abort();
        }
        Ok(())
    }
}

/// The id of the request that is cancelled.
fn cancelled(params: &str) -> Option<Id> {
    let [id] = object::find(params, ["requestId"]).ok()?;
    Id::parse(id?.get())
}
