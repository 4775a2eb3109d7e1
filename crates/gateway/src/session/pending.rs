//! A request whose answer is waited for: at first as a document, then, if it takes longer or more comes before
//! it, as a stream.

use super::{
    EventBody, Session, Watching,
    streams::{Read, StreamId, Ticket},
};
use crate::{body::Room, refusal::Refusal};
use casemate_mcp::{Id, Message};
use hyper::body::Bytes;
use std::{future::poll_fn, rc::Rc, task::Poll};

/// A request that was taken. Dropping it leaves the server to answer nobody; one that was not sent is as if it
/// had never been.
pub struct Pending {
    session: Rc<Session>,
    id: Id,
    sent: bool,
    stream: StreamId,
    ticket: Ticket,
    watching: Option<Watching>,
}

/// What comes first.
#[derive(Debug, PartialEq, Eq)]
pub enum First {
    /// The answer, and nothing else.
    Answer(Bytes),
    /// Something before it.
    More,
    /// No answer: the request was not sent.
    Nothing,
}

impl Pending {
    pub(super) fn new(session: Rc<Session>, id: Id, (stream, ticket): (StreamId, Ticket)) -> Self {
        let watching = Some(session.watch());
        Self { session, id, sent: false, stream, ticket, watching }
    }

    /// Sends the request. Cancelling sends nothing.
    pub async fn send(&mut self, message: Message, room: Room) -> Result<(), Refusal> {
        self.session.send(message, room).await?;
        self.sent = true;
        Ok(())
    }

    /// Waits for what comes first, and leaves it where it is. May be cancelled.
    pub async fn first(&mut self) -> First {
        let peek = |waker: &_| self.session.state.borrow_mut().streams.peek(self.stream, self.ticket, waker);
        poll_fn(|context| match peek(context.waker()) {
            Read::Event { data, last: true, .. } => Poll::Ready(First::Answer(data)),
            Read::Event { .. } => Poll::Ready(First::More),
            Read::End => Poll::Ready(First::Nothing),
            Read::Wait => Poll::Pending,
        })
        .await
    }

    /// The body of an answer that is a stream, from its first event.
    pub fn into_body(mut self) -> EventBody {
        let primer = self.session.primed.get().then_some(0);
        let watching = self.watching.take();
        EventBody::new(Rc::clone(&self.session), (self.stream, self.ticket), primer, watching)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.sent {
            self.session.change(|state| state.take_back(&self.id, self.stream));
        }
        // A client that was told no event's name cannot ask for the rest.
        if self.watching.is_some() {
            self.session.forget(self.stream);
        }
    }
}
