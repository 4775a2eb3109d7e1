//! What one session has to say to its client, stream by stream: what was not read yet, and what a client that
//! comes back may ask for again.
//!
//! ```text
//! push ──> [ 4 5 6 | 7 8 ] ──> one reader
//!           kept     unread
//! ```
//!
//! Stream 0 is the session's own (GET); each request has another one (POST). An event is named by its stream
//! and its number in it, so a name is unique in its session. All streams together keep a bounded number of
//! bytes; what a connected reader has still to read is never given up for that.

use hyper::body::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    task::Waker,
};

/// Names a stream of a session.
pub type StreamId = u64;

/// The stream that belongs to no request.
pub const OWN: StreamId = 0;

/// Who may read a stream: the last that was let in.
pub type Ticket = u64;

/// The streams of one session.
#[derive(Debug)]
pub struct Streams {
    streams: BTreeMap<StreamId, Stream>,
    next_stream: StreamId,
    next_ticket: Ticket,
    bytes: usize,
    kept_bytes: usize,
    kept_streams: usize,
}

#[derive(Debug)]
struct Stream {
    /// The first is number `first`; events are counted from 1.
    events: VecDeque<Bytes>,
    first: u64,
    /// The number of the next event for the reader.
    next: u64,
    ended: bool,
    reader: Option<Reader>,
}

#[derive(Debug)]
struct Reader {
    ticket: Ticket,
    waker: Option<Waker>,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// An event.
    Event {
        /// Its number.
        number: u64,
        /// The message.
        data: Bytes,
        /// Nothing follows, ever.
        last: bool,
    },
    /// Nothing yet; the waker is told.
    Wait,
    /// Nothing, ever: the stream is over, or another one reads it.
    End,
}

/// Why a stream cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub enum AttachError {
    /// Somebody reads it.
    Taken,
    /// It is not kept, or never was.
    Unknown,
}

impl Streams {
    /// The session's own stream, and room for others.
    pub fn new(kept_bytes: usize, kept_streams: usize) -> Self {
        let streams = BTreeMap::from([(OWN, Stream::new(None))]);
        Self { streams, next_stream: OWN + 1, next_ticket: 0, bytes: 0, kept_bytes, kept_streams }
    }

    /// Begins a stream that has a reader.
    pub fn open(&mut self) -> (StreamId, Ticket) {
        let (id, ticket) = (self.next_stream, self.ticket());
        self.next_stream += 1;
        self.streams.insert(id, Stream::new(Some(ticket)));
        (id, ticket)
    }

