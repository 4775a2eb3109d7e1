//! The state machine: bytes and wishes in, events and bytes out.

use super::codec::{Frame, Malformed, decode, encode};
use super::{DATA_BYTES, ENCODED_BYTES, Nonce, ResetCode, SYNC_SKIP_BYTES, WINDOW};
use crate::limits::{GUEST_STREAMS, STREAMS};
use std::collections::{BTreeMap, VecDeque};

/// Output that nobody takes: beyond this many bytes the guest is flooding the host with requests.
const OUTPUT_LIMIT: usize = 4 << 20;

/// Released bytes are granted again in portions of this size, so that credit does not outnumber data.
const GRANT: usize = WINDOW / 4;

/// Which end of the link this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Attaches with a nonce and distrusts what it reads.
    Host {
        /// Random, never used before.
        nonce: Nonce,
    },
    /// Waits for a host.
    Guest,
}

/// A stream of the current attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

/// What happened; to be taken with [`Mux::next_event`] after every [`Mux::receive`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A host attached (again). On the guest every earlier stream is gone without further events.
    Synced,
    /// The other side opened a stream; answer with [`Mux::accept`] or [`Mux::reset`].
    Opened {
        /// The stream.
        stream: StreamId,
        /// The port that it is for.
        port: u32,
    },
    /// The other side took the stream; data may be sent.
    Accepted {
        /// The stream.
        stream: StreamId,
    },
    /// Data arrived; call [`Mux::release`] once it is out of memory.
    Data {
        /// The stream.
        stream: StreamId,
        /// At least one byte.
        bytes: Vec<u8>,
    },
    /// The other side sends no more data.
    Finished {
        /// The stream.
        stream: StreamId,
    },
    /// More data may be sent on a stream whose window was used up.
    Writable {
        /// The stream.
        stream: StreamId,
    },
    /// The other side ended the stream, or refused it.
    Reset {
        /// The stream.
        stream: StreamId,
        /// Why.
        code: ResetCode,
        /// Why, in the other side's words; foreign text.
        reason: String,
    },
}

/// The guest broke the rules; the link is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame that does not decode, or longer than any frame.
    #[error("malformed frame")]
    Malformed(#[from] Malformed),
    /// A frame longer than any frame.
    #[error("frame of more than {ENCODED_BYTES} bytes")]
    Overlong,
    /// A frame that does not fit the state of its stream or of the link.
    #[error("unexpected {what} on stream {stream}")]
    Unexpected {
        /// The kind of frame.
        what: &'static str,
        /// The stream it names.
        stream: u32,
    },
    /// More data than granted, or more credit than a window.
    #[error("window of stream {stream} exceeded")]
    Window {
        /// The stream.
        stream: u32,
    },
    /// No `SYNCED` within [`SYNC_SKIP_BYTES`].
    #[error("no answer to the synchronisation in {SYNC_SKIP_BYTES} bytes")]
    NeverSynced,
    /// More requests than answers can be sent.
    #[error("flooded with requests")]
    Flood,
}

/// Why a stream cannot be opened now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No host is attached, or the attachment is not synchronised yet.
    #[error("link is not synchronised")]
    NotSynced,
    /// The link carries [`STREAMS`] streams already.
    #[error("link carries {STREAMS} streams already")]
    TooMany,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Opened here, not accepted yet.
    Opening,
    /// Opened there, not accepted yet.
    Offered,
    Open,
}

#[derive(Debug)]
struct Stream {
    phase: Phase,
    /// What may still be sent.
    credit: usize,
    /// What the other side may still send.
    window: usize,
    /// Released by the reader, not granted again yet.
    released: usize,
    fin_sent: bool,
    fin_received: bool,
}

/// One end of a multiplexed link. It does no I/O: feed it with [`Mux::receive`], drain it with
/// [`Mux::next_event`] and [`Mux::take_output`].
///
/// To bound memory, call [`Mux::send`] only while [`Mux::pending_output`] is small; go on reading
/// whatever the output's state, or two full ends would wait for each other for ever.
#[derive(Debug)]
pub struct Mux {
    role: Role,
    synced: bool,
    /// Host: bytes read before `SYNCED`.
    skipped: usize,
    /// The frame being read; given up when longer than any frame.
    partial: Vec<u8>,
    overlong: bool,
    streams: BTreeMap<u32, Stream>,
    next_own: u32,
    last_foreign: u32,
    events: VecDeque<Event>,
    output: Vec<u8>,
}

impl Mux {
    /// A new end. A host's first output is its `SYNC`.
    pub fn new(role: Role) -> Self {
        let mut mux = Self {
            role,
            synced: false,
            skipped: 0,
            partial: Vec::new(),
            overlong: false,
            streams: BTreeMap::new(),
            next_own: if role == Role::Guest { 2 } else { 1 },
            last_foreign: 0,
            events: VecDeque::new(),
            output: Vec::new(),
        };
        if let Role::Host { nonce } = role {
            // The delimiter ends whatever half frame an earlier host may have left.
            mux.output.push(0);
            mux.emit(&Frame::Sync { nonce });
        }
        mux
    }

