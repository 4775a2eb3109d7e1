//! Server-sent events, decoded as they come (WHATWG HTML, "Server-sent events", event stream interpretation).
//!
//! A line ends with LF, CR or both; a blank line ends an event; fields are `data`, `event`, `id` and `retry`.
//! Bytes stay bytes: what is in an event is a message, and says itself whether it is UTF-8.

use std::collections::VecDeque;
use std::time::Duration;

/// The longest id or type of an event that is kept. A longer id is as good as none: it fits in no header.
const NAME_BYTES: usize = 1024;

/// What a field's line may have beside its value: its name, a colon and a space.
const FIELD_BYTES: usize = 64;

/// The longest line whose buffer is kept for the next, and whose value is copied and not moved.
const SHORT_BYTES: usize = 64 << 10;

/// UTF-8's mark at the beginning of a stream.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// One event that has data, be it empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its type, `message` where the stream names none.
    pub kind: Vec<u8>,
    /// Its lines, joined by LF.
    pub data: Vec<u8>,
}

/// An event is longer than allowed; the stream cannot be followed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("event longer than {limit} bytes")]
pub struct EventTooLong {
    /// The limit in bytes.
    pub limit: usize,
}

/// Takes bytes in pieces of any size and gives events.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    line: Vec<u8>,
    /// The byte before was a CR: a LF after it ends no other line.
    after_return: bool,
    /// No line has ended yet.
    at_start: bool,
    kind: Vec<u8>,
    data: Vec<u8>,
    id: Vec<u8>,
    last_id: Vec<u8>,
    retry: Option<Duration>,
    events: VecDeque<Event>,
}

