//! What a guest may read: whatever it was, the next host finds a guest that answers.
#![no_main]

use casemate_proto::mux::{Event, Mux, ResetCode, Role};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|chunks: Vec<Vec<u8>>| {
    let mut guest = Mux::new(Role::Guest);
    for chunk in &chunks {
        guest.receive(chunk).expect("a guest never gives up");
        while let Some(event) = guest.next_event() {
            match event {
                Event::Opened { stream, port } if port % 3 == 0 => {
                    guest.reset(stream, ResetCode::Refused, "no")
                }
                Event::Opened { stream, .. } => guest.accept(stream),
                Event::Data { stream, bytes } => {
                    guest.release(stream, bytes.len());
                    guest.send(stream, &bytes);
                }
                Event::Finished { stream } => guest.finish(stream),
                Event::Synced => drop(guest.open(1)),
                Event::Accepted { .. } | Event::Writable { .. } | Event::Reset { .. } => {}
            }
        }
    }
    let mut host = Mux::new(Role::Host { nonce: [9; 16] });
    host.receive(&guest.take_output()).expect("bytes before the answer are skipped");
    guest.receive(&host.take_output()).expect("a guest never gives up");
    host.receive(&guest.take_output()).expect("the answer");
    assert!(host.is_synced() && guest.is_synced());
    let stream = host.open(1).expect("a synchronised link");
    guest.receive(&host.take_output()).expect("a guest never gives up");
    assert_eq!(guest.next_event(), Some(Event::Synced));
    assert_eq!(guest.next_event(), Some(Event::Opened { stream, port: 1 }));
});
