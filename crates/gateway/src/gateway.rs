//! The gateway: which request is answered by whom, and the life of all sessions together.

mod begin;
mod serving;

use crate::{
    Backend, Guard, Limits,
    body::{self, Room, Rooms},
    headers,
    headers::Accept,
    queue::Queue,
    refusal::Refusal,
    respond::{self, Response},
    routes::Route,
    session::{AttachError, First, OWN, Over, Session, read_event_id},
};
use casemate_mcp::{Envelope, Message};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::Incoming,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue, VARY,
    },
};
use serde_json::json;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
};

const METHODS: &str = "POST, GET, DELETE";

/// What pages may send beside what every page may.
const FIELDS: &str = "content-type, accept, mcp-session-id, mcp-protocol-version, last-event-id";

/// All servers, as clients meet them.
pub struct Gateway<B> {
    backend: Rc<B>,
    guard: Guard,
    limits: Rc<Limits>,
    sessions: RefCell<HashMap<String, Rc<Session>>>,
    /// The tasks that lead them.
    led: RefCell<JoinSet<()>>,
    starts: Semaphore,
    /// Those whose machine has not started.
    queue: Queue,
    bodies: Arc<Semaphore>,
    draining: Cell<bool>,
    /// Told when a session is gone.
    gone: Notify,
}

impl<B: Backend> Gateway<B> {
    /// A gateway without sessions.
    pub fn new(backend: B, guard: Guard, limits: Limits) -> Rc<Self> {
        Rc::new(Self {
            backend: Rc::new(backend),
            guard,
            sessions: RefCell::default(),
            led: RefCell::default(),
            starts: Semaphore::new(limits.starts),
            queue: Queue::default(),
            bodies: Arc::new(Semaphore::new(limits.bodies_bytes / body::UNIT)),
            draining: Cell::new(false),
            gone: Notify::new(),
            limits: Rc::new(limits),
        })
    }

    pub(crate) fn limits(&self) -> &Rc<Limits> {
        &self.limits
    }

