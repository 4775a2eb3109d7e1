//! The task that owns a session's machine: starts it, carries messages, notices idleness and the end.

use super::{Outgoing, Over, Session};
use crate::backend::{Backend, Machine};
use casemate_mcp::framing::{Incoming, MessageReader, ReadError, write_message};
use std::rc::Rc;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep_until, timeout},
};

/// Leads a session from its start to its end; when this returns, nothing of its machine is left. Not to be
/// cancelled: that would leave a machine's supervisor to end by itself, and nobody to reap it. `start` is the right to start
/// a machine now.
pub async fn drive<B: Backend>(
    backend: Rc<B>,
    session: Rc<Session>,
    outgoing: mpsc::Receiver<Outgoing>,
    start: OwnedSemaphorePermit,
) {
    // Whoever wanted it may have left while it had to wait.
    if session.over().is_some() {
        return;
    }
    let opened = backend.open(session.server()).await;
    drop(start);
    let mut machine = match opened {
        Ok(machine) => machine,
        Err(error) => {
            backend.note(&format!("{}: no session: {error}", session.server()));
            return session.finish(Over::NotOpened(error));
        }
    };
    if session.over().is_none() {
        let over = match machine.connect().await {
            Ok(stream) => match converse(stream, &session, outgoing).await {
                Over::Ended(None) => Over::Ended(machine.end().await),
                over => over,
            },
            Err(error) => Over::NotOpened(error),
        };
        if matches!(over, Over::Ended(_) | Over::Unreadable(_) | Over::NotOpened(_)) {
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

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    session: &Session,
    outgoing: mpsc::Receiver<Outgoing>,
) -> Over {
    let (from_server, to_server) = tokio::io::split(stream);
    tokio::select! {
        over = hear(from_server, session) => over,
        over = speak(to_server, session, outgoing) => over,
        over = told(session) => over,
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
            session.state.borrow_mut().streams.cut_slowest();
        }
    }
}

async fn speak(
    mut stream: impl AsyncWrite + Unpin,
    session: &Session,
    mut outgoing: mpsc::Receiver<Outgoing>,
) -> Over {
    while let Some(message) = outgoing.recv().await {
        if let Some(id) = &message.request
            && let Some(open) = session.state.borrow_mut().open.get_mut(id)
        {
            // From the first byte on: a server may act on a message before it has read all of it.
            open.delivered = true;
        }
        if write_message(&mut stream, &message.text).await.is_err() {
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

async fn idle(session: &Session) -> Over {
    loop {
        sleep_until(session.idle_until()).await;
        if session.idle_until() <= Instant::now() {
            return Over::Idle;
        }
    }
}
