//! Server-sent events: the same whatever the chunks, and never longer than allowed.
#![no_main]

use casemate_mcp::http::sse::{Decoder, Event};
use libfuzzer_sys::fuzz_target;

fn decode(limit: usize, chunks: &[&[u8]]) -> (Vec<Event>, bool) {
    let (mut decoder, mut events) = (Decoder::new(limit), Vec::new());
    for chunk in chunks {
        let pushed = decoder.push(chunk);
        events.extend(std::iter::from_fn(|| decoder.next_event()));
        if pushed.is_err() {
            return (events, true);
        }
    }
    (events, false)
}

fuzz_target!(|input: (u8, Vec<&[u8]>)| {
    let (limit, chunks) = (usize::from(input.0), input.1);
    let bytes: Vec<[u8; 1]> = chunks.concat().into_iter().map(|byte| [byte]).collect();
    let bytes: Vec<&[u8]> = bytes.iter().map(|byte| &byte[..]).collect();
    let seen = decode(limit, &chunks);
    assert_eq!(seen, decode(limit, &bytes), "the chunks make a difference");
    assert!(seen.0.iter().all(|event| event.data.len() <= limit));
});
