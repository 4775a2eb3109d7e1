//! How a session begins: its place, its machine, its first answer.

use super::Gateway;
use crate::{
    Backend,
    body::Room,
    headers::{self, Accept},
    refusal::Refusal,
    respond::{self, Response},
    session::{First, Over, Pending, Session, drive},
};
use casemate_mcp::{Envelope, Message, object};
use hyper::{StatusCode, header::HeaderValue};
use std::rc::Rc;

/// How many random bytes a session's id is made of.
const ID_BYTES: usize = 20;

impl<B: Backend> Gateway<B> {
    /// Begins a session with its `initialize`.
    pub(super) async fn begin(
        self: &Rc<Self>,
        server: &str,
        accept: Accept,
        message: Message,
        room: Room,
    ) -> Result<Response, Refusal> {
        if self.draining.get() {
            return Err(Refusal::Draining);
        }
        if self.sessions.borrow().len() >= self.limits.sessions {
            return Err(Refusal::TooManySessions(self.limits.sessions));
        }
        let place = self.queue.enter(server, &self.limits)?;
        let id = session_id()?;
        let (session, outbox) = Session::new(server.to_owned(), Rc::clone(&self.limits));
        let mut pending = session.register(&message, false)?;
        self.sessions.borrow_mut().insert(id.clone(), Rc::clone(&session));
        let (gateway, led, name) = (Rc::clone(self), Rc::clone(&session), id.clone());
        {
            let mut tasks = self.led.borrow_mut();
            while tasks.try_join_next().is_some() {}
            tasks.spawn_local(async move {
                let _gone = Gone { gateway: &*gateway, name };
                drive(Rc::clone(&gateway.backend), led, outbox, &gateway.starts, place).await;
            });
        }
        let mut beginning = Beginning(Some(session));
        pending.send(message, room).await?;
        let First::Answer(answer) = pending.first().await else { return Err(Refusal::UnknownSession) };
        beginning.end(&answer, pending, accept, &id)
    }
}

/// A session is led no more, however that came.
struct Gone<'a, B> {
    gateway: &'a Gateway<B>,
    name: String,
}

impl<B> Drop for Gone<'_, B> {
    fn drop(&mut self) {
        self.gateway.sessions.borrow_mut().remove(&self.name);
        self.gateway.gone.notify_waiters();
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

pub(super) fn session_id() -> Result<String, Refusal> {
    let mut bytes = [0; ID_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| Refusal::Random)?;
    Ok(hex::encode(bytes))
}
