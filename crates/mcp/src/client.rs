//! A client of both eras over any byte stream: the server's stdin and stdout, or a stream into a machine.
//!
//! ```text
//! Conversation (clones) ── queue ──> writer task ──> server
//!        ^                                             │
//!        └── answers ── Shared (multiplexer) <── reader task
//! ```
//!
//! The two tasks are independent, so a server that floods while a long request is being written cannot
//! bring both to a halt. They end with the last clone, or when the server closes its output, and every
//! request that is open then fails at once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use casemate_proto::limits::MCP_MESSAGE_BYTES;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::compose;
use crate::envelope::{Invalid, Message};
use crate::era::Era;
use crate::framing::{MessageReader, Rejected};
use crate::multiplex::Refused;
use crate::object::ObjectError;

mod exchange;
mod meta;
mod negotiate;
mod shared;
mod tasks;

pub use negotiate::{OpenError, ServerInfo};
pub use shared::Counters;

use exchange::{Link, Outgoing};
use meta::Identity;

/// How many messages wait to be written before `request` and `notify` wait too.
const OUTBOX: usize = 16;

/// The most answers to the server's own requests and cancellations that wait to be written; a server that
/// asks and does not read gets no more.
const REPLIES: usize = 256;

/// How many requests are open at once unless the options say otherwise.
const OPEN_REQUESTS: usize = 1024;

/// How a conversation is led.
#[derive(Clone)]
pub struct Options {
    /// What the server is told is the client's name.
    pub client_name: String,
    /// What the server is told is the client's version.
    pub client_version: String,
    /// How long the server may take from the first byte to the end of the negotiation.
    pub negotiate_timeout: Duration,
    /// The era in which the server was led before: tried first, whatever its revision. Without it
    /// `initialize` is, because most servers know nothing else and one of both eras is locked by its first
    /// message.
    pub era: Option<Era>,
    /// The most requests that are open at once.
    pub open_requests: usize,
    /// Told what belongs to no request. Called by the reading task: it must not block.
    pub observer: Observer,
}