impl Decoder {
    /// Takes events whose data, joined, is at most `limit` bytes long.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            after_return: false,
            at_start: true,
            kind: Vec::new(),
            data: Vec::new(),
            id: Vec::new(),
            last_id: Vec::new(),
            retry: None,
            events: VecDeque::new(),
        }
    }

    /// Takes the next bytes of the stream. After an error the decoder is of no use any more.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), EventTooLong> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            self.line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
            if self.line.len() > self.limit + FIELD_BYTES {
                return Err(EventTooLong { limit: self.limit });
            }
            let Some(end) = end else { return Ok(()) };
            self.after_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            let mut line = std::mem::take(&mut self.line);
            if std::mem::take(&mut self.at_start) && line.starts_with(MARK) {
                line.drain(..MARK.len());
            }
            self.take_line(&mut line)?;
            line.clear();
            if line.capacity() <= SHORT_BYTES {
                self.line = line;
            }
        }
        Ok(())
    }

    /// The next event that is complete.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How many bytes wait for the end of their line or event.
    pub fn held(&self) -> usize {
        self.line.len() + self.data.len()
    }

    /// The id that the stream gave last, with an event that is complete; empty if none.
    pub fn last_id(&self) -> &[u8] {
        &self.last_id
    }

    /// How long the server wants a client to wait before it comes again.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Takes a line; of a long one also its buffer.
    fn take_line(&mut self, line: &mut Vec<u8>) -> Result<(), EventTooLong> {
        if line.is_empty() {
            self.dispatch();
            return Ok(());
        }
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let (field, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default());
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                // The newline after the last line is not part of the data.
                if self.data.len() + value.len() > self.limit {
                    return Err(EventTooLong { limit: self.limit });
                }
                if self.data.is_empty() && value.len() > SHORT_BYTES {
                    let before = line.len() - value.len();
                    line.drain(..before);
                    self.data = std::mem::take(line);
                } else {
                    self.data.extend_from_slice(value);
                }
                self.data.push(b'\n');
            }
            b"event" => self.kind = value[..value.len().min(NAME_BYTES)].to_vec(),
            b"id" if value.len() > NAME_BYTES => self.id.clear(),
            b"id" if !value.contains(&0) => self.id = value.to_vec(),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let milliseconds = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                // More digits than a number has are a time that never comes.
                self.retry = Some(Duration::from_millis(milliseconds.unwrap_or(u64::MAX)));
            }
            // A comment, or a field that does not exist.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) {
        self.last_id.clone_from(&self.id);
        let (kind, mut data) = (std::mem::take(&mut self.kind), std::mem::take(&mut self.data));
        if data.pop().is_none() {
            return;
        }
        let kind = if kind.is_empty() { b"message".to_vec() } else { kind };
        self.events.push_back(Event { kind, data });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1000;

    fn decoded(pieces: &[&[u8]]) -> (Vec<Event>, Decoder) {
        let mut decoder = Decoder::new(LIMIT);
        let mut events = Vec::new();
        for piece in pieces {
            decoder.push(piece).unwrap();
            events.extend(std::iter::from_fn(|| decoder.next_event()));
        }
        (events, decoder)
    }

    fn message(data: &str) -> Event {
        Event { kind: b"message".to_vec(), data: data.into() }
    }

    #[test]
    fn the_examples_of_the_standard_are_read_as_it_says() {
        let (events, _) = decoded(&[b"data: YHOO\ndata: +2\ndata: 10\n\n"]);
        assert_eq!(events, [message("YHOO\n+2\n10")]);
        let stream =
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n";
        let (events, decoder) = decoded(&[stream, b"\n"]);
        assert_eq!(events, [message("first event"), message("second event"), message(" third event")]);
        assert_eq!(decoder.last_id(), b"");
        let (events, _) = decoded(&[b"data\n\ndata\ndata\n\ndata:"]);
        assert_eq!(events, [message(""), message("\n")]);
        let (events, _) = decoded(&[b"data:test\n\ndata: test\n\n"]);
        assert_eq!(events, [message("test"), message("test")]);
    }

    #[test]
    fn a_primer_has_an_id_and_empty_data() {
        let (events, decoder) = decoded(&[b"id: a/1\nretry: 250\ndata:\n\n"]);
        assert_eq!((events, decoder.last_id()), (vec![message("")], &b"a/1"[..]));
        assert_eq!(decoder.retry(), Some(Duration::from_millis(250)));
    }

    #[test]
    fn an_id_counts_once_its_event_is_complete_and_a_comment_is_no_event() {
        let (events, decoder) = decoded(&[b"id: 1\n\n", b": keep\r\n\r\n", b"id: 2\ndata: x\n"]);
        assert_eq!((events.len(), decoder.last_id()), (0, &b"1"[..]));
        let (_, decoder) = decoded(&[b"id: 1\n\nid: a\0b\n\n"]);
        assert_eq!(decoder.last_id(), b"1");
        let long = [b"id: 1\n\nid: ".as_slice(), &[b'x'; NAME_BYTES + 1], b"\n\n"].concat();
        let mut decoder = Decoder::new(2 * NAME_BYTES);
        decoder.push(&long).unwrap();
        assert_eq!(decoder.last_id(), b"");
    }

    #[test]
    fn each_line_end_ends_one_line_and_the_mark_is_skipped_once() {
        let (events, _) = decoded(&[b"\xef\xbb\xbfdata: a\r\n\r\ndata: b\r\rdata: c\n\r\n"]);
        assert_eq!(events, [message("a"), message("b"), message("c")]);
        let (events, _) = decoded(&[b"event: ping\rdata: d\r", b"\n\r", b"\ndata: e\n\n"]);
        assert_eq!(events, [Event { kind: b"ping".to_vec(), data: b"d".to_vec() }, message("e")]);
        let (events, _) = decoded(&[b"data: x\n\xef\xbb\xbfdata: y\n\n"]);
        assert_eq!(events, [message("x")]);
    }

    #[test]
    fn a_long_line_leaves_nothing_behind() {
        let mut decoder = Decoder::new(1 << 20);
        let long = vec![b'x'; 1 << 20];
        decoder.push(b"data: ").unwrap();
        decoder.push(&long).unwrap();
        assert_eq!(decoder.held(), b"data: ".len() + long.len());
        decoder.push(b"\n").unwrap();
        // Its bytes are there once.
        assert_eq!((decoder.held(), decoder.line.capacity()), (long.len() + 1, 0));
        decoder.push(b"\n").unwrap();
        assert_eq!(decoder.next_event().unwrap().data, long);
        decoder.push(&[b": ", &long[..], b"\n"].concat()).unwrap();
        assert!(decoder.held() == 0 && decoder.line.capacity() <= SHORT_BYTES);
    }

    #[test]
    fn nothing_grows_without_bound() {
        let mut decoder = Decoder::new(LIMIT);
        let line = [b"data: ".as_slice(), &[b'x'; LIMIT], b"\n\n"].concat();
        decoder.push(&line).unwrap();
        assert_eq!(decoder.next_event().unwrap().data.len(), LIMIT);
        assert_eq!(decoder.push(&[b'y'; LIMIT + FIELD_BYTES + 1]), Err(EventTooLong { limit: LIMIT }));
        // Many lines are one event too.
        let mut decoder = Decoder::new(LIMIT);
        let many = b"data: 0123456789\n".repeat(LIMIT);
        assert_eq!(decoder.push(&many), Err(EventTooLong { limit: LIMIT }));
    }

    /// The standard's own words, on a stream that is known as a whole.
    fn plainly(stream: &[u8]) -> Vec<Event> {
        let stream = stream.strip_prefix(MARK).unwrap_or(stream);
        let text: Vec<u8> = stream.to_vec();
        let (mut lines, mut line, mut at) = (Vec::new(), Vec::new(), 0);
        while at < text.len() {
            match text[at] {
                b'\r' => {
                    lines.push(std::mem::take(&mut line));
                    at += usize::from(text.get(at + 1) == Some(&b'\n'));
                }
                b'\n' => lines.push(std::mem::take(&mut line)),
                other => line.push(other),
            }
            at += 1;
        }
        let (mut events, mut kind, mut data) = (Vec::new(), Vec::new(), Vec::<Vec<u8>>::new());
        for line in lines {
            if line.is_empty() {
                if !data.is_empty() {
                    let kind = if kind.is_empty() { b"message".to_vec() } else { kind.clone() };
                    events.push(Event { kind, data: data.join(&b'\n') });
                }
                (kind, data) = (Vec::new(), Vec::new());
                continue;
            }
            let mut parts = line.splitn(2, |&byte| byte == b':');
            let (field, value) = (parts.next().unwrap(), parts.next().unwrap_or_default());
            let value = value.strip_prefix(b" ").unwrap_or(value).to_vec();
            match field {
                b"data" => data.push(value),
                b"event" => kind = value,
                _ => {}
            }
        }
        events
    }

    /// Bytes that are often part of a stream.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            Just(b"data".to_vec()),
            Just(b"event".to_vec()),
            Just(b"id".to_vec()),
            Just(b":".to_vec()),
            Just(b" ".to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(MARK.to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(token, 0..60).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #[test]
        fn any_stream_in_any_pieces_gives_the_events_that_the_standard_says(
            stream in stream(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let (mut pieces, mut from) = (Vec::new(), 0);
            for cut in cuts {
                pieces.push(&stream[from..cut]);
                from = cut;
            }
            pieces.push(&stream[from..]);
            prop_assert_eq!(decoded(&pieces).0, plainly(&stream));
        }

        #[test]
        fn what_servers_write_comes_out_as_it_went_in(
            messages in proptest::collection::vec("[^\r\n]{0,40}", 0..5),
            line_end in prop_oneof![Just("\n"), Just("\r"), Just("\r\n")],
        ) {
            let written: String =
                messages.iter().map(|data| format!("event: message{line_end}data: {data}{line_end}{line_end}")).collect();
            let expected: Vec<Event> = messages.iter().map(|data| message(data)).collect();
            prop_assert_eq!(decoded(&[written.as_bytes()]).0, expected);
        }
    }
}
