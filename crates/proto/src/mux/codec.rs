//! Frames to bytes and back.

use super::{DATA_BYTES, Nonce, REASON_BYTES, ResetCode, VERSION, cobs};

/// One decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The table in the parent module documents each.
pub enum Frame<'a> {
    Sync { nonce: Nonce },
    Synced { nonce: Nonce },
    Open { stream: u32, port: u32 },
    Accept { stream: u32 },
    Data { stream: u32, bytes: &'a [u8] },
    Credit { stream: u32, bytes: u32 },
    Fin { stream: u32 },
    Reset { stream: u32, code: ResetCode, reason: &'a str },
}

/// Bytes between two delimiters that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not COBS.
    #[error("frame is not COBS-encoded")]
    Cobs,
    /// Too short, too long, or of a kind that does not exist.
    #[error("frame of kind {kind} and {length} bytes does not exist")]
    Shape {
        /// The first byte.
        kind: u8,
        /// Bytes in the decoded frame.
        length: usize,
    },
    /// Another version of the wire form.
    #[error("multiplexer version {0} is not {VERSION}")]
    Version(u16),
}

/// Appends one frame and its delimiter to `out`.
pub fn encode(frame: &Frame<'_>, out: &mut Vec<u8>) {
    let mut plain = [0u8; 5 + DATA_BYTES];
    let mut length = 0;
    let mut put = |bytes: &[u8]| {
        plain[length..length + bytes.len()].copy_from_slice(bytes);
        length += bytes.len();
    };
    let mut head = |kind: u8, stream: u32| {
        put(&[kind]);
        put(&stream.to_le_bytes());
    };
    match *frame {
        Frame::Sync { nonce } | Frame::Synced { nonce } => {
            head(if matches!(frame, Frame::Sync { .. }) { 0 } else { 1 }, 0);
            put(&VERSION.to_le_bytes());
            put(&nonce);
        }
        Frame::Open { stream, port } => {
            head(2, stream);
            put(&port.to_le_bytes());
        }
        Frame::Accept { stream } => head(3, stream),
        Frame::Data { stream, bytes } => {
            debug_assert!((1..=DATA_BYTES).contains(&bytes.len()));
            head(4, stream);
            put(bytes);
        }
        Frame::Credit { stream, bytes } => {
            head(5, stream);
            put(&bytes.to_le_bytes());
        }
        Frame::Fin { stream } => head(6, stream),
        Frame::Reset { stream, code, reason } => {
            head(7, stream);
            put(&[code as u8]);
            put(&reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES)]);
        }
    }
    cobs::encode(&plain[..length], out);
    out.push(0);
}

/// Decodes, in place, the bytes before one delimiter.
pub fn decode(bytes: &mut [u8]) -> Result<Frame<'_>, Malformed> {
    let length = cobs::decode(bytes).ok_or(Malformed::Cobs)?;
    let plain = &bytes[..length];
    let malformed = Malformed::Shape { kind: plain.first().copied().unwrap_or(0), length };
    let (&[kind, a, b, c, d], body) = plain.split_first_chunk::<5>().ok_or(malformed)?;
    let stream = u32::from_le_bytes([a, b, c, d]);
    let number = || body.try_into().map(u32::from_le_bytes).map_err(|_| malformed);
    let empty = |frame: Frame<'static>| {
        if body.is_empty() { Ok(frame) } else { Err(malformed) }
    };
    match kind {
        0 | 1 => {
            let (version, nonce) = body.split_first_chunk::<2>().ok_or(malformed)?;
            let version = u16::from_le_bytes(*version);
            if version != VERSION {
                return Err(Malformed::Version(version));
            }
            let nonce = nonce.try_into().map_err(|_| malformed)?;
            Ok(if kind == 0 { Frame::Sync { nonce } } else { Frame::Synced { nonce } })
        }
        2 => Ok(Frame::Open { stream, port: number()? }),
        3 => empty(Frame::Accept { stream }),
        4 if (1..=DATA_BYTES).contains(&body.len()) => Ok(Frame::Data { stream, bytes: body }),
        5 => Ok(Frame::Credit { stream, bytes: number()? }),
        6 => empty(Frame::Fin { stream }),
        7 if (1..=1 + REASON_BYTES).contains(&body.len()) => {
            let reason = std::str::from_utf8(&body[1..]).map_err(|_| malformed)?;
            Ok(Frame::Reset { stream, code: ResetCode::from_byte(body[0]), reason })
        }
        _ => Err(malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_survives(frame: Frame<'_>) {
        let mut wire = Vec::new();
        encode(&frame, &mut wire);
        assert_eq!(wire.pop(), Some(0));
        assert!(!wire.contains(&0), "a delimiter inside a frame");
        assert_eq!(decode(&mut wire), Ok(frame));
    }

    #[test]
    fn every_kind_survives_the_wire() {
        let nonce = [0; 16];
        assert_survives(Frame::Sync { nonce });
        assert_survives(Frame::Synced { nonce });
        assert_survives(Frame::Open { stream: 1, port: 5252 });
        assert_survives(Frame::Accept { stream: 256 });
        assert_survives(Frame::Credit { stream: 3, bytes: 0x00ff_0000 });
        assert_survives(Frame::Fin { stream: u32::MAX });
        assert_survives(Frame::Reset { stream: 5, code: ResetCode::Busy, reason: "held by run" });
        assert_survives(Frame::Data { stream: 7, bytes: &[0; DATA_BYTES] });
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = "ä".repeat(REASON_BYTES);
        let mut wire = Vec::new();
        encode(&Frame::Reset { stream: 1, code: ResetCode::Gone, reason: &reason }, &mut wire);
        wire.pop();
        let Ok(Frame::Reset { reason: cut, .. }) = decode(&mut wire) else { panic!("no reset") };
        assert!(reason.starts_with(cut) && cut.len() == REASON_BYTES);
    }

    proptest! {
        #[test]
        fn data_survives_the_wire(bytes in proptest::collection::vec(any::<u8>(), 1..2000), stream in any::<u32>()) {
            assert_survives(Frame::Data { stream, bytes: &bytes });
        }

        #[test]
        fn foreign_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&mut bytes);
        }
    }
}
