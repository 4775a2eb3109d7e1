//! Frames of a control stream that was handed over to an `exec` or a `watch`.
//!
//! ```text
//! kind u8 | length u32, big endian | payload (at most limits::FRAME_BYTES)
//! ```

use crate::limits::FRAME_BYTES;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 5;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Host to guest: bytes for the program's stdin; an empty payload closes it.
    Stdin = 0,
    /// Guest to host: bytes from stdout; an empty payload says that it was closed.
    Stdout = 1,
    /// Guest to host: bytes from stderr; an empty payload says that it was closed.
    Stderr = 2,
    /// Guest to host: one JSON document, `control::Event`. On an `exec` stream the last frame is its exit.
    Event = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Event,
            _ => return None,
        })
    }
}

/// Why the other side's bytes are no frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte names no kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The payload is longer than allowed.
    #[error("frame of {0} bytes, more than {FRAME_BYTES}")]
    Length(u32),
}

/// Appends one frame for every `FRAME_BYTES` of `payload` (one empty frame for an empty payload).
pub fn encode(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(FRAME_BYTES));
        out.push(kind as u8);
        // FRAME_BYTES fits in u32.
        out.extend_from_slice(&(now.len() as u32).to_be_bytes());
        out.extend_from_slice(now);
        rest = later;
        if rest.is_empty() {
            return;
        }
    }
}

/// Collects bytes and gives back whole frames.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl FrameBuffer {
    /// Appends bytes read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<(Kind, &[u8])>, FrameError> {
        let Some((header, rest)) = self.bytes[self.start..].split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let kind = Kind::from_byte(header[0]).ok_or(FrameError::Kind(header[0]))?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        if length as usize > FRAME_BYTES {
            return Err(FrameError::Length(length));
        }
        let Some(payload) = rest.get(..length as usize) else {
            return Ok(None);
        };
        self.start += HEADER_BYTES + payload.len();
        Ok(Some((kind, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_payload_becomes_several_frames() {
        let payload: Vec<u8> = (0..FRAME_BYTES + 1).map(|i| i as u8).collect();
        let mut wire = Vec::new();
        encode(Kind::Stdout, &payload, &mut wire);
        let mut frames = FrameBuffer::default();
        frames.push(&wire);
        let mut seen = Vec::new();
        let mut count = 0;
        while let Some((kind, part)) = frames.next_frame().unwrap() {
            assert_eq!(kind, Kind::Stdout);
            seen.extend_from_slice(part);
            count += 1;
        }
        assert_eq!((count, seen), (2, payload));
    }

    #[test]
    fn lengths_and_kinds_of_the_other_side_are_checked() {
        let mut frames = FrameBuffer::default();
        frames.push(&[1, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(frames.next_frame(), Err(FrameError::Length(u32::MAX)));
        let mut frames = FrameBuffer::default();
        frames.push(&[9, 0, 0, 0, 0]);
        assert_eq!(frames.next_frame(), Err(FrameError::Kind(9)));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut frames = FrameBuffer::default();
            for chunk in bytes.chunks(7) {
                frames.push(chunk);
                while let Ok(Some(_)) = frames.next_frame() {}
            }
        }
    }
}
