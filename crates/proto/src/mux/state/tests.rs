//! The state machine, both ends driven by hand.

use super::*;
use proptest::prelude::*;

const NONCE: Nonce = [7; 16];

fn host() -> Mux {
    Mux::new(Role::Host { nonce: NONCE })
}

/// Carries bytes both ways until neither side has more to say.
fn settle(a: &mut Mux, b: &mut Mux) {
    while a.pending_output() + b.pending_output() > 0 {
        b.receive(&a.take_output()).unwrap();
        a.receive(&b.take_output()).unwrap();
    }
}

fn pair() -> (Mux, Mux) {
    let (mut host, mut guest) = (host(), Mux::new(Role::Guest));
    settle(&mut host, &mut guest);
    assert_eq!(host.next_event(), Some(Event::Synced));
    assert_eq!(guest.next_event(), Some(Event::Synced));
    (host, guest)
}

fn open(host: &mut Mux, guest: &mut Mux, port: u32) -> StreamId {
    let stream = host.open(port).unwrap();
    settle(host, guest);
    assert_eq!(guest.next_event(), Some(Event::Opened { stream, port }));
    guest.accept(stream);
    settle(host, guest);
    assert_eq!(host.next_event(), Some(Event::Accepted { stream }));
    stream
}

#[test]
fn each_direction_ends_by_itself() {
    let (mut host, mut guest) = pair();
    let stream = open(&mut host, &mut guest, 5252);
    assert_eq!(host.send(stream, b"ask"), 3);
    host.finish(stream);
    settle(&mut host, &mut guest);
    assert_eq!(guest.next_event(), Some(Event::Data { stream, bytes: b"ask".to_vec() }));
    assert_eq!(guest.next_event(), Some(Event::Finished { stream }));
    assert_eq!(guest.send(stream, b"answer"), 6);
    guest.finish(stream);
    settle(&mut host, &mut guest);
    assert_eq!(host.next_event(), Some(Event::Data { stream, bytes: b"answer".to_vec() }));
    assert_eq!(host.next_event(), Some(Event::Finished { stream }));
    assert!(host.streams.is_empty() && guest.streams.is_empty());
}

#[test]
fn a_reader_that_stops_stops_its_writer_and_nobody_else() {
    let (mut host, mut guest) = pair();
    let (slow, quick) = (open(&mut host, &mut guest, 1), open(&mut host, &mut guest, 2));
    assert_eq!(host.send(slow, &vec![1; WINDOW + 1]), WINDOW);
    assert_eq!(host.send(slow, b"more"), 0);
    assert_eq!(host.send(quick, b"more"), 4);
    settle(&mut host, &mut guest);
    guest.release(slow, GRANT);
    settle(&mut host, &mut guest);
    assert_eq!(host.next_event(), Some(Event::Writable { stream: slow }));
    assert_eq!(host.send(slow, &vec![1; WINDOW]), GRANT);
}

#[test]
fn a_refused_stream_says_why() {
    let (mut host, mut guest) = pair();
    let stream = host.open(5252).unwrap();
    settle(&mut host, &mut guest);
    guest.reset(stream, ResetCode::Busy, "held by run");
    settle(&mut host, &mut guest);
    let reason = "held by run".to_owned();
    assert_eq!(host.next_event(), Some(Event::Reset { stream, code: ResetCode::Busy, reason }));
}

#[test]
fn a_new_host_gets_nothing_of_the_old_ones_streams() {
    let (mut old, mut guest) = pair();
    let stream = open(&mut old, &mut guest, 5252);
    old.send(stream, &[9; 1000]);
    // The old host dies in the middle of a frame, and the guest's answer to it is still under way.
    let cut = old.take_output();
    guest.receive(&cut[..500]).unwrap();
    guest.send(stream, b"answer for the old host");
    let stale = guest.take_output();

    let mut new = Mux::new(Role::Host { nonce: [8; 16] });
    new.receive(&stale[3..]).unwrap();
    settle(&mut new, &mut guest);
    assert_eq!(new.next_event(), Some(Event::Synced));
    assert_eq!(new.next_event(), None);
    assert_eq!(guest.next_event(), Some(Event::Synced));
    assert_eq!(guest.next_event(), None);
    open(&mut new, &mut guest, 5253);
}

#[test]
fn frames_under_way_to_a_stream_that_was_reset_are_dropped() {
    let (mut host, mut guest) = pair();
    let stream = open(&mut host, &mut guest, 5252);
    guest.send(stream, b"late");
    host.reset(stream, ResetCode::Gone, "client went away");
    settle(&mut host, &mut guest);
    assert_eq!(host.next_event(), None);
    assert!(matches!(guest.next_event(), Some(Event::Reset { stream: s, .. }) if s == stream));
}

