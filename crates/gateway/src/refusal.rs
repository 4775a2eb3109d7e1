//! Why a request is not answered by a server, and the one place where that becomes a status and an error.

use crate::{
    backend::OpenError,
    respond::{self, Response},
    session::Over,
};
use casemate_mcp::{envelope::Invalid, multiplex};
use hyper::{
    StatusCode,
    header::{ALLOW, HeaderValue, RETRY_AFTER},
};
use serde_json::{Value, json};
use std::time::Duration;

/// The revisions that are spoken here, newest first.
pub(crate) const REVISIONS: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

/// What the specification leaves to implementations.
pub(crate) const SERVER_ERROR: i32 = -32000;

/// Says what is spoken here (2026-07-28, `UnsupportedProtocolVersionError`).
const UNSUPPORTED_VERSION: i32 = -32022;

/// When to come again where no better guess can be made.
const SOON: Duration = Duration::from_secs(1);

/// When to come again for a machine.
const LATER: Duration = Duration::from_secs(5);

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// `Host` is missing, or there several times.
    #[error("the header Host has to be there once")]
    NoHost,
    /// `Host` is a name that is not known here.
    #[error("this gateway is not known under that host; --allow-host adds a name")]
    Host,
    /// `Origin` is not allowed.
    #[error("pages of that origin may not speak with this gateway; --allow-origin adds one")]
    Origin,
    /// Nothing is there.
    #[error("nothing is here; servers are at /mcp/NAME")]
    NoSuchPath,
    /// It will be there later.
    #[error("{0} is not built yet; servers are at /mcp/NAME")]
    NotBuilt(String),
    /// No server has that name.
    #[error("no server is named {0:?}; `casemate list` shows those that are defined")]
    NoSuchServer(String),
    /// All servers behind one path.
    #[error("all servers behind /mcp are not built yet; one server is at /mcp/NAME")]
    AllServers,
    /// The transport of 2024-11-05.
    #[error("HTTP+SSE of revision 2024-11-05 is not built yet; Streamable HTTP is at /mcp/NAME")]
    OldTransport,
    /// The path does not take that method.
    #[error("only {allow} can be used here")]
    Method {
        /// What it takes.
        allow: &'static str,
    },
    /// `Accept` takes neither form of an answer.
    #[error("Accept has to take {wanted}")]
    NotAcceptable {
        /// What it has to take.
        wanted: &'static str,
    },
    /// The body is said not to be JSON.
    #[error("Content-Type has to be application/json")]
    MediaType,
    /// The body is too long.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The body took too long.
    #[error("the body did not come within {} s", .0.as_secs())]
    SlowBody(Duration),
    /// The body broke off.
    #[error("the body broke off")]
    BrokenBody,
    /// Others send too much at the same time.
    #[error("too much is being sent to this gateway")]
    BodiesFull,
    /// The session sends more than its server takes.
    #[error("too much is being sent in this session")]
    SessionFull,
    /// The body is no message.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// Another revision is asked for.
    #[error("unsupported protocol version: this gateway speaks {}", REVISIONS.join(", "))]
    Unsupported {
        /// The revision.
        requested: String,
    },
    /// A header that has to be there once at most, or is no text.
    #[error("the header {0} cannot be read")]
    Header(&'static str),
    /// No session is named where one has to be.
    #[error(
        "the header Mcp-Session-Id is missing; a session begins with initialize (HTTP+SSE of 2024-11-05 is not \
         built yet)"
    )]
    NoSession,
    /// The session is over, or never was.
    #[error("there is no such session; begin another one with initialize")]
    UnknownSession,
    /// `initialize` within a session.
    #[error("the session is initialized already")]
    SecondInitialize,
    /// The request cannot be told from others, or there are too many.
    #[error(transparent)]
    Request(#[from] multiplex::Refused),
    /// The server does not take what it is sent.
    #[error("the server does not read what it is sent")]
    Stalled,
    /// A document was waited for too long.
    #[error(
        "no answer within {} s, which is as long as a document is waited for; who takes text/event-stream can wait \
         longer. The request may have been executed", .0.as_secs()
    )]
    NoAnswer(Duration),
    /// There are as many sessions as there may be.
    #[error("there are {0} sessions, which is the limit")]
    TooManySessions(usize),
    /// Too many wait for their machine.
    #[error("{0} sessions are waiting for their machines")]
    TooManyStarts(usize),
    /// The gateway ends.
    #[error("the gateway is ending")]
    Draining,
    /// The system gives no random numbers.
    #[error("no session id can be drawn")]
    Random,
    /// There is no room for a machine.
    #[error("no machine can be started now: {0}")]
    NoRoom(String),
    /// The stream of the session is read by another request.
    #[error("the stream of this session is open already")]
    StreamTaken,
    /// `Last-Event-ID` names nothing that is kept.
    #[error("what followed that event is not kept any more")]
    UnknownEvent,
}

