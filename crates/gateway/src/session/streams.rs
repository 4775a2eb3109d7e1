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
//!
//! Nothing that somebody waits for is given up in silence ([`Instead`]): a client that comes back finds in the
//! place of an answer why it is not there, or is refused; a server whose request is given up is answered.

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
    unheard: Vec<Bytes>,
}

#[derive(Debug)]
struct Stream {
    /// The first is number `first`; events are counted from 1.
    events: VecDeque<Event>,
    first: u64,
    /// The number of the next event for the reader.
    next: u64,
    /// How long the events are that the reader has not taken, together.
    unread: usize,
    /// The number of the last event that was given up and is missed by who comes back and has not seen it.
    gap: u64,
    /// The name of an event was sent, so that a client can come back.
    named: bool,
    ended: bool,
    reader: Option<Reader>,
}

#[derive(Debug)]
struct Event {
    data: Bytes,
    instead: Instead,
}

/// What becomes of an event that is given up before a client has read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instead {
    /// Nothing: it told something that is worth little later.
    Nothing,
    /// Its client is told this, which is short.
    Tell(Bytes),
    /// Its server is answered this.
    Reply(Bytes),
    /// It is told instead of another.
    Told,
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
        let (next_stream, next_ticket) = (OWN + 1, 0);
        Self { streams, next_stream, next_ticket, bytes: 0, kept_bytes, kept_streams, unheard: Vec::new() }
    }

    /// Begins a stream that has a reader.
    pub fn open(&mut self) -> (StreamId, Ticket) {
        let (id, ticket) = (self.next_stream, self.ticket());
        self.next_stream += 1;
        self.streams.insert(id, Stream::new(Some(ticket)));
        (id, ticket)
    }

    /// Adds an event. A stream that is gone takes none.
    pub fn push(&mut self, id: StreamId, data: Bytes, instead: Instead) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.ended) else {
            return self.give_up(instead);
        };
        self.bytes += data.len();
        stream.unread += data.len();
        stream.events.push_back(Event { data, instead });
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

    /// Whether somebody reads a stream, or may come back to it.
    pub fn is_kept(&self, id: StreamId) -> bool {
        self.streams.contains_key(&id)
    }

    /// The name of an event of a stream is sent: a client that saw it can come back.
    pub fn name(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.named = true;
        }
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
            Some(after) if after < stream.gap || after >= stream.first + stream.events.len() as u64 => {
                return Err(AttachError::Unknown);
            }
            Some(after) => {
                stream.named = true;
                stream.go_to((after + 1).max(stream.first));
            }
        }
        stream.wake();
        stream.reader = Some(Reader { ticket, waker: None });
        // What it has seen is read, whatever the one before it took.
        self.tidy();
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
            Some(event) => {
                let last = stream.ended && at + 1 == stream.events.len();
                Read::Event { number: stream.next, data: event.data.clone(), last }
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
        if let (Read::Event { number, data, .. }, Some(stream)) = (&read, self.streams.get_mut(&id)) {
            stream.next = number + 1;
            stream.unread -= data.len();
            stream.named = true;
            self.tidy();
        }
        read
    }

    /// A reader is gone; what it has not read waits for the next, if one can come.
    pub fn detach(&mut self, id: StreamId, ticket: Ticket) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.reader.as_ref().is_some_and(|reader| reader.ticket == ticket) {
            stream.reader = None;
            if id != OWN && !stream.named {
                self.forget(id);
            }
            self.tidy();
        }
    }

    /// Removes a stream that nobody can ask for.
    pub fn forget(&mut self, id: StreamId) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        self.bytes -= stream.events.iter().map(|event| event.data.len()).sum::<usize>();
        let read = usize::try_from(stream.next - stream.first).unwrap_or(usize::MAX).min(stream.events.len());
        stream.events.drain(read..).for_each(|event| self.give_up(event.instead));
    }

    /// What servers have to be told in place of those for whom their requests were.
    pub fn unheard(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.unheard)
    }

    /// Whether connected readers have more to read than may be kept.
    pub fn is_full(&self) -> bool {
        let read = self.streams.values().filter(|stream| stream.reader.is_some());
        read.map(|stream| stream.unread).sum::<usize>() > self.kept_bytes
    }

    /// Cuts off the reader that has most to read.
    pub fn cut_slowest(&mut self) {
        let read = self.streams.iter_mut().filter(|(_, stream)| stream.reader.is_some());
        if let Some((_, stream)) = read.max_by_key(|(_, stream)| stream.unread) {
            stream.wake();
            stream.reader = None;
        }
        self.tidy();
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn give_up(&mut self, instead: Instead) {
        if let Instead::Reply(reply) = instead {
            self.unheard.push(reply);
        }
    }

    /// Keeps within bounds: first goes what is over and was read, then what was read, then what nobody reads,
    /// the session's own before answers.
    fn tidy(&mut self) {
        let over = |stream: &Stream| stream.ended && stream.reader.is_none();
        while self.streams.values().filter(|stream| over(stream)).count() > self.kept_streams {
            let of = |wanted: &dyn Fn(&Stream) -> bool| {
                self.streams.iter().find(|(_, stream)| over(stream) && wanted(stream)).map(|(&id, _)| id)
            };
            let Some(id) = of(&|stream| stream.unread == 0).or_else(|| of(&|_| true)) else { break };
            self.forget(id);
        }
        while self.bytes > self.kept_bytes {
            let of = |wanted: &dyn Fn(&Stream) -> bool| {
                self.streams.iter().find(|(_, stream)| wanted(stream)).map(|(&id, _)| id)
            };
            if let Some(id) = of(&|stream| over(stream) && stream.unread == 0).filter(|&id| id != OWN) {
                self.forget(id);
                continue;
            }
            let was_read = |stream: &Stream| stream.first < stream.next && !stream.events.is_empty();
            let unheard = |stream: &Stream| stream.reader.is_none() && !stream.events.is_empty();
            let told =
                |stream: &Stream| stream.events.front().is_some_and(|event| event.instead == Instead::Told);
            let victim = of(&was_read).or_else(|| of(&|stream| unheard(stream) && !told(stream)));
            let Some(id) = victim.or_else(|| of(&unheard)) else { return };
            let Some(stream) = self.streams.get_mut(&id) else { return };
            let (freed, instead) = stream.give_up_first(id == OWN);
            self.bytes -= freed;
            if stream.events.is_empty() && stream.ended && stream.reader.is_none() {
                self.forget(id);
            }
            self.give_up(instead);
        }
    }
}