/// Is told what the server says that belongs to no request.
pub type Observer = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// Something that the server said and that belongs to no request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A line that is no message.
    Rejected(&'a Rejected),
    /// A notification: a log message, a changed list, an updated resource.
    Notification(&'a Message),
    /// A request of the server's own that was refused.
    RefusedRequest {
        /// What it asked for.
        method: &'a str,
    },
}

impl Options {
    /// A client of this name and version; ten seconds to negotiate, no known era, an observer that does
    /// nothing.
    pub fn new(client_name: impl Into<String>, client_version: impl Into<String>) -> Self {
        Self {
            client_name: client_name.into(),
            client_version: client_version.into(),
            negotiate_timeout: Duration::from_secs(10),
            era: None,
            open_requests: OPEN_REQUESTS,
            observer: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Options").field("client_name", &self.client_name).finish_non_exhaustive()
    }
}

/// What a server answered. An error is an answer: the server lives.
#[derive(Debug)]
pub enum Answer {
    /// The `result`, as the server wrote it. In the modern era it may say `"resultType": "input_required"`.
    Result(Box<RawValue>),
    /// The `error`, as the server wrote it; see [`compose::ErrorObject`].
    Error(Box<RawValue>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The conversation is over.
    #[error("no answer to {method}: the conversation is over")]
    Closed {
        /// What was asked.
        method: String,
        /// Whether the server may have seen the request, or a part of it; if not, it may be asked again.
        delivered: bool,
        /// Why it is over.
        #[source]
        reason: CloseReason,
    },
    /// The server did not answer in time. The request was cancelled.
    #[error("no answer to {method} within {timeout:?}")]
    Timeout {
        /// What was asked.
        method: String,
        /// The time it had.
        timeout: Duration,
    },
    /// The server ended the subscription that the request opened.
    #[error("the server ended {method}")]
    Ended {
        /// What was asked.
        method: String,
    },
    /// The request was not sent: too many are open.
    #[error("cannot send {method}")]
    Refused {
        /// What was asked.
        method: String,
        /// Why.
        #[source]
        reason: Refused,
    },
    /// The request was not sent: it would be no valid message.
    #[error("cannot send {method}")]
    Invalid {
        /// What was asked.
        method: String,
        /// Why.
        #[source]
        reason: Invalid,
    },
    /// The request was not sent: its `params` cannot take the keys of `_meta` that they need.
    #[error("cannot add to the params of {method}")]
    Params {
        /// What was asked.
        method: String,
        /// Why.
        #[source]
        reason: ObjectError,
    },
    /// The request was not sent: it is longer than any server has to read.
    #[error("{method} is {bytes} bytes long, more than {MCP_MESSAGE_BYTES}")]
    TooLong {
        /// What was asked.
        method: String,
        /// How long it is.
        bytes: usize,
    },
}

/// Why a conversation ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloseReason {
    /// The server closed its output, as it does when it exits.
    #[error("the server closed its output")]
    ServerClosed,
    /// The server sent a message that is too long.
    #[error("the server sent a message longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The stream from the server broke.
    #[error("cannot read from the server")]
    ReadFailed(#[source] Arc<std::io::Error>),
    /// The stream to the server broke, as it does when it closes its input.
    #[error("cannot write to the server")]
    WriteFailed(#[source] Arc<std::io::Error>),
    /// This side ended it.
    #[error("the conversation was closed by this side")]
    Closed,
}

/// A conversation with one server, after negotiation. Clones are handles to the same one; it ends with the
/// last of them.
#[derive(Debug, Clone)]
pub struct Conversation {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: Link,
    identity: Identity,
    era: Era,
    result: Box<RawValue>,
    server_info: Option<ServerInfo>,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
}

impl Conversation {
    /// Starts a conversation and negotiates the era. No client capabilities are announced. Dropping the
    /// future ends the conversation.
    pub async fn open<R, W>(reader: R, writer: W, options: Options) -> Result<Self, OpenError>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (outbox, queued) = mpsc::channel(OUTBOX);
        let (replies, to_reply) = mpsc::channel(REPLIES);
        let shared = Arc::new(shared::Shared::new(options.open_requests, options.observer.clone(), replies));
        let mut running = JoinSet::new();
        running.spawn(tasks::write(shared.clone(), writer, queued, to_reply));
        running.spawn(tasks::read(shared.clone(), MessageReader::new(reader)));
        let link = Link { shared, outbox };
        let identity = Identity::new(&options.client_name, &options.client_version);
        let agreed = negotiate::negotiate(&link, &identity, options.era, options.negotiate_timeout).await?;
        let negotiate::Agreed { era, result, server_info } = agreed;
        let inner = Inner { link, identity, era, result, server_info, _tasks: running };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Asks the server. `params` is a JSON object. May be cancelled: the server is told, and a late answer
    /// is dropped.
    pub async fn request(
        &self,
        method: &str,
        params: Option<&RawValue>,
        timeout: Duration,
    ) -> Result<Answer, RequestError> {
        let params = self.params(method, params, false)?;
        self.inner.link.exchange(method, params, None, timeout).await
    }

    /// Asks the server as [`Self::request`] does, and to report progress: the `params` of each report go to
    /// `progress`. Where that is full, reports are dropped.
    pub async fn request_with_progress(
        &self,
        method: &str,
        params: Option<&RawValue>,
        timeout: Duration,
        progress: mpsc::Sender<Box<RawValue>>,
    ) -> Result<Answer, RequestError> {
        let params = self.params(method, params, true)?;
        self.inner.link.exchange(method, params, Some(progress), timeout).await
    }

    /// Tells the server. Waits until there is room to queue it, not until it is written.
    pub async fn notify(&self, method: &str, params: Option<&RawValue>) -> Result<(), RequestError> {
        self.inner.link.notify(method, params.map(RawValue::get)).await
    }

    /// Asks the server for a sign of life: `ping` in the legacy era, `server/discover` in the modern one.
    /// Any answer is one.
    pub async fn ping(&self, timeout: Duration) -> Result<(), RequestError> {
        let method = if self.inner.era.is_modern() { negotiate::DISCOVER } else { "ping" };
        self.request(method, None, timeout).await.map(|_| ())
    }

    /// The era that was negotiated.
    pub fn era(&self) -> Era {
        self.inner.era
    }

    /// The result of `initialize`, or of `server/discover` in the modern era, as the server wrote it.
    pub fn initialize_result(&self) -> &RawValue {
        &self.inner.result
    }

    /// Who the server says it is.
    pub fn server_info(&self) -> Option<&ServerInfo> {
        self.inner.server_info.as_ref()
    }

    /// What was dropped and refused so far.
    pub fn counters(&self) -> Counters {
        self.inner.link.shared.counters()
    }

    /// Waits until the conversation is over. May be cancelled.
    pub async fn closed(&self) -> CloseReason {
        self.inner.link.shared.closed().await
    }

    /// Ends the conversation: what is queued is still written, then the server's input is closed and the
    /// server has `grace` in all to close its output. Requests that are open may still be answered until
    /// then; no new one is taken.
    pub async fn close(&self, grace: Duration) -> CloseReason {
        let Link { shared, outbox } = &self.inner.link;
        let in_order = async {
            // A writer that is gone has nothing to finish.
            let _ = outbox.send(Outgoing::Finish).await;
            shared.closed().await
        };
        if tokio::time::timeout(grace, in_order).await.is_err() {
            shared.close(CloseReason::Closed);
        }
        shared.closed().await
    }

    fn params(
        &self,
        method: &str,
        params: Option<&RawValue>,
        progress: bool,
    ) -> Result<Option<String>, RequestError> {
        let params = params.map(RawValue::get);
        self.inner
            .identity
            .params(self.inner.era, params, progress)
            .map_err(|reason| RequestError::Params { method: method.to_owned(), reason })
    }
}

impl Answer {
    /// The error as JSON-RPC defines it, where the answer is one.
    pub fn error(&self) -> Option<compose::ErrorObject> {
        match self {
            Self::Result(_) => None,
            Self::Error(error) => compose::ErrorObject::read(error),
        }
    }
}