impl Refusal {
    /// The refusal of a session that could not begin or is over; `None` where its server has to be blamed.
    pub(crate) fn of(over: &Over) -> Option<Self> {
        match over {
            Over::NotOpened(OpenError::NoRoom(reason)) => Some(Self::NoRoom(reason.clone())),
            Over::Shutdown => Some(Self::Draining),
            Over::NotOpened(OpenError::Failed(_))
            | Over::Deleted
            | Over::Idle
            | Over::Abandoned
            | Over::Silent(_)
            | Over::Unreadable(_)
            | Over::Ended(_) => None,
        }
    }

    /// The answer; `id` is that of the request as it was written, if it is known.
    pub(crate) fn response(&self, id: Option<&str>) -> Response {
        let text = respond::error(id.unwrap_or("null"), self.code(), &self.to_string(), self.data());
        let mut response = respond::json(self.status(), text);
        let fields = response.headers_mut();
        if let Self::Method { allow } = self {
            fields.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(wait) = self.retry_after() {
            fields.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs()));
        }
        response
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Host | Self::Origin => StatusCode::FORBIDDEN,
            Self::NoSuchPath
            | Self::NotBuilt(_)
            | Self::NoSuchServer(_)
            | Self::AllServers
            | Self::OldTransport
            | Self::UnknownSession => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable { .. } => StatusCode::NOT_ACCEPTABLE,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::SlowBody(_) => StatusCode::REQUEST_TIMEOUT,
            Self::StreamTaken => StatusCode::CONFLICT,
            Self::Request(multiplex::Refused::TooManyOpen) => StatusCode::TOO_MANY_REQUESTS,
            Self::NoAnswer(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::BodiesFull
            | Self::SessionFull
            | Self::Stalled
            | Self::TooManySessions(_)
            | Self::TooManyStarts(_)
            | Self::Draining
            | Self::NoRoom(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Random => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoHost
            | Self::BrokenBody
            | Self::Invalid(_)
            | Self::Unsupported { .. }
            | Self::Header(_)
            | Self::NoSession
            | Self::SecondInitialize
            | Self::Request(_)
            | Self::UnknownEvent => StatusCode::BAD_REQUEST,
        }
    }

    fn code(&self) -> i32 {
        match self {
            Self::Invalid(invalid) => invalid.code(),
            Self::Request(refused) => refused.code(),
            Self::Unsupported { .. } => UNSUPPORTED_VERSION,
            Self::SecondInitialize => -32600,
            _ => SERVER_ERROR,
        }
    }

    fn data(&self) -> Option<Value> {
        match self {
            Self::Unsupported { requested } => {
                Some(json!({ "supported": REVISIONS, "requested": requested }))
            }
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::BodiesFull
            | Self::SessionFull
            | Self::Stalled
            | Self::Request(multiplex::Refused::TooManyOpen) => Some(SOON),
            Self::NoRoom(_) | Self::TooManySessions(_) | Self::TooManyStarts(_) | Self::Draining => {
                Some(LATER)
            }
            _ => None,
        }
    }
}