    /// Adds an event. A stream that is gone takes none.
    pub fn push(&mut self, id: StreamId, data: Bytes) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.ended) else { return };
        self.bytes += data.len();
        stream.events.push_back(data);
        stream.wake();
        self.tidy();
    }

    /// Ends a stream, once its events were read.
    pub fn end(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.ended = true;
            stream.wake();
        }
        self.tidy();
    }

    /// Whether somebody reads a stream.
    pub fn is_read(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.reader.is_some())
    }

    /// Lets a reader in. Without `after` it reads on where the last one stopped, if there is none now; with
    /// the number of an event it reads on after that, and takes the stream over: who comes back knows better
    /// than we do that its connection broke.
    pub fn attach(&mut self, id: StreamId, after: Option<u64>) -> Result<Ticket, AttachError> {
        let ticket = self.ticket();
        let stream = self.streams.get_mut(&id).ok_or(AttachError::Unknown)?;
        match after {
            None if stream.reader.is_some() => return Err(AttachError::Taken),
            None => {}
            Some(after) if after >= stream.first + stream.events.len() as u64 => {
                return Err(AttachError::Unknown);
            }
            Some(after) => stream.next = (after + 1).max(stream.first),
        }
        stream.wake();
        stream.reader = Some(Reader { ticket, waker: None });
        Ok(ticket)
    }

    /// The number of the event before the next one.
    pub fn seen(&self, id: StreamId) -> u64 {
        self.streams.get(&id).map_or(0, |stream| stream.next - 1)
    }

    /// The next event, which stays the next one.
    pub fn peek(&mut self, id: StreamId, ticket: Ticket, waker: &Waker) -> Read {
        let Some(stream) = self.streams.get_mut(&id) else { return Read::End };
        let Some(reader) = stream.reader.as_mut().filter(|reader| reader.ticket == ticket) else {
            return Read::End;
        };
        let at = usize::try_from(stream.next - stream.first).unwrap_or(usize::MAX);
        match stream.events.get(at) {
            Some(data) => {
                let last = stream.ended && at + 1 == stream.events.len();
                Read::Event { number: stream.next, data: data.clone(), last }
            }
            None if stream.ended => Read::End,
            None => {
                reader.waker = Some(waker.clone());
                Read::Wait
            }
        }
    }

    /// Takes the next event.
    pub fn read(&mut self, id: StreamId, ticket: Ticket, waker: &Waker) -> Read {
        let read = self.peek(id, ticket, waker);
        if let (Read::Event { number, .. }, Some(stream)) = (&read, self.streams.get_mut(&id)) {
            stream.next = number + 1;
            self.tidy();
        }
        read
    }

    /// A reader is gone; what it has not read waits for the next.
    pub fn detach(&mut self, id: StreamId, ticket: Ticket) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reader.as_ref().is_some_and(|reader| reader.ticket == ticket)
        {
            stream.reader = None;
            self.tidy();
        }
    }

    /// Removes a stream that nobody can ask for.
    pub fn forget(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.bytes -= stream.events.iter().map(Bytes::len).sum::<usize>();
        }
    }

    /// Whether connected readers have more to read than may be kept.
    pub fn is_full(&self) -> bool {
        self.unread() > self.kept_bytes
    }

    /// Cuts off the reader that has most to read.
    pub fn cut_slowest(&mut self) {
        let read = self.streams.iter().filter(|(_, stream)| stream.reader.is_some());
        let slowest = read.max_by_key(|(_, stream)| stream.unread_bytes()).map(|(&id, _)| id);
        if let Some(stream) = slowest.and_then(|id| self.streams.get_mut(&id)) {
            stream.wake();
            stream.reader = None;
        }
        self.tidy();
    }

    fn unread(&self) -> usize {
        let read = self.streams.values().filter(|stream| stream.reader.is_some());
        read.map(Stream::unread_bytes).sum()
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Keeps within bounds: first goes what is over and was read, then what was read, then what nobody reads,
    /// the session's own before answers.
    fn tidy(&mut self) {
        let over = |stream: &Stream| stream.ended && stream.reader.is_none();
        while self.streams.values().filter(|stream| over(stream)).count() > self.kept_streams {
            let oldest = self.streams.iter().find(|(_, stream)| over(stream)).map(|(&id, _)| id);
            oldest.into_iter().for_each(|id| self.forget(id));
        }
        while self.bytes > self.kept_bytes {
            let done = |stream: &Stream| over(stream) && stream.unread_bytes() == 0;
            let done = self.streams.iter().find(|(_, stream)| done(stream)).map(|(&id, _)| id);
            if let Some(id) = done.filter(|&id| id != OWN) {
                self.forget(id);
                continue;
            }
            let was_read = |stream: &Stream| stream.first < stream.next && !stream.events.is_empty();
            let unheard = |stream: &Stream| stream.reader.is_none() && !stream.events.is_empty();
            let mut all = self.streams.iter();
            let oldest = all.find(|(_, stream)| was_read(stream));
            let oldest = oldest.or_else(|| self.streams.iter().find(|(_, stream)| unheard(stream)));
            let Some(id) = oldest.map(|(&id, _)| id) else { return };
            let Some(stream) = self.streams.get_mut(&id) else { return };
            self.bytes -= stream.drop_first();
            if stream.events.is_empty() && stream.ended && stream.reader.is_none() {
                self.forget(id);
            }
        }
    }
}

impl Stream {
    fn new(ticket: Option<Ticket>) -> Self {
        let reader = ticket.map(|ticket| Reader { ticket, waker: None });
        Self { events: VecDeque::new(), first: 1, next: 1, ended: false, reader }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.reader.as_mut().and_then(|reader| reader.waker.take()) {
            waker.wake();
        }
    }

    fn unread_bytes(&self) -> usize {
        let read = usize::try_from(self.next - self.first).unwrap_or(usize::MAX);
        self.events.iter().skip(read).map(Bytes::len).sum()
    }