#[test]
fn a_guest_that_breaks_the_rules_loses_the_link() {
    let frames: [(&str, Frame<'_>); 6] = [
        ("stream that never was", Frame::Data { stream: 99, bytes: b"x" }),
        ("stream id of the host", Frame::Open { stream: 3, port: 1 }),
        ("second accept", Frame::Accept { stream: 1 }),
        ("credit beyond the window", Frame::Credit { stream: 1, bytes: 1 }),
        ("second synchronisation", Frame::Synced { nonce: NONCE }),
        ("a host's synchronisation", Frame::Sync { nonce: NONCE }),
    ];
    for (what, frame) in frames {
        let (mut host, mut guest) = pair();
        open(&mut host, &mut guest, 5252);
        let mut wire = Vec::new();
        encode(&frame, &mut wire);
        assert!(host.receive(&wire).is_err(), "{what} was accepted");
    }
}

#[test]
fn more_data_than_the_window_is_a_violation() {
    let (mut host, mut guest) = pair();
    let stream = open(&mut host, &mut guest, 5252);
    let mut wire = Vec::new();
    for _ in 0..=WINDOW / DATA_BYTES {
        encode(&Frame::Data { stream: stream.0, bytes: &[1; DATA_BYTES] }, &mut wire);
    }
    assert_eq!(host.receive(&wire), Err(Violation::Window { stream: stream.0 }));
}

#[test]
fn a_frame_without_end_is_a_violation() {
    let (mut host, _) = pair();
    assert_eq!(host.receive(&vec![1; ENCODED_BYTES]), Err(Violation::Overlong));
}

#[test]
fn a_flood_of_opens_is_bounded() {
    let (mut host, _) = pair();
    let mut wire = Vec::new();
    let mut result = Ok(());
    for stream in (2..).step_by(2).take(1_000_000) {
        wire.clear();
        encode(&Frame::Open { stream, port: 1 }, &mut wire);
        result = host.receive(&wire);
        if result.is_err() {
            break;
        }
    }
    assert_eq!(result, Err(Violation::Flood));
    assert_eq!(host.streams.len(), GUEST_STREAMS);
    assert!(host.open(1).is_ok(), "the guest left the host no stream");
}

#[test]
fn who_opens_too_many_streams_is_told_that_there_is_no_room_now() {
    let (mut host, mut guest) = pair();
    for _ in 0..GUEST_STREAMS {
        guest.open(1).unwrap();
    }
    let refused = guest.open(1).unwrap();
    settle(&mut host, &mut guest);
    let told = guest.next_event();
    assert!(
        matches!(told, Some(Event::Reset { stream, code: ResetCode::Busy, .. }) if stream == refused),
        "{told:?}"
    );
}

#[test]
fn an_endless_guest_is_given_up_before_synchronisation() {
    let mut host = host();
    let chunk = vec![1u8; 1 << 20];
    let result = (0..100).try_for_each(|_| host.receive(&chunk));
    assert_eq!(result, Err(Violation::NeverSynced));
    assert!(host.partial.len() <= ENCODED_BYTES);
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic_and_never_break_a_guest(
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), 0u8..9, any::<u8>()], 0..3000),
    ) {
        let (mut host, mut guest) = pair();
        let _ = host.receive(&bytes);
        guest.receive(&bytes).unwrap();
        let mut later = Mux::new(Role::Host { nonce: [3; 16] });
        settle(&mut later, &mut guest);
        prop_assert!(later.is_synced());
    }

    #[test]
    fn streams_arrive_whole_whatever_the_chunks(
        messages in proptest::collection::vec((0usize..3, proptest::collection::vec(any::<u8>(), 1..5000)), 1..40),
        chunk in 1usize..700,
    ) {
        let (mut host, mut guest) = pair();
        let streams = [1, 2, 3].map(|port| open(&mut host, &mut guest, port));
        let mut sent = vec![Vec::new(); 3];
        let mut received = vec![Vec::new(); 3];
        for (which, bytes) in &messages {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let taken = host.send(streams[*which], rest);
                rest = &rest[taken..];
                for part in host.take_output().chunks(chunk) {
                    guest.receive(part).unwrap();
                }
                while let Some(event) = guest.next_event() {
                    let Event::Data { stream, bytes } = event else { panic!("{event:?}") };
                    let index = streams.iter().position(|&s| s == stream).unwrap();
                    received[index].extend_from_slice(&bytes);
                    guest.release(stream, bytes.len());
                }
                host.receive(&guest.take_output()).unwrap();
            }
            sent[*which].extend_from_slice(bytes);
        }
        prop_assert_eq!(sent, received);
    }
}
