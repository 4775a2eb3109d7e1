//! Connections to the server: one for each request that is open, and one that is kept for the next.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::headers::Fields;
use super::{Endpoint, Purpose, Reach};

/// How long the head of an answer may be, in bytes (up to twice that, where it comes in one piece), and how many
/// fields it may have.
const HEAD_BYTES: usize = 64 << 10;
const HEAD_FIELDS: usize = 256;

/// How long a connection that rests is used again. Common servers close theirs after five seconds, and what
/// is sent at that moment may or may not have been read.
const REUSE: Duration = Duration::from_secs(2);

/// How long an answer may take to come to its end once all that matters was read.
const REST: Duration = Duration::from_secs(1);

/// How many answers are waited for in this way; the connections of others are closed at once.
pub(super) const RESTING: usize = 2;

const JSON: &str = "application/json";
const STREAM: &str = "text/event-stream";
const EITHER: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Makes connections, and keeps one.
pub(super) struct Connections<R> {
    reach: Rc<R>,
    endpoint: Endpoint,
    host: HeaderValue,
    kept: RefCell<Option<(Connection, Instant)>>,
    resting: Arc<Semaphore>,
}

/// A connection; dropping it closes it.
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// There is no connection; the request was not sent.
    #[error("cannot connect to the server")]
    Unreachable(#[source] io::Error),
    /// The connection broke, or what came is no HTTP.
    #[error("the server did not answer as HTTP does")]
    Broken(#[source] hyper::Error),
}

/// What an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One message, or none.
    Whole,
    /// A stream of events.
    Stream,
}

/// An answer whose body is still to be read. Dropping it closes its connection.
pub(super) struct Reply {
    connection: Connection,
    response: Response<Incoming>,
}

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// It is too long.
    #[error("answer longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The connection broke.
    #[error("the server broke off its answer")]
    Broken(#[source] hyper::Error),
}

impl<R: Reach> Connections<R> {
    pub fn new(reach: Rc<R>, endpoint: Endpoint) -> Self {
        // Digits and dots: it is a value.
        let host = HeaderValue::try_from(format!("127.0.0.1:{}", endpoint.port))
            .unwrap_or_else(|_| HeaderValue::from_static("127.0.0.1"));
        Self { reach, endpoint, host, kept: RefCell::default(), resting: Arc::new(Semaphore::new(RESTING)) }
    }

    /// Sends a message; the answer's head has come when this returns.
    pub async fn post(&self, message: &str, fields: Fields) -> Result<Reply, SendError> {
        let body = Bytes::copy_from_slice(message.as_bytes());
        let mut request = self.request(Method::POST, EITHER, body, fields);
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        self.send(request, Purpose::Message).await
    }

    /// Asks for a stream, from after an event where its id is given.
    pub async fn get(
        &self,
        after: Option<HeaderValue>,
        mut fields: Fields,
        purpose: Purpose,
    ) -> Result<Reply, SendError> {
        fields.extend(after.map(|id| (LAST_EVENT_ID, id)));
        let request = self.request(Method::GET, HeaderValue::from_static(STREAM), Bytes::new(), fields);
        self.send(request, purpose).await
    }

    /// Ends a session.
    pub async fn delete(&self, fields: Fields) -> Result<Reply, SendError> {
        self.send(self.request(Method::DELETE, EITHER, Bytes::new(), fields), Purpose::Message).await
    }

    fn request(
        &self,
        method: Method,
        accept: HeaderValue,
        body: Bytes,
        fields: Fields,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.endpoint.path.clone();
        let headers: &mut HeaderMap = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(ACCEPT, accept);
        headers.extend(fields);
        request
    }

    async fn send(&self, mut request: Request<Full<Bytes>>, purpose: Purpose) -> Result<Reply, SendError> {
        if let Some(mut connection) = self.take_kept() {
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok(Reply { connection, response }),
                Err(mut error) => match error.take_message() {
                    // Closed meanwhile; nothing of it was sent.
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Broken(error.into_error())),
                },
            }
        }
        let mut connection = self.connect(purpose).await?;
        let response = connection.sender.send_request(request).await.map_err(SendError::Broken)?;
        Ok(Reply { connection, response })
    }

    fn take_kept(&self) -> Option<Connection> {
        let (connection, since) = self.kept.take()?;
        (since.elapsed() < REUSE && connection.sender.is_ready()).then_some(connection)
    }

    async fn connect(&self, purpose: Purpose) -> Result<Connection, SendError> {
        let stream = self.reach.connect(purpose).await.map_err(SendError::Unreachable)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES).max_headers(HEAD_FIELDS);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(SendError::Broken)?;
        let task = tokio::task::spawn_local(async move {
            // Whoever waits for an answer is told.
            let _ = connection.await;
        });
        Ok(Connection { sender, task })
    }

    /// Reads an answer to its end, if that comes soon, and keeps its connection.
    pub fn finish(self: &Rc<Self>, mut reply: Reply) {
        let Ok(place) = self.resting.clone().try_acquire_owned() else { return };
        let connections = self.clone();
        tokio::task::spawn_local(async move {
            let read = async { while let Some(Ok(_)) = reply.chunk().await {} };
            if timeout(REST, read).await.is_ok() {
                *connections.kept.borrow_mut() = Some((reply.connection, Instant::now()));
            }
            drop(place);
        });
    }
}

impl Reply {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn header(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.response.headers().get(name)
    }

    pub fn kind(&self) -> Kind {
        let content = self.header(&CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media = content.split(';').next().unwrap_or_default().trim();
        if self.status().is_success() && media.eq_ignore_ascii_case(STREAM) {
            Kind::Stream
        } else {
            Kind::Whole
        }
    }

    /// The next piece of the body; nothing at its end. May be cancelled.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.response.body_mut().frame().await? {
                // Trailers say nothing.
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(_) => continue,
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The whole body.
    pub async fn whole(&mut self, limit: usize) -> Result<Vec<u8>, BodyError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await {
            let chunk = chunk.map_err(BodyError::Broken)?;
            if body.len() + chunk.len() > limit {
                return Err(BodyError::TooLong { limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}