    /// Gives up the first event; how long it was.
    fn drop_first(&mut self) -> usize {
        let dropped = self.events.pop_front().map_or(0, |data| data.len());
        self.first += 1;
        self.next = self.next.max(self.first);
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    /// What a reader finds until it has to wait or all is over.
    fn all(streams: &mut Streams, id: StreamId, ticket: Ticket) -> (Vec<(u64, String)>, Read) {
        let mut seen = Vec::new();
        loop {
            match streams.read(id, ticket, Waker::noop()) {
                Read::Event { number, data, .. } => {
                    seen.push((number, String::from_utf8(data.to_vec()).unwrap()));
                }
                end => return (seen, end),
            }
        }
    }

    #[test]
    fn a_stream_is_read_once_in_order_and_ends() {
        let mut streams = Streams::new(100, 4);
        let (id, ticket) = streams.open();
        streams.push(id, text("a"));
        streams.push(id, text("b"));
        assert!(matches!(
            streams.peek(id, ticket, Waker::noop()),
            Read::Event { number: 1, last: false, .. }
        ));
        assert_eq!(all(&mut streams, id, ticket), (vec![(1, "a".into()), (2, "b".into())], Read::Wait));
        streams.push(id, text("c"));
        streams.end(id);
        streams.push(id, text("too late"));
        assert!(matches!(streams.peek(id, ticket, Waker::noop()), Read::Event { number: 3, last: true, .. }));
        assert_eq!(all(&mut streams, id, ticket), (vec![(3, "c".into())], Read::End));
    }

    #[test]
    fn who_comes_back_reads_on_after_the_event_that_it_names() {
        let mut streams = Streams::new(100, 4);
        let (id, first) = streams.open();
        for data in ["a", "b", "c"] {
            streams.push(id, text(data));
        }
        assert_eq!(all(&mut streams, id, first).0.len(), 3);
        let second = streams.attach(id, Some(1)).unwrap();
        // The first one's connection may not be known to be gone.
        assert_eq!(streams.read(id, first, Waker::noop()), Read::End);
        streams.detach(id, first);
        assert_eq!(all(&mut streams, id, second), (vec![(2, "b".into()), (3, "c".into())], Read::Wait));
        streams.detach(id, second);
        streams.push(id, text("d"));
        streams.end(id);
        let third = streams.attach(id, Some(0)).unwrap();
        assert_eq!(all(&mut streams, id, third).0.len(), 4);
        assert_eq!(streams.attach(id, Some(5)), Err(AttachError::Unknown));
        assert_eq!(streams.attach(id + 1, Some(0)), Err(AttachError::Unknown));
    }

    #[test]
    fn one_reads_at_a_time_and_what_came_meanwhile_waits() {
        let mut streams = Streams::new(100, 4);
        streams.push(OWN, text("a"));
        let first = streams.attach(OWN, None).unwrap();
        assert_eq!(streams.attach(OWN, None), Err(AttachError::Taken));
        assert_eq!(all(&mut streams, OWN, first).0, [(1, "a".into())]);
        streams.detach(OWN, first);
        streams.push(OWN, text("b"));
        let second = streams.attach(OWN, None).unwrap();
        assert_eq!(all(&mut streams, OWN, second).0, [(2, "b".into())]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let mut streams = Streams::new(10, 4);
        for number in 0..100 {
            streams.push(OWN, text(&format!("{number:02}")));
        }
        assert_eq!(streams.bytes, 10);
        let ticket = streams.attach(OWN, Some(0)).unwrap();
        let (seen, _) = all(&mut streams, OWN, ticket);
        assert_eq!(seen.first().map(|(number, _)| *number), Some(96));
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn what_a_connected_reader_has_to_read_is_not_given_up() {
        let mut streams = Streams::new(10, 4);
        let (id, ticket) = streams.open();
        let (other, _) = streams.open();
        streams.end(other);
        for _ in 0..10 {
            streams.push(id, text("0123456789"));
            streams.push(OWN, text("xxxxx"));
        }
        assert!(streams.is_full());
        assert_eq!(all(&mut streams, id, ticket).0.len(), 10);
        assert!(!streams.is_full() && streams.bytes <= 10);
        for _ in 0..10 {
            streams.push(id, text("0123456789"));
        }
        streams.cut_slowest();
        assert!(!streams.is_full() && streams.bytes <= 10);
        assert_eq!(streams.read(id, ticket, Waker::noop()), Read::End);
    }

    #[test]
    fn streams_that_are_over_are_few() {
        let mut streams = Streams::new(1000, 3);
        let mut opened = Vec::new();
        for _ in 0..10 {
            let (id, ticket) = streams.open();
            streams.push(id, text("answer"));
            streams.end(id);
            assert_eq!(all(&mut streams, id, ticket).0.len(), 1);
            streams.detach(id, ticket);
            opened.push(id);
        }
        let kept = opened.iter().filter(|&&id| streams.attach(id, Some(0)).is_ok()).count();
        assert_eq!((kept, streams.bytes), (3, 18));
        opened.iter().for_each(|&id| streams.forget(id));
        assert_eq!(streams.bytes, 0);
    }
}
