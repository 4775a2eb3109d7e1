//! The gateway: which request is answered by whom, and the life of all sessions together.

use crate::{
    Backend, Guard, Limits, body, connection, headers,
    headers::Accept,
    refusal::Refusal,
    respond::{self, Response},
    routes::Route,
    session::{AttachError, First, OWN, Over, Pending, Session, drive, read_event_id},
};
use casemate_mcp::{Envelope, Message, object};
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
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::{JoinSet, spawn_local},
    time::{Instant, sleep, timeout_at},
};

/// How many random bytes a session's id is made of.
const ID_BYTES: usize = 20;

/// How long nothing is accepted where that failed: descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// How long connections may take to end once all is answered.
const LAST_BYTES: Duration = Duration::from_secs(1);

const METHODS: &str = "POST, GET, DELETE";

/// What pages may send beside what every page may.
const FIELDS: &str = "content-type, accept, mcp-session-id, mcp-protocol-version, last-event-id";

/// All servers, as clients meet them.
pub struct Gateway<B> {
    backend: Rc<B>,
    guard: Guard,
    limits: Rc<Limits>,
    sessions: RefCell<HashMap<String, Rc<Session>>>,
    starts: Arc<Semaphore>,
    /// How many sessions wait for a machine's turn to start.
    queued: Cell<usize>,
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
            starts: Arc::new(Semaphore::new(limits.starts)),
            queued: Cell::new(0),
            bodies: Arc::new(Semaphore::new(limits.bodies_bytes / body::UNIT)),
            draining: Cell::new(false),
            gone: Notify::new(),
            limits: Rc::new(limits),
        })
    }

    /// Serves a listener until `stop` resolves; then takes no more requests, waits until those that are open
    /// are answered or [`Limits::drain`] has passed, and ends all sessions. Nothing of their machines is left
    /// when this returns. Needs a [`LocalSet`](tokio::task::LocalSet).
    pub async fn serve(self: Rc<Self>, listener: TcpListener, stop: impl Future<Output = ()>) {
        let (close, closing) = watch::channel(false);
        let mut connections = JoinSet::new();
        let stopped = async {
            stop.await;
            self.drain().await;
        };
        tokio::select! {
            () = self.accept(&listener, &mut connections, &closing) => {}
            () = stopped => {}
        }
        drop(listener);
        close.send_replace(true);
        self.end_sessions().await;
        let until = Instant::now() + LAST_BYTES;
        while let Ok(Some(_)) = timeout_at(until, connections.join_next()).await {}
    }

    pub(crate) fn limits(&self) -> &Rc<Limits> {
        &self.limits
    }

    async fn accept(
        self: &Rc<Self>,
        listener: &TcpListener,
        connections: &mut JoinSet<()>,
        closing: &watch::Receiver<bool>,
    ) {
        let room = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            // Never closed.
            let permit = Arc::clone(&room).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Answers are small and waited for.
                    let _ = stream.set_nodelay(true);
                    let served = connection::serve(Rc::clone(self), stream, closing.clone());
                    connections.spawn_local(async move {
                        served.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    self.backend.note(&format!("cannot accept a connection: {error}"));
                    sleep(PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }

    /// Takes no more requests, and waits for the answers to those that are open. What servers ask their clients
    /// meanwhile can still be answered.
    async fn drain(&self) {
        self.draining.set(true);
        let until = Instant::now() + self.limits.drain;
        let is_open = || self.sessions.borrow().values().any(|session| session.open_requests() > 0);
        while is_open() && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends all sessions, and waits until they are gone.
    pub(crate) async fn end_sessions(&self) {
        self.draining.set(true);
        let sessions: Vec<Rc<Session>> = self.sessions.borrow().values().cloned().collect();
        sessions.into_iter().for_each(|session| session.finish(Over::Shutdown));
        self.until(|sessions| sessions.is_empty()).await;
    }

    /// Waits until the sessions are as wished, which they become by some of them going.
    async fn until(&self, wished: impl Fn(&HashMap<String, Rc<Session>>) -> bool) {
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            gone.as_mut().enable();
            if wished(&self.sessions.borrow()) {
                return;
            }
            gone.await;
        }
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
        let (bytes, room) = body::read(body, &self.limits, &self.bodies).await?;
        let message = Message::parse(bytes)?;
        let id = match message.envelope() {
            Envelope::Request { .. } => message.raw_id().map(str::to_owned),
            _ => None,
        };
        let answered = self.take(server, &head.headers, accept, message, room).await;
        Ok(answered.unwrap_or_else(|refusal| refusal.response(id.as_deref())))
    }

    /// Takes a message of a client.
    async fn take(
        self: &Rc<Self>,
        server: &str,
        headers: &HeaderMap,
        accept: Accept,
        message: Message,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Response, Refusal> {
        headers::check_revision(headers, Some(&message))?;
        let named = headers::session(headers)?;
        let envelope = message.envelope();
        let is_request = matches!(envelope, Envelope::Request { .. });
        let is_initialize = matches!(envelope, Envelope::Request { method: "initialize", .. });
        let session = match named {
            None if is_initialize => return self.begin(server, accept, message, room).await,
            None => return Err(Refusal::NoSession),
            Some(id) => self.session(server, id)?,
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
        session.send(message, room).await?;
        // What takes its time is told that it is being worked on, and can be come back to.
        let first = match (accept.json, accept.stream) {
            (true, true) => tokio::time::timeout(self.limits.quick, pending.first()).await.ok(),
            (true, false) => Some(pending.first().await),
            (false, _) => None,
        };
        match first {
            Some(First::Answer(answer)) => Ok(respond::json(StatusCode::OK, answer)),
            Some(First::Nothing) => Err(Refusal::UnknownSession),
            Some(First::More) | None => Ok(respond::events(pending.into_body())),
        }
    }

    /// Begins a session with its `initialize`.
    async fn begin(
        self: &Rc<Self>,
        server: &str,
        accept: Accept,
        message: Message,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Response, Refusal> {
        if self.draining.get() {
            return Err(Refusal::Draining);
        }
        if self.sessions.borrow().len() >= self.limits.sessions {
            return Err(Refusal::TooManySessions(self.limits.sessions));
        }
        let start = Arc::clone(&self.starts).try_acquire_owned().ok();
        if start.is_none() && self.queued.get() >= self.limits.queue {
            return Err(Refusal::TooManyStarts(self.limits.queue));
        }
        let id = session_id()?;
        let (session, outgoing) = Session::new(server.to_owned(), Rc::clone(&self.limits));
        let mut pending = session.register(&message, false)?;
        session.send(message, room).await?;
        self.sessions.borrow_mut().insert(id.clone(), Rc::clone(&session));
        if start.is_none() {
            self.queued.set(self.queued.get() + 1);
        }
        let (gateway, led, name) = (Rc::clone(self), Rc::clone(&session), id.clone());
        spawn_local(async move {
            if let Some(start) = gateway.turn(start).await {
                drive(Rc::clone(&gateway.backend), led, outgoing, start).await;
            }
            gateway.sessions.borrow_mut().remove(&name);
            gateway.gone.notify_waiters();
        });
        let mut beginning = Beginning(Some(session));
        let First::Answer(answer) = pending.first().await else { return Err(Refusal::UnknownSession) };
        beginning.end(&answer, pending, accept, &id)
    }

    /// Waits for the right to start a machine, for one that is counted as queued.
    async fn turn(&self, start: Option<OwnedSemaphorePermit>) -> Option<OwnedSemaphorePermit> {
        if start.is_some() {
            return start;
        }
        let start = Arc::clone(&self.starts).acquire_owned().await;
        self.queued.set(self.queued.get() - 1);
        start.ok()
    }

    fn get(self: &Rc<Self>, server: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
        if !Accept::read(headers).stream {
            return Err(Refusal::NotAcceptable { wanted: "text/event-stream" });
        }
        headers::check_revision(headers, None)?;
        let session = self.session(server, headers::session(headers)?.ok_or(Refusal::NoSession)?)?;
        if self.draining.get() {
            return Err(Refusal::Draining);
        }
        let (stream, after) = match headers::last_event(headers)? {
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
        session.cloned().ok_or(Refusal::UnknownSession)
    }
}

/// A session that begins; dropped too early it is over.
struct Beginning(Option<Rc<Session>>);

impl Beginning {
    /// Gives the client its answer, and the session's id with it if there is a session.
    fn end(
        &mut self,
        answer: &[u8],
        pending: Pending,
        accept: Accept,
        id: &str,
    ) -> Result<Response, Refusal> {
        let Some(session) = &self.0 else { return Err(Refusal::UnknownSession) };
        if let Some(refusal) = session.over().as_ref().and_then(Refusal::of) {
            return Err(refusal);
        }
        let agreed = if session.over().is_none() { agreed_revision(answer) } else { None };
        if let Some(revision) = &agreed {
            session.initialized(revision);
            self.0 = None;
        }
        let mut response = match accept.json {
            true => respond::json(StatusCode::OK, answer.to_vec()),
            false => respond::events(pending.into_body()),
        };
        if agreed.is_some() {
            let id = HeaderValue::from_str(id).map_err(|_| Refusal::Random)?;
            response.headers_mut().insert(headers::SESSION, id);
        }
        Ok(response)
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            session.finish(Over::Abandoned);
        }
    }
}

/// The revision that an answer to `initialize` agrees on; `None` where it is a refusal.
fn agreed_revision(answer: &[u8]) -> Option<String> {
    let message = Message::parse(answer).ok()?;
    let Envelope::Response { result, .. } = message.envelope() else { return None };
    let [version] = object::find(result, ["protocolVersion"]).ok()?;
    // A server that says none is led as it wishes to be.
    Some(version.and_then(|version| serde_json::from_str(version.get()).ok()).unwrap_or_default())
}

fn session_id() -> Result<String, Refusal> {
    let mut bytes = [0; ID_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| Refusal::Random)?;
    Ok(hex::encode(bytes))
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
