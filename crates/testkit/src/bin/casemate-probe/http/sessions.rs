//! Sessions of the legacy era (2025-11-25, transports, session management).

use super::mailbox::Mailbox;
use super::request::Request;
use super::response::Response;
use crate::conversation::{Conversation, Outlet};
use crate::lifecycle::Phase;
use crate::server::Server;
use crate::signal::lock;
use crate::tools::{fill_random, hex};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The most sessions at once; more are refused until some end.
const SESSIONS: usize = 1024;

/// Random bits of a session's id.
const ID_BITS: usize = 256;

/// The header that names a session.
pub const HEADER: &str = "mcp-session-id";

/// One client's session.
pub struct Session {
    /// Its id.
    pub id: String,
    /// What it says and is told.
    pub conversation: Arc<Conversation>,
    /// What the server says by itself, for the stream of `GET`.
    pub push: Arc<Mailbox>,
    attached: AtomicBool,
}

impl Session {
    /// A session that waits for its handshake, and is not known to anybody yet.
    pub fn new(server: &Arc<Server>) -> io::Result<Arc<Self>> {
        let mut id = [0; ID_BITS / 8];
        fill_random(&mut id)?;
        let push = Arc::new(Mailbox::new()?);
        let conversation = Conversation::new(server.clone(), Phase::Legacy, push.clone());
        Ok(Arc::new(Self { id: hex(&id), conversation, push, attached: AtomicBool::new(false) }))
    }

    /// Takes the one place of a stream; `false` if it is taken.
    pub fn attach(&self) -> bool {
        !self.attached.swap(true, Ordering::Relaxed)
    }

    /// Gives the place back.
    pub fn detach(&self) {
        self.attached.store(false, Ordering::Relaxed);
    }
}

/// The sessions that are known by their ids.
#[derive(Default)]
pub struct Sessions(Mutex<BTreeMap<String, Arc<Session>>>);

impl Sessions {
    /// Makes a session known; `false` if there are too many.
    pub fn add(&self, session: &Arc<Session>) -> bool {
        let mut sessions = lock(&self.0);
        let room = sessions.len() < SESSIONS;
        if room {
            sessions.insert(session.id.clone(), session.clone());
        }
        room
    }

    /// The session that a request names: 400 if it names none, 404 if there is no such session.
    pub fn of(&self, request: &Request) -> Result<Arc<Session>, Response> {
        let id = request.header(HEADER).ok_or_else(|| Response::text(400, "Mcp-Session-Id is missing"))?;
        let session = lock(&self.0).get(id).cloned();
        session.ok_or_else(|| Response::text(404, "no such session"))
    }

    /// Ends a session with everything that runs in it.
    pub fn end(&self, session: &Session) {
        lock(&self.0).remove(&session.id);
        session.conversation.cancel_all();
        session.push.abandon();
    }
}