    /// Answers one request.
    pub(crate) async fn answer(self: &Rc<Self>, request: Request<Incoming>) -> Response {
        let origin = match self.guard.check(request.uri(), request.headers()) {
            Ok(origin) => origin.cloned(),
            Err(refusal) => return refusal.response(None),
        };
        let mut response = match (request.method(), &origin) {
            (&Method::OPTIONS, Some(_)) => preflight(),
            _ => self.route(request).await.unwrap_or_else(|refusal| refusal.response(None)),
        };
        if let Some(origin) = origin {
            let fields = response.headers_mut();
            fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("mcp-session-id"));
            fields.insert(VARY, HeaderValue::from_static("origin"));
        }
        response
    }

    async fn route(self: &Rc<Self>, request: Request<Incoming>) -> Result<Response, Refusal> {
        let path = request.uri().path().to_owned();
        let server = match Route::of(&path) {
            Route::Health => return look(&request, || (StatusCode::OK, json!({ "status": "ok" }))),
            Route::Ready => return look(&request, || self.readiness()),
            Route::AllServers => return Err(Refusal::AllServers),
            Route::OldTransport => return Err(Refusal::OldTransport),
            Route::Later => return Err(Refusal::NotBuilt(path)),
            Route::Unknown => return Err(Refusal::NoSuchPath),
            Route::Server(name) if !self.backend.knows(name) => {
                return Err(Refusal::NoSuchServer(name.to_owned()));
            }
            Route::Server(name) => name,
        };
        match *request.method() {
            Method::POST => self.post(server, request).await,
            Method::GET => self.get(server, request.headers()),
            Method::DELETE => self.delete(server, request.headers()).await,
            _ => Err(Refusal::Method { allow: METHODS }),
        }
    }

    fn readiness(&self) -> (StatusCode, serde_json::Value) {
        let sessions = self.sessions.borrow().len();
        match self.draining.get() {
            false => (StatusCode::OK, json!({ "status": "ready", "sessions": sessions })),
            true => (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "ending", "sessions": sessions })),
        }
    }

    async fn post(self: &Rc<Self>, server: &str, request: Request<Incoming>) -> Result<Response, Refusal> {
        let (head, body) = request.into_parts();
        let accept = Accept::read(&head.headers);
        if !accept.json && !accept.stream {
            return Err(Refusal::NotAcceptable { wanted: "application/json and text/event-stream" });
        }
        if !headers::sends_json(&head.headers) {
            return Err(Refusal::MediaType);
        }
        // What is refused by its head alone is read as far as it may be short, for its id.
        let session = self.addressed(server, &head.headers);
        let (limit, of_session) = match &session {
            Ok(Some(session)) => (self.limits.body_bytes, Some(session.bodies())),
            _ => (self.limits.first_body_bytes, None),
        };
        let rooms = Rooms { all: &self.bodies, session: of_session };
        let (bytes, room) = match body::read(body, limit, self.limits.body_time, rooms).await {
            Ok(read) => read,
            Err(refusal) => return Err(session.err().unwrap_or(refusal)),
        };
        let message = Message::parse(bytes)?;
        let id = match message.envelope() {
            Envelope::Request { .. } => message.raw_id().map(str::to_owned),
            _ => None,
        };
        let answered = match session {
            Ok(session) => self.take(server, &head.headers, session, accept, message, room).await,
            Err(refusal) => Err(refusal),
        };
        Ok(answered.unwrap_or_else(|refusal| refusal.response(id.as_deref())))
    }

    /// The session that a head names, if it names one.
    fn addressed(&self, server: &str, headers: &HeaderMap) -> Result<Option<Rc<Session>>, Refusal> {
        headers::check_revision(headers, None)?;
        headers::session(headers)?.map(|id| self.session(server, id)).transpose()
    }

    /// Takes a message of a client.
    async fn take(
        self: &Rc<Self>,
        server: &str,
        headers: &HeaderMap,
        session: Option<Rc<Session>>,
        accept: Accept,
        message: Message,
        room: Room,
    ) -> Result<Response, Refusal> {
        headers::check_revision(headers, Some(&message))?;
        let envelope = message.envelope();
        let is_request = matches!(envelope, Envelope::Request { .. });
        let is_initialize = matches!(envelope, Envelope::Request { method: "initialize", .. });
        let session = match session {
            None if is_initialize => return self.begin(server, accept, message, room).await,
            None => return Err(Refusal::NoSession),
            // It may have ended while the body came.
            Some(session) if !session.is_usable() => return Err(Refusal::UnknownSession),
            Some(session) => session,
        };
        if is_initialize {
            return Err(Refusal::SecondInitialize);
        }
        if !is_request {
            session.send(message, room).await?;
            return Ok(respond::empty(StatusCode::ACCEPTED));
        }
        if self.draining.get() {
            return Err(Refusal::Draining);
        }
        let mut pending = session.register(&message, accept.stream)?;
        pending.send(message, room).await?;
        // What takes its time is told that it is being worked on, and can be come back to.
        let first = match (accept.json, accept.stream) {
            (true, true) => tokio::time::timeout(self.limits.quick, pending.first()).await.ok(),
            (true, false) => {
                let document = tokio::time::timeout(self.limits.document, pending.first()).await;
                Some(document.map_err(|_| Refusal::NoAnswer(self.limits.document))?)
            }
            (false, _) => None,
        };
        match first {
            Some(First::Answer(answer)) => Ok(respond::json(StatusCode::OK, answer)),
            Some(First::Nothing) => Err(Refusal::UnknownSession),
            Some(First::More) | None => Ok(respond::events(pending.into_body())),
        }
    }

    fn get(self: &Rc<Self>, server: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
        if !Accept::read(headers).stream {
            return Err(Refusal::NotAcceptable { wanted: "text/event-stream" });
        }
        headers::check_revision(headers, None)?;
        let session = self.session(server, headers::session(headers)?.ok_or(Refusal::NoSession)?)?;
        let (stream, after) = match headers::last_event(headers)? {
            // What was asked before the end can still be read.
            None if self.draining.get() => return Err(Refusal::Draining),
            None => (OWN, None),
            Some(name) => {
                let (stream, number) = read_event_id(name).ok_or(Refusal::UnknownEvent)?;
                (stream, Some(number))
            }
        };
        let body = session.attach(stream, after).map_err(|error| match error {
            AttachError::Taken => Refusal::StreamTaken,
            AttachError::Unknown => Refusal::UnknownEvent,
        })?;
        Ok(respond::events(body))
    }

    async fn delete(&self, server: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
        headers::check_revision(headers, None)?;
        let id = headers::session(headers)?.ok_or(Refusal::NoSession)?;
        self.session(server, id)?.finish(Over::Deleted);
        self.until(|sessions| !sessions.contains_key(id)).await;
        Ok(respond::empty(StatusCode::NO_CONTENT))
    }

    /// The session of that id, with that server.
    fn session(&self, server: &str, id: &str) -> Result<Rc<Session>, Refusal> {
        let sessions = self.sessions.borrow();
        let session = sessions.get(id).filter(|session| session.is_usable() && session.server() == server);
        let session = session.cloned().ok_or(Refusal::UnknownSession)?;
        session.named();
        Ok(session)
    }
}

/// Answers who only looks.
fn look(
    request: &Request<Incoming>,
    state: impl FnOnce() -> (StatusCode, serde_json::Value),
) -> Result<Response, Refusal> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal::Method { allow: "GET" });
    }
    let (status, state) = state();
    Ok(respond::json(status, state.to_string()))
}

/// Tells a browser what a page of an allowed origin may send (Fetch, "CORS-preflight request").
fn preflight() -> Response {
    let mut response = respond::empty(StatusCode::NO_CONTENT);
    let fields = response.headers_mut();
    fields.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    fields.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(FIELDS));
    response
}

#[cfg(test)]
mod tests;
