use super::*;
use proptest::{collection::vec, prelude::*};

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Streams {
    /// Adds an event that nobody waits for.
    fn tell(&mut self, id: StreamId, event: &str) {
        self.push(id, text(event), Instead::Nothing);
    }

    /// Adds an answer, in whose place `-` is told.
    fn answer(&mut self, id: StreamId, event: &str) {
        self.push(id, text(event), Instead::Tell(text("-")));
        self.end(id);
    }
}

/// What a reader finds until it has to wait or all is over.
fn all(streams: &mut Streams, id: StreamId, ticket: Ticket) -> (Vec<(u64, String)>, Read) {
    let mut seen = Vec::new();
    loop {
        match streams.read(id, ticket, Waker::noop()) {
            Read::Event { number, data, .. } => {
                seen.push((number, String::from_utf8(data.to_vec()).unwrap()));
            }
            end => return (seen, end),
        }
    }
}

#[test]
fn a_stream_is_read_once_in_order_and_ends() {
    let mut streams = Streams::new(100, 4);
    let (id, ticket) = streams.open();
    streams.tell(id, "a");
    streams.tell(id, "b");
    assert!(matches!(streams.peek(id, ticket, Waker::noop()), Read::Event { number: 1, last: false, .. }));
    assert_eq!(all(&mut streams, id, ticket), (vec![(1, "a".into()), (2, "b".into())], Read::Wait));
    streams.tell(id, "c");
    streams.end(id);
    streams.tell(id, "too late");
    assert!(matches!(streams.peek(id, ticket, Waker::noop()), Read::Event { number: 3, last: true, .. }));
    assert_eq!(all(&mut streams, id, ticket), (vec![(3, "c".into())], Read::End));
}

#[test]
fn who_comes_back_reads_on_after_the_event_that_it_names() {
    let mut streams = Streams::new(100, 4);
    let (id, first) = streams.open();
    for data in ["a", "b", "c"] {
        streams.tell(id, data);
    }
    assert_eq!(all(&mut streams, id, first).0.len(), 3);
    let second = streams.attach(id, Some(1)).unwrap();
    // The first one's connection may not be known to be gone.
    assert_eq!(streams.read(id, first, Waker::noop()), Read::End);
    streams.detach(id, first);
    assert_eq!(all(&mut streams, id, second), (vec![(2, "b".into()), (3, "c".into())], Read::Wait));
    streams.detach(id, second);
    streams.tell(id, "d");
    streams.end(id);
    let third = streams.attach(id, Some(0)).unwrap();
    assert_eq!(all(&mut streams, id, third).0.len(), 4);
    assert_eq!(streams.attach(id, Some(5)), Err(AttachError::Unknown));
    assert_eq!(streams.attach(id + 1, Some(0)), Err(AttachError::Unknown));
}

#[test]
fn one_reads_at_a_time_and_what_came_meanwhile_waits() {
    let mut streams = Streams::new(100, 4);
    streams.tell(OWN, "a");
    let first = streams.attach(OWN, None).unwrap();
    assert_eq!(streams.attach(OWN, None), Err(AttachError::Taken));
    assert_eq!(all(&mut streams, OWN, first).0, [(1, "a".into())]);
    streams.detach(OWN, first);
    streams.tell(OWN, "b");
    let second = streams.attach(OWN, None).unwrap();
    assert_eq!(all(&mut streams, OWN, second).0, [(2, "b".into())]);
}

#[test]
fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
    let mut streams = Streams::new(10, 4);
    for number in 0..100 {
        streams.tell(OWN, &format!("{number:02}"));
    }
    assert_eq!(streams.bytes, 10);
    // Who has seen less than what is gone is not told that this was all.
    for missed in [0, 94] {
        assert_eq!(streams.attach(OWN, Some(missed)), Err(AttachError::Unknown));
    }
    let seen = streams.attach(OWN, Some(95)).unwrap();
    streams.detach(OWN, seen);
    let ticket = streams.attach(OWN, None).unwrap();
    let (seen, _) = all(&mut streams, OWN, ticket);
    assert_eq!(seen.first().map(|(number, _)| *number), Some(96));
    assert_eq!(seen.len(), 5);
}

