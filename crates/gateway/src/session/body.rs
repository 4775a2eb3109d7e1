//! The body of an answer that is a stream of events (WHATWG HTML, "Server-sent events").

use super::{
    Session, Watching,
    streams::{Read, StreamId, Ticket},
};
use casemate_mcp::framing::one_line;
use hyper::body::{Body, Bytes, Frame};
use std::{
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// Reads one stream of a session until it ends. Dropping it leaves the rest for who comes back.
pub struct EventBody {
    session: Rc<Session>,
    stream: StreamId,
    ticket: Ticket,
    /// An event without data that only has a name, so that a client can come back before the first message.
    primer: Option<u64>,
    rest: Pin<Box<Sleep>>,
    _watching: Option<Watching>,
}

impl EventBody {
    /// Reads `stream`. `primer` is the number of the event that the client is told to have seen.
    pub(super) fn new(
        session: Rc<Session>,
        (stream, ticket): (StreamId, Ticket),
        primer: Option<u64>,
        watching: Option<Watching>,
    ) -> Self {
        let rest = Box::pin(sleep_until(Instant::now() + session.limits.keep_alive));
        Self { session, stream, ticket, primer, rest, _watching: watching }
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if let Some(number) = this.primer.take() {
            this.session.change(|state| state.streams.name(this.stream));
            return frame(format!("id: {}-{number}\ndata:\n\n", this.stream));
        }
        match this.session.read(this.stream, this.ticket, context.waker()) {
            Read::Event { number, data, .. } => {
                this.rest.as_mut().reset(Instant::now() + this.session.limits.keep_alive);
                frame(event(this.stream, number, &data))
            }
            Read::End => Poll::Ready(None),
            Read::Wait => match this.rest.as_mut().poll(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => {
                    this.rest.as_mut().reset(Instant::now() + this.session.limits.keep_alive);
                    frame(": still here\n\n".to_owned())
                }
            },
        }
    }
}

impl Drop for EventBody {
    fn drop(&mut self) {
        self.session.detach(self.stream, self.ticket);
    }
}

fn frame(text: String) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
    Poll::Ready(Some(Ok(Frame::data(text.into()))))
}

fn event(stream: StreamId, number: u64, data: &[u8]) -> String {
    let data = String::from_utf8_lossy(data);
    format!("id: {stream}-{number}\ndata: {}\n\n", one_line(&data))
}

/// The stream and the number that a client names in `Last-Event-ID`.
pub fn read_event_id(text: &str) -> Option<(StreamId, u64)> {
    let (stream, number) = text.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(stream) && digits(number)).then(|| Some((stream.parse().ok()?, number.parse().ok()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_event_is_one_line_of_data_with_a_name() {
        assert_eq!(event(3, 17, b"{\"a\":\r\n1}"), "id: 3-17\ndata: {\"a\":  1}\n\n");
        assert_eq!(read_event_id("3-17"), Some((3, 17)));
        for wrong in ["", "3", "3-", "-1", "3-+1", "a-1", "3-1-1", "3-99999999999999999999"] {
            assert_eq!(read_event_id(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_read_as_it_was_given_and_nothing_else_is_one(
            stream in any::<u64>(), number in any::<u64>(), text in ".{0,30}",
        ) {
            let name = format!("{stream}-{number}");
            prop_assert_eq!(read_event_id(&name), Some((stream, number)));
            if let Some((stream, number)) = read_event_id(&text) {
                let digits = |text: &str| text.trim_start_matches('0').to_owned();
                let (one, two) = text.split_once('-').unwrap();
                let same = (digits(one), digits(two));
                prop_assert_eq!(same, (digits(&stream.to_string()), digits(&number.to_string())));
            }
        }
    }
}
