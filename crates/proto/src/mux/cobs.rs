//! Consistent overhead byte stuffing (Cheshire and Baker, 1999): frames without zero bytes.
//!
//! It works by runs, not by bytes: the guest's processor may be emulated, where each byte handled by itself
//! costs as much as the link's device.

/// The most bytes that follow one code.
const RUN: usize = 254;

/// The length of the longest encoding of `length` bytes.
pub(super) const fn max_encoding_length(length: usize) -> usize {
    length + length.div_ceil(RUN) + (length == 0) as usize
}

/// Appends the encoding of `plain`.
pub(super) fn encode(plain: &[u8], out: &mut Vec<u8>) {
    out.reserve(max_encoding_length(plain.len()));
    let mut rest = plain;
    loop {
        let window = &rest[..rest.len().min(RUN)];
        let run = memchr::memchr(0, window).unwrap_or(window.len());
        // A run fits in a byte, and so does its code.
        out.push(run as u8 + 1);
        out.extend_from_slice(&rest[..run]);
        // The code of a full run stands for no zero.
        let skip = if run == RUN { run } else { run + 1 };
        match rest.get(skip..) {
            Some(later) if run < RUN || !later.is_empty() => rest = later,
            _ => return,
        }
    }
}

/// Decodes in place and returns the length; `None` if the bytes are no encoding.
pub(super) fn decode(bytes: &mut [u8]) -> Option<usize> {
    let (mut from, mut to) = (0, 0);
    while from < bytes.len() {
        let code = usize::from(bytes[from]);
        let end = from + code;
        if code == 0 || end > bytes.len() {
            return None;
        }
        bytes.copy_within(from + 1..end, to);
        (from, to) = (end, to + code - 1);
        if code <= RUN && from < bytes.len() {
            bytes[to] = 0;
            to += 1;
        }
    }
    Some(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn it_is_what_another_implementation_writes_and_reads(
            plain in proptest::collection::vec(prop_oneof![1 => Just(0u8), 20 => any::<u8>(), 200 => Just(1u8)], 0..1000),
        ) {
            let mut encoded = Vec::new();
            encode(&plain, &mut encoded);
            prop_assert!(encoded.len() <= max_encoding_length(plain.len()));
            prop_assert_eq!(&encoded, &cobs::encode_vec(&plain));
            let length = decode(&mut encoded).unwrap();
            prop_assert_eq!(&encoded[..length], &plain[..]);
        }

        #[test]
        fn foreign_bytes_never_panic(mut bytes in proptest::collection::vec(prop_oneof![0u8..9, any::<u8>()], 0..600)) {
            if let Some(length) = decode(&mut bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