#[test]
fn what_a_connected_reader_has_to_read_is_not_given_up() {
    let mut streams = Streams::new(10, 4);
    let (id, ticket) = streams.open();
    let (other, _) = streams.open();
    streams.end(other);
    for _ in 0..10 {
        streams.tell(id, "0123456789");
        streams.tell(OWN, "xxxxx");
    }
    assert!(streams.is_full());
    assert_eq!(all(&mut streams, id, ticket).0.len(), 10);
    assert!(!streams.is_full() && streams.bytes <= 10);
    for _ in 0..10 {
        streams.tell(id, "0123456789");
    }
    streams.cut_slowest();
    assert!(!streams.is_full() && streams.bytes <= 10);
    assert_eq!(streams.read(id, ticket, Waker::noop()), Read::End);
}

#[test]
fn streams_that_are_over_are_few() {
    let mut streams = Streams::new(1000, 3);
    let mut opened = Vec::new();
    for _ in 0..10 {
        let (id, ticket) = streams.open();
        streams.tell(id, "answer");
        streams.end(id);
        assert_eq!(all(&mut streams, id, ticket).0.len(), 1);
        streams.detach(id, ticket);
        opened.push(id);
    }
    let kept = opened.iter().filter(|&&id| streams.attach(id, Some(0)).is_ok()).count();
    assert_eq!((kept, streams.bytes), (3, 18));
    opened.iter().for_each(|&id| streams.forget(id));
    assert_eq!(streams.bytes, 0);
}

#[test]
fn an_answer_that_is_not_kept_is_told_of_in_its_place() {
    let mut streams = Streams::new(100, 4);
    let mut lost = || {
        let (id, ticket) = streams.open();
        streams.name(id);
        streams.detach(id, ticket);
        streams.tell(id, "progress");
        streams.answer(id, &"x".repeat(90));
        id
    };
    let (first, second) = (lost(), lost());
    assert!(streams.bytes <= 100);
    // The progress before it is worth nothing; the answer is numbered as it was.
    let told = vec![(2, "-".to_owned())];
    let whole = vec![(1, "progress".to_owned()), (2, "x".repeat(90))];
    for (id, found) in [(first, told), (second, whole)] {
        let ticket = streams.attach(id, Some(0)).unwrap();
        assert_eq!(all(&mut streams, id, ticket), (found, Read::End));
        streams.detach(id, ticket);
    }
}

#[test]
fn who_has_not_seen_an_answer_that_is_gone_is_refused() {
    let mut streams = Streams::new(100, 4);
    let (id, ticket) = streams.open();
    streams.answer(id, &"x".repeat(200));
    assert_eq!(all(&mut streams, id, ticket).0.len(), 1);
    streams.detach(id, ticket);
    assert_eq!((streams.attach(id, Some(0)), streams.bytes), (Err(AttachError::Unknown), 0));
}

#[test]
fn a_server_whose_request_is_given_up_is_answered() {
    let mut streams = Streams::new(10, 4);
    let ask = |streams: &mut Streams, id, reply| {
        streams.push(id, text("question?"), Instead::Reply(text(reply)));
    };
    ask(&mut streams, OWN, "1");
    assert!(streams.unheard().is_empty());
    ask(&mut streams, OWN, "2");
    assert_eq!(streams.unheard(), [text("1")]);
    // One that a client has read is its own to answer.
    let ticket = streams.attach(OWN, None).unwrap();
    assert_eq!(all(&mut streams, OWN, ticket).0.len(), 1);
    ask(&mut streams, OWN, "3");
    assert!(streams.unheard().is_empty());
    // A stream that nobody can come back to is none.
    let (id, ticket) = streams.open();
    ask(&mut streams, id, "4");
    streams.detach(id, ticket);
    assert_eq!((streams.unheard(), streams.is_kept(id)), (vec![text("4")], false));
    ask(&mut streams, id, "5");
    assert_eq!(streams.unheard(), [text("5")]);
}

