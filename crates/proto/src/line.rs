//! Splits a byte stream into lines of bounded length.

/// A line was longer than the bound; the stream cannot be followed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line longer than {limit} bytes")]
pub struct LineTooLong {
    /// The bound in bytes, without the newline.
    pub limit: usize,
}

/// What a buffer may keep beyond what it holds: a long line is rare, and its room is not for the next ones.
const SPARE_BYTES: usize = 256 << 10;

/// Collects bytes and gives back whole lines, without their `\n` (a `\r` before it stays: it is the
/// sender's byte and JSON ignores it).
#[derive(Debug)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// Everything before this offset was already given out.
    start: usize,
    /// Everything before this offset holds no newline after `start`.
    searched: usize,
    limit: usize,
}

impl LineBuffer {
    /// A buffer whose lines are at most `limit` bytes long.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, searched: 0, limit }
    }

    /// Appends bytes read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.release();
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, `None` when more bytes are needed.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let found = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n');
        let end = match found {
            Some(offset) => self.searched + offset,
            None => {
                self.searched = self.bytes.len();
                self.release();
                return if self.bytes.len() > self.limit { Err(self.too_long()) } else { Ok(None) };
            }
        };
        if end - self.start > self.limit {
            return Err(self.too_long());
        }
        let line = self.start..end;
        self.start = end + 1;
        self.searched = self.start;
        Ok(Some(&self.bytes[line]))
    }

    /// What came after the last whole line: at the end of the stream, a line that was never finished.
    pub fn remainder(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Gives back the room of what was given out.
    fn release(&mut self) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
            if self.bytes.capacity() - self.bytes.len() > SPARE_BYTES {
                self.bytes.shrink_to_fit();
            }
        }
    }

    fn too_long(&self) -> LineTooLong {
        LineTooLong { limit: self.limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_over_the_limit_is_refused_even_before_it_ends() {
        let mut lines = LineBuffer::new(4);
        lines.push(b"12345");
        assert_eq!(lines.next_line(), Err(LineTooLong { limit: 4 }));
        let mut lines = LineBuffer::new(4);
        lines.push(b"1234\n12345\n");
        assert_eq!(lines.next_line(), Ok(Some(&b"1234"[..])));
        assert_eq!(lines.next_line(), Err(LineTooLong { limit: 4 }));
    }

    #[test]
    fn the_room_of_a_long_line_is_given_back() {
        let mut lines = LineBuffer::new(16 << 20);
        let mut long = vec![b'x'; 8 << 20];
        long.push(b'\n');
        lines.push(&long);
        assert_eq!(lines.next_line().unwrap().map(<[u8]>::len), Some(8 << 20));
        assert_eq!(lines.next_line(), Ok(None));
        assert!(lines.bytes.capacity() <= SPARE_BYTES, "{}", lines.bytes.capacity());
    }

    proptest! {
        #[test]
        fn chunking_does_not_change_the_lines(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            cuts in proptest::collection::vec(1usize..50, 1..40),
        ) {
            let mut lines = LineBuffer::new(1000);
            let mut seen = Vec::new();
            let mut rest = &text[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                lines.push(now);
                while let Some(line) = lines.next_line().unwrap() { seen.push(line.to_vec()); }
                rest = later;
            }
            let mut expected: Vec<Vec<u8>> = text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
            let tail = expected.pop().unwrap();
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(lines.remainder(), &tail[..]);
        }
    }
}