impl Stream {
    fn new(ticket: Option<Ticket>) -> Self {
        let reader = ticket.map(|ticket| Reader { ticket, waker: None });
        let (events, unread) = (VecDeque::new(), 0);
        Self { events, first: 1, next: 1, unread, gap: 0, named: false, ended: false, reader }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.reader.as_mut().and_then(|reader| reader.waker.take()) {
            waker.wake();
        }
    }

    fn go_to(&mut self, next: u64) {
        self.next = next;
        let read = usize::try_from(self.next - self.first).unwrap_or(usize::MAX);
        self.unread = self.events.iter().skip(read).map(|event| event.data.len()).sum();
    }

    /// Gives up the first event, or what is long of it; how many bytes that freed, and what is to be done for
    /// it. In the session's own stream everything is missed, in another one only what somebody waits for.
    fn give_up_first(&mut self, own: bool) -> (usize, Instead) {
        let was_read = self.first < self.next;
        let Some(event) = self.events.front_mut() else { return (0, Instead::Nothing) };
        let length = event.data.len();
        if let Instead::Tell(short) = &event.instead
            && !was_read
            && short.len() < length
        {
            let freed = length - short.len();
            *event = Event { data: short.clone(), instead: Instead::Told };
            self.unread -= freed;
            return (freed, Instead::Nothing);
        }
        if own || event.instead != Instead::Nothing {
            self.gap = self.first;
        }
        let instead = self.events.pop_front().map_or(Instead::Nothing, |event| event.instead);
        self.first += 1;
        self.next = self.next.max(self.first);
        if was_read {
            return (length, Instead::Nothing);
        }
        self.unread -= length;
        (length, instead)
    }
}

#[cfg(test)]
mod tests;
