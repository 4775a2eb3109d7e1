//! Lines of a control stream, in both directions: what decodes must encode, and decode to the same again.
#![no_main]

use casemate_proto::control::{Envelope, Reply, Welcome};
use casemate_proto::limits::CONTROL_MESSAGE_BYTES;
use casemate_proto::line::LineBuffer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = LineBuffer::new(CONTROL_MESSAGE_BYTES);
    lines.push(bytes);
    while let Ok(Some(line)) = lines.next_line() {
        if let Ok(envelope) = serde_json::from_slice::<Envelope>(line) {
            let written = serde_json::to_string(&envelope).expect("an envelope is JSON");
            let again: Envelope = serde_json::from_str(&written).expect("its own writing");
            assert_eq!(serde_json::to_string(&again).expect("an envelope is JSON"), written);
        }
        if let Ok(reply) = serde_json::from_slice::<Reply>(line) {
            let _ = reply.into_result::<Welcome>(1);
        }
    }
});