#[test]
fn answers_that_were_read_go_before_those_that_were_not() {
    let mut streams = Streams::new(1000, 2);
    let mut opened = Vec::new();
    for read in [false, true, true, true] {
        let (id, ticket) = streams.open();
        streams.answer(id, "answer");
        if read {
            all(&mut streams, id, ticket);
        }
        streams.name(id);
        streams.detach(id, ticket);
        opened.push(streams.is_kept(id));
    }
    let kept: Vec<bool> = (1..=4).map(|id| streams.is_kept(id)).collect();
    assert_eq!((opened, kept), (vec![true; 4], vec![true, false, false, true]));
}

/// What happens to streams.
#[derive(Debug, Clone)]
enum Deed {
    Open,
    Push(u64, usize, u8),
    End(u64),
    Name(u64),
    Read(u64),
    Detach(u64),
    Attach(u64, Option<u64>),
    Forget(u64),
    Cut,
}

fn deed() -> impl Strategy<Value = Deed> {
    let id = 0..6u64;
    prop_oneof![
        2 => Just(Deed::Open),
        8 => (id.clone(), 0..40usize, 0..3u8).prop_map(|(id, length, kind)| Deed::Push(id, length, kind)),
        3 => id.clone().prop_map(Deed::End),
        3 => id.clone().prop_map(Deed::Name),
        6 => id.clone().prop_map(Deed::Read),
        3 => id.clone().prop_map(Deed::Detach),
        4 => (id.clone(), proptest::option::of(0..12u64)).prop_map(|(id, after)| Deed::Attach(id, after)),
        1 => id.prop_map(Deed::Forget),
        1 => Just(Deed::Cut),
    ]
}

/// What is kept is what is counted, and within bounds.
fn check(streams: &Streams) {
    let all = streams.streams.values();
    let held = |stream: &Stream| stream.events.iter().map(|event| event.data.len()).sum::<usize>();
    assert_eq!(streams.bytes, all.clone().map(held).sum::<usize>());
    let mut to_read = 0;
    for stream in all.clone() {
        let read = usize::try_from(stream.next - stream.first).unwrap();
        assert!(read <= stream.events.len());
        let unread: usize = stream.events.iter().skip(read).map(|event| event.data.len()).sum();
        assert_eq!(stream.unread, unread);
        to_read += if stream.reader.is_some() { unread } else { 0 };
    }
    assert!(streams.bytes <= streams.kept_bytes.max(to_read));
    let over = all.filter(|stream| stream.ended && stream.reader.is_none()).count();
    assert!(over <= streams.kept_streams);
}

proptest! {
    #[test]
    fn nothing_is_kept_beyond_bounds_and_no_answer_is_missed_unnoticed(deeds in vec(deed(), 1..200)) {
        let mut streams = Streams::new(100, 2);
        let (mut tickets, mut pushed, mut answers) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for deed in deeds {
            match deed {
                Deed::Open => {
                    let (id, ticket) = streams.open();
                    tickets.insert(id, ticket);
                }
                Deed::Push(id, length, kind) => {
                    let takes = streams.streams.get(&id).is_some_and(|stream| !stream.ended);
                    let number = pushed.entry(id).or_insert(0);
                    *number += u64::from(takes);
                    let instead = match kind {
                        0 => Instead::Nothing,
                        1 => Instead::Reply(text("reply")),
                        _ => Instead::Tell(text("-")),
                    };
                    if takes && kind == 2 {
                        answers.push((id, *number));
                    }
                    streams.push(id, text(&"x".repeat(length)), instead);
                }
                Deed::End(id) => streams.end(id),
                Deed::Name(id) => streams.name(id),
                Deed::Read(id) => {
                    let ticket = tickets.get(&id).copied().unwrap_or_default();
                    streams.read(id, ticket, Waker::noop());
                }
                Deed::Detach(id) => streams.detach(id, tickets.get(&id).copied().unwrap_or_default()),
                Deed::Attach(id, after) => {
                    if let Ok(ticket) = streams.attach(id, after) {
                        tickets.insert(id, ticket);
                        let first = streams.streams[&id].first;
                        let missed = |&(of, number): &(u64, u64)| {
                            of == id && after.is_some_and(|after| number > after) && number < first
                        };
                        prop_assert!(!answers.iter().any(missed));
                    }
                }
                Deed::Forget(id) if id != OWN => streams.forget(id),
                Deed::Forget(_) => {}
                Deed::Cut => streams.cut_slowest(),
            }
            check(&streams);
        }
    }
}
