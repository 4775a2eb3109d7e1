//! The task that owns a session's machine: starts it, carries messages, notices idleness and the end.

use super::{Outgoing, Over, Session};
use crate::{
    backend::{Backend, Machine, OpenError},
    queue::Place,
};
use casemate_mcp::framing::{Incoming, MessageReader, ReadError, write_message};
use hyper::body::Bytes;
use std::{rc::Rc, str};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, sleep_until, timeout},
};

/// What is to be written to a server.
pub struct Outbox {
    /// What its client sends.
    pub(super) messages: mpsc::Receiver<Outgoing>,
    /// What it is answered in its client's place.
    pub(super) replies: mpsc::Receiver<Bytes>,
}

/// Leads a session from its start to its end; when this returns, nothing of its machine is left. Cancelling is for
/// the end of the process alone: a machine ends with its owner, but nobody reaps its supervisor then. A permit
/// of `starts` is held while a machine starts, and `place`, which counts those that have none, until then.
pub async fn drive<B: Backend>(
    backend: Rc<B>,
    session: Rc<Session>,
    outbox: Outbox,
    starts: &Semaphore,
    place: Place,
) {
    let Some(opened) = open(&*backend, &session, starts, &place).await else { return };
    drop(place);
    let mut machine = match opened {
        Ok(machine) => machine,
        Err(error) => {
            if let OpenError::NoRoom(_) = &error {
                backend.note(&format!("{}: no session: {error}", session.server()));
            }
            return session.finish(Over::NotOpened(error));
        }
    };
    if session.over().is_none() {
        let over = match machine.connect().await {
            Ok(stream) => match converse(stream, &session, outbox).await {
                Over::Ended(None) => Over::Ended(machine.end().await),
                over => over,
            },
            Err(error) => Over::NotOpened(error),
        };
        if matches!(over, Over::Ended(_) | Over::Silent(_) | Over::Unreadable(_) | Over::NotOpened(_)) {
            backend.note(&format!("{}: session over: {}", session.server(), over.sentence()));
        }
        session.finish(over);
        let dropped = session.state.borrow().dropped;
        if dropped > 0 {
            backend.note(&format!("{}: {dropped} lines of the server were for nobody", session.server()));
        }
    }
    machine.stop().await;
}

/// Starts the session's machine, if the session is not over before that begins.
async fn open<B: Backend>(
    backend: &B,
    session: &Session,
    starts: &Semaphore,
    place: &Place,
) -> Option<Result<B::Machine, OpenError>> {
    let turn = tokio::select! {
        turn = place.turn() => turn,
        _ = told(session) => return None,
    };
    let planned = tokio::select! {
        planned = backend.plan(session.server()) => planned,
        // What is made once for all sessions is finished for the next one, but not where there will be none.
        () = ending(session) => return None,
    };
    drop(turn);
    let plan = match planned {
        Ok(plan) => plan,
        Err(error) => return Some(Err(error)),
    };
    let start = tokio::select! {
        start = starts.acquire() => start,
        _ = told(session) => return None,
    };
    if session.over().is_some() {
        return None;
    }
    let opened = backend.open(plan).await;
    drop(start);
    Some(opened)
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(stream: S, session: &Session, outbox: Outbox) -> Over {
    let (from_server, to_server) = tokio::io::split(stream);
    tokio::select! {
        over = hear(from_server, session) => over,
        over = speak(to_server, session, outbox) => over,
        over = told(session) => over,
        over = silence(session) => over,
        over = idle(session) => over,
    }
}

/// Takes what the server says, as fast as it is read.
async fn hear(stream: impl AsyncRead + Unpin, session: &Session) -> Over {
    let mut reader = MessageReader::new(stream);
    loop {
        match reader.next().await {
            Ok(Some(Incoming::Message(message))) => {
                session.deliver(message);
                room(session).await;
            }
            Ok(Some(Incoming::Rejected(_))) => session.state.borrow_mut().dropped += 1,
            // The server's process, or its machine, tells more than the stream does.
            Ok(None) | Err(ReadError::Io(_)) => return Over::Ended(None),
            Err(error @ ReadError::TooLong { .. }) => return Over::Unreadable(error.to_string()),
        }
    }
}

/// Waits until clients have read enough; who does not read for too long is cut off.
async fn room(session: &Session) {
    let is_full = || session.state.borrow().streams.is_full();
    while is_full() {
        let read = async {
            while is_full() {
                session.room.notified().await;
            }
        };
        if timeout(session.limits.slow_reader, read).await.is_err() {
            session.change(|state| state.streams.cut_slowest());
        }
    }
}

async fn speak(mut stream: impl AsyncWrite + Unpin, session: &Session, mut outbox: Outbox) -> Over {
    loop {
        let written = tokio::select! {
            Some(reply) = outbox.replies.recv() => {
                // What was composed here is text.
                write_message(&mut stream, str::from_utf8(&reply).unwrap_or_default()).await
            }
            Some(message) = outbox.messages.recv() => {
                if let Some(id) = &message.request
                    && let Some(open) = session.state.borrow_mut().open.get_mut(id)
                {
                    // From the first byte on: a server may act on a message before it has read all of it.
                    open.delivered = true;
                }
                write_message(&mut stream, &message.text).await
            }
            else => break,
        };
        if written.is_err() {
            break;
        }
    }
    // A server that reads no more may still speak; its end is heard where it is listened to.
    std::future::pending().await
}

async fn told(session: &Session) -> Over {
    loop {
        let told = session.ended.notified();
        if let Some(over) = session.over() {
            return over;
        }
        told.await;
    }
}

/// Resolves when the session is over because the gateway ends.
async fn ending(session: &Session) {
    if told(session).await != Over::Shutdown {
        std::future::pending().await
    }
}

/// Waits until a server has had its time for `initialize`.
async fn silence(session: &Session) -> Over {
    let time = session.limits.initialize;
    sleep(time).await;
    if session.initialized.get() { std::future::pending().await } else { Over::Silent(time) }
}

async fn idle(session: &Session) -> Over {
    loop {
        sleep_until(session.idle_until()).await;
        if session.idle_until() <= Instant::now() {
            return Over::Idle;
        }
    }
}
