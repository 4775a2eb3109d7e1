//! Frames of an `exec` or `watch` stream: bounded, and the same whatever the chunks.
#![no_main]

use casemate_proto::frame::{FrameBuffer, FrameError, Kind};
use casemate_proto::limits::FRAME_BYTES;
use libfuzzer_sys::fuzz_target;

fn frames(chunks: &[&[u8]]) -> (Vec<(Kind, Vec<u8>)>, Option<FrameError>) {
    let mut buffer = FrameBuffer::default();
    let mut seen = Vec::new();
    for chunk in chunks {
        buffer.push(chunk);
        loop {
            match buffer.next_frame() {
                Ok(Some((kind, payload))) => seen.push((kind, payload.to_vec())),
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
    }
    (seen, None)
}

fuzz_target!(|chunks: Vec<&[u8]>| {
    let (seen, error) = frames(&chunks);
    assert!(seen.iter().all(|(_, payload)| payload.len() <= FRAME_BYTES));
    assert_eq!(frames(&[&chunks.concat()]), (seen, error));
});