    /// Whether streams can be opened.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Bytes waiting in [`Mux::take_output`].
    pub fn pending_output(&self) -> usize {
        self.output.len()
    }

    /// Everything that is to be written to the link now.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The next thing that happened.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Opens a stream to a port of the other side; [`Event::Accepted`] or [`Event::Reset`] follows.
    pub fn open(&mut self, port: u32) -> Result<StreamId, OpenError> {
        if !self.synced {
            return Err(OpenError::NotSynced);
        }
        if self.streams.len() >= STREAMS {
            return Err(OpenError::TooMany);
        }
        let stream = self.next_own;
        self.next_own += 2;
        self.streams.insert(stream, Stream::new(Phase::Opening));
        self.emit(&Frame::Open { stream, port });
        Ok(StreamId(stream))
    }

    /// Takes a stream that the other side opened.
    pub fn accept(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id.0).filter(|stream| stream.phase == Phase::Offered) {
            stream.phase = Phase::Open;
            self.emit(&Frame::Accept { stream: id.0 });
        }
    }

    /// Queues as much of `bytes` as the stream's window allows and returns how much that was. Zero means:
    /// wait for [`Event::Writable`], or the stream is not open.
    pub fn send(&mut self, id: StreamId, bytes: &[u8]) -> usize {
        let Some(stream) = self.streams.get_mut(&id.0) else {
            return 0;
        };
        if stream.phase != Phase::Open || stream.fin_sent {
            return 0;
        }
        let taken = bytes.len().min(stream.credit);
        stream.credit -= taken;
        for chunk in bytes[..taken].chunks(DATA_BYTES) {
            self.emit(&Frame::Data { stream: id.0, bytes: chunk });
        }
        taken
    }

    /// Says that no more data will be sent; the other direction stays open.
    pub fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id.0) else {
            return;
        };
        if stream.phase == Phase::Open && !stream.fin_sent {
            stream.fin_sent = true;
            self.emit(&Frame::Fin { stream: id.0 });
            self.forget_if_over(id.0);
        }
    }

    /// Ends a stream in both directions, or refuses one that was offered.
    pub fn reset(&mut self, id: StreamId, code: ResetCode, reason: &str) {
        if self.streams.remove(&id.0).is_some() {
            self.emit(&Frame::Reset { stream: id.0, code, reason });
        }
    }

    /// Gives back room for `bytes` that were received and are out of memory now.
    pub fn release(&mut self, id: StreamId, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id.0) else {
            return;
        };
        if stream.fin_received {
            return;
        }
        stream.released += bytes;
        if stream.released >= GRANT {
            let grant = std::mem::take(&mut stream.released);
            stream.window += grant;
            // A window fits in u32.
            self.emit(&Frame::Credit { stream: id.0, bytes: grant as u32 });
        }
    }

    /// Takes bytes from the link. On a guest this never fails: it waits for the next `SYNC` instead.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        if !self.synced && self.role != Role::Guest {
            self.skipped += bytes.len();
            if self.skipped > SYNC_SKIP_BYTES {
                return Err(Violation::NeverSynced);
            }
        }
        while !bytes.is_empty() {
            let end = memchr::memchr(0, bytes);
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.partial.len() + part.len() >= ENCODED_BYTES {
                self.overlong = true;
                self.partial.clear();
                // A frame that is never ended must not be let go on for ever.
                self.broken(Violation::Overlong)?;
            } else if !self.overlong {
                self.partial.extend_from_slice(part);
            }
            match end {
                None => break,
                Some(end) => {
                    bytes = &bytes[end + 1..];
                    self.end_of_frame()?;
                }
            }
        }
        if self.output.len() > OUTPUT_LIMIT { self.broken(Violation::Flood) } else { Ok(()) }
    }

    fn end_of_frame(&mut self) -> Result<(), Violation> {
        let mut partial = std::mem::take(&mut self.partial);
        if std::mem::take(&mut self.overlong) || partial.is_empty() {
            return Ok(());
        }
        let result = match decode(&mut partial) {
            Ok(frame) => self.handle(frame),
            Err(malformed) => Err(malformed.into()),
        };
        partial.clear();
        self.partial = partial;
        result.or_else(|violation| self.broken(violation))
    }

    /// What follows from a broken rule: nothing before the link is synchronised; the end of the link on a
    /// host; on a guest the wait for the next host.
    fn broken(&mut self, violation: Violation) -> Result<(), Violation> {
        if self.synced {
            if self.role != Role::Guest {
                return Err(violation);
            }
            self.synced = false;
            for stream in std::mem::take(&mut self.streams).into_keys().map(StreamId) {
                self.events.push_back(Event::Reset {
                    stream,
                    code: ResetCode::Gone,
                    reason: violation.to_string(),
                });
            }
        }
        Ok(())
    }

    fn handle(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        match (frame, self.role) {
            (Frame::Sync { nonce }, Role::Guest) => {
                self.streams.clear();
                self.events.clear();
                self.output.clear();
                (self.next_own, self.last_foreign) = (2, 0);
                self.synced = true;
                // Ends the half frame that may have been written before.
                self.output.push(0);
                self.emit(&Frame::Synced { nonce });
                self.events.push_back(Event::Synced);
                Ok(())
            }
            (Frame::Synced { nonce }, Role::Host { nonce: expected }) if !self.synced => {
                if nonce == expected {
                    self.synced = true;
                    self.events.push_back(Event::Synced);
                }
                Ok(())
            }
            (Frame::Sync { .. } | Frame::Synced { .. }, _) => Err(unexpected("synchronisation", 0)),
            _ if !self.synced => Ok(()),
            (Frame::Open { stream, port }, _) => self.handle_open(stream, port),
            (Frame::Accept { stream }, _) => self.on_stream("accept", stream, |state, events| {
                if state.phase != Phase::Opening {
                    return Err(unexpected("accept", stream));
                }
                state.phase = Phase::Open;
                events.push_back(Event::Accepted { stream: StreamId(stream) });
                Ok(())
            }),
            (Frame::Data { stream, bytes }, _) => self.on_stream("data", stream, |state, events| {
                if state.phase != Phase::Open || state.fin_received {
                    return Err(unexpected("data", stream));
                }
                state.window = state.window.checked_sub(bytes.len()).ok_or(Violation::Window { stream })?;
                events.push_back(Event::Data { stream: StreamId(stream), bytes: bytes.to_vec() });
                Ok(())
            }),
            (Frame::Credit { stream, bytes }, _) => self.on_stream("credit", stream, |state, events| {
                let was_empty = state.credit == 0;
                state.credit += bytes as usize;
                if state.phase != Phase::Open || bytes == 0 || state.credit > WINDOW {
                    return Err(Violation::Window { stream });
                }
                if was_empty {
                    events.push_back(Event::Writable { stream: StreamId(stream) });
                }
                Ok(())
            }),
            (Frame::Fin { stream }, _) => {
                self.on_stream("end", stream, |state, events| {
                    if state.phase != Phase::Open || state.fin_received {
                        return Err(unexpected("end", stream));
                    }
                    state.fin_received = true;
                    events.push_back(Event::Finished { stream: StreamId(stream) });
                    Ok(())
                })?;
                self.forget_if_over(stream);
                Ok(())
            }
            (Frame::Reset { stream, code, reason }, _) => {
                self.on_stream("reset", stream, |_, events| {
                    let reason = reason.to_owned();
                    events.push_back(Event::Reset { stream: StreamId(stream), code, reason });
                    Ok(())
                })?;
                self.streams.remove(&stream);
                Ok(())
            }
        }
    }

    fn handle_open(&mut self, stream: u32, port: u32) -> Result<(), Violation> {
        if stream % 2 == self.next_own % 2 || stream <= self.last_foreign {
            return Err(unexpected("open", stream));
        }
        self.last_foreign = stream;
        let foreign = self.streams.keys().filter(|id| *id % 2 == stream % 2).count();
        let most_foreign = if self.role == Role::Guest { STREAMS } else { GUEST_STREAMS };
        if self.streams.len() >= STREAMS || foreign >= most_foreign {
            self.emit(&Frame::Reset { stream, code: ResetCode::Busy, reason: "too many streams" });
        } else {
            self.streams.insert(stream, Stream::new(Phase::Offered));
            self.events.push_back(Event::Opened { stream: StreamId(stream), port });
        }
        Ok(())
    }

    /// Applies a frame to its stream. A frame for a stream that is over was under way when it ended, and
    /// is dropped; one for a stream that never was is a violation.
    fn on_stream(
        &mut self,
        what: &'static str,
        stream: u32,
        apply: impl FnOnce(&mut Stream, &mut VecDeque<Event>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        match self.streams.get_mut(&stream) {
            Some(state) => apply(state, &mut self.events),
            None => {
                let own = stream % 2 == self.next_own % 2;
                let existed =
                    stream != 0 && if own { stream < self.next_own } else { stream <= self.last_foreign };
                if existed { Ok(()) } else { Err(unexpected(what, stream)) }
            }
        }
    }

    fn forget_if_over(&mut self, stream: u32) {
        if self.streams.get(&stream).is_some_and(|state| state.fin_sent && state.fin_received) {
            self.streams.remove(&stream);
        }
    }

    fn emit(&mut self, frame: &Frame<'_>) {
        encode(frame, &mut self.output);
    }
}

impl Stream {
    fn new(phase: Phase) -> Self {
        Self { phase, credit: WINDOW, window: WINDOW, released: 0, fin_sent: false, fin_received: false }
    }
}

fn unexpected(what: &'static str, stream: u32) -> Violation {
    Violation::Unexpected { what, stream }
}

#[cfg(test)]
mod tests;
