//! LZ4's legacy frames, the only ones that the Linux kernel reads.
//!
//! A magic number, then blocks of 8 MiB (the last one shorter), each compressed and preceded by its
//! compressed length. Frames follow one another; there is no end mark and no checksum.

use lz4_flex::block;

use super::ImageError;

pub(super) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const BLOCK: usize = 8 << 20;
/// The compressed length of a block of bytes that do not compress.
const LONGEST_BLOCK: usize = BLOCK + BLOCK / 255 + 16;

/// Decompresses frames, to at most `limit` bytes.
pub(super) fn decompress(mut frames: &[u8], limit: usize) -> Result<Vec<u8>, ImageError> {
    let malformed = |problem| ImageError::Malformed { part: "the LZ4 payload", problem };
    frames = frames.strip_prefix(&MAGIC).ok_or(malformed("it has no legacy frame"))?;
    let mut out = Vec::new();
    let mut chunk = vec![0; BLOCK];
    while let Some((length, rest)) = frames.split_first_chunk::<4>() {
        frames = rest;
        if *length == MAGIC {
            continue;
        }
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 && frames.iter().all(|&byte| byte == 0) {
            // Padding.
            return Ok(out);
        }
        if length > LONGEST_BLOCK {
            return Err(malformed("a block is too long"));
        }
        let packed = frames.get(..length).ok_or(malformed("it ends within a block"))?;
        frames = &frames[length..];
        let count =
            block::decompress_into(packed, &mut chunk).map_err(|_| malformed("a block is damaged"))?;
        if out.len() + count > limit {
            return Err(ImageError::TooLarge { limit });
        }
        out.extend_from_slice(&chunk[..count]);
    }
    if frames.is_empty() { Ok(out) } else { Err(malformed("it ends within a length")) }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Compresses `bytes` into one frame.
    pub fn compress(bytes: &[u8]) -> Vec<u8> {
        let mut frame = MAGIC.to_vec();
        for chunk in bytes.chunks(BLOCK) {
            let packed = block::compress(chunk);
            frame.extend_from_slice(&(packed.len() as u32).to_le_bytes());
            frame.extend_from_slice(&packed);
        }
        frame
    }

    #[test]
    fn several_blocks_and_frames_are_read_back() {
        let mut bytes = vec![7u8; BLOCK + 3];
        bytes.extend((0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()));
        let mut frames = compress(&bytes);
        frames.extend(compress(b"tail"));
        let out = decompress(&frames, bytes.len() + 4).unwrap();
        assert_eq!(out.len(), bytes.len() + 4);
        assert!(out.starts_with(&bytes) && out.ends_with(b"tail"));
        assert!(matches!(decompress(&frames, bytes.len()), Err(ImageError::TooLarge { .. })));
        assert_eq!(decompress(&compress(b""), 0).unwrap(), b"");
        assert_eq!(decompress(&[compress(b"padded"), vec![0; 9]].concat(), 6).unwrap(), b"padded");
    }

    proptest! {
        #[test]
        fn hostile_frames_are_refused_or_bounded(
            tail in proptest::collection::vec(any::<u8>(), 0..200),
            length in prop_oneof![0u32..64, any::<u32>()],
        ) {
            let mut frame = MAGIC.to_vec();
            frame.extend(length.to_le_bytes());
            frame.extend(tail);
            if let Ok(out) = decompress(&frame, 100) {
                prop_assert!(out.len() <= 100);
            }
        }

        #[test]
        fn truncation_never_yields_more(cut in 4usize..2000) {
            let frame = compress(&[1; 5000]);
            if let Ok(out) = decompress(&frame[..cut.min(frame.len())], 5000) {
                prop_assert!(out.is_empty() || out.len() == 5000);
            }
        }
    }
}
