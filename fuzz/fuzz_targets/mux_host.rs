//! What a hostile guest sends: the host's end must never panic, and never go on after a violation.
#![no_main]

use casemate_proto::mux::{Event, Frame, Mux, Nonce, ResetCode, Role, WINDOW, encode};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

const NONCE: Nonce = [7; 16];

fuzz_target!(|chunks: Vec<Vec<u8>>| {
    let mut mux = Mux::new(Role::Host { nonce: NONCE });
    let mut wire = Vec::new();
    encode(&Frame::Synced { nonce: NONCE }, &mut wire);
    mux.receive(&wire).expect("the host's own nonce");
    assert_eq!(mux.next_event(), Some(Event::Synced));
    let own = [mux.open(1), mux.open(2)].map(|opened| opened.expect("nothing is open yet"));
    // Bytes that a stream delivered and nobody has released.
    let mut unread = BTreeMap::from(own.map(|stream| (stream, 0)));

    for (turn, chunk) in chunks.iter().enumerate() {
        let result = mux.receive(chunk);
        while let Some(event) = mux.next_event() {
            match event {
                Event::Synced => panic!("synchronised twice"),
                Event::Opened { stream, port } if port % 3 == 0 => {
                    mux.reset(stream, ResetCode::Refused, "no")
                }
                Event::Opened { stream, .. } => {
                    assert_eq!(unread.insert(stream, 0), None, "a stream opened twice");
                    mux.accept(stream);
                }
                Event::Data { stream, bytes } => {
                    let held = unread.get_mut(&stream).expect("data of no stream");
                    *held += bytes.len();
                    assert!(*held <= WINDOW, "more bytes than the window");
                    if turn % 2 == 0 {
                        mux.release(stream, std::mem::take(held));
                    }
                }
                Event::Finished { stream } => mux.finish(stream),
                Event::Accepted { stream } | Event::Writable { stream } => {
                    assert!(mux.send(stream, &[0; 100_000]) <= WINDOW);
                }
                Event::Reset { stream, reason, .. } => {
                    assert!(unread.remove(&stream).is_some() && reason.len() <= 256);
                }
            }
        }
        if result.is_err() {
            return;
        }
        mux.take_output();
    }
});
