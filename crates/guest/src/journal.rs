//! What the server said on stderr and what happened to it, kept until somebody follows.

use crate::reaper::lock;
use casemate_proto::control::Event;
use std::collections::VecDeque;
use std::sync::Mutex;
use tokio::sync::Notify;

/// How much is kept; older entries are dropped for newer ones, and the server never waits.
const KEPT_BYTES: usize = 256 << 10;
/// What an entry counts beyond its text, so that neither single bytes nor events fill the memory.
const ENTRY_BYTES: usize = 128;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Bytes of stderr.
    Stderr(Vec<u8>),
    /// Something happened to the server.
    Event(Event),
}

impl Entry {
    fn cost(&self) -> usize {
        match self {
            Self::Stderr(bytes) => ENTRY_BYTES + bytes.len(),
            Self::Event(Event::Exited(exit)) => ENTRY_BYTES + exit.stderr_tail.len(),
            Self::Event(_) => ENTRY_BYTES,
        }
    }
}

/// A bounded record of the server, with any number of followers.
#[derive(Debug, Default)]
pub struct Journal {
    record: Mutex<Record>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Record {
    entries: VecDeque<Entry>,
    /// The number of the first entry that is kept.
    first: u64,
    /// Entries before this number were taken by some follower …
    taken: u64,
    /// … which then had passed so many bytes of stderr.
    passed: u64,
    /// Where followers begin.
    mark: Cursor,
    cost: usize,
    /// Bytes of stderr dropped, ever, and of these the ones that no follower had taken.
    dropped: u64,
    lost: u64,
}

/// Where a follower is.
#[derive(Debug, Default, Clone, Copy)]
pub struct Cursor {
    next: u64,
    /// Bytes of stderr that it was given or told of.
    passed: u64,
}

impl Journal {
    /// Appends an entry.
    pub fn push(&self, entry: Entry) {
        let mut record = lock(&self.record);
        record.cost += entry.cost();
        record.entries.push_back(entry);
        while record.cost > KEPT_BYTES {
            let Some(old) = record.entries.pop_front() else { break };
            record.cost -= old.cost();
            if let Entry::Stderr(bytes) = &old {
                record.dropped += bytes.len() as u64;
                if record.first >= record.taken {
                    record.lost += bytes.len() as u64;
                }
            }
            record.first += 1;
        }
        drop(record);
        self.changed.notify_waiters();
    }

    /// Forgets everything.
    pub fn clear(&self) {
        *lock(&self.record) = Record::default();
    }

    /// Has later followers begin where the furthest has come to: the host that followed knows the rest.
    pub fn mark(&self) {
        let mut record = lock(&self.record);
        record.mark = Cursor { next: record.taken, passed: record.passed };
    }

    /// Where a follower begins.
    pub fn cursor(&self) -> Cursor {
        lock(&self.record).mark
    }

    /// The next entry for a follower, waiting for it; from the oldest that is kept. Where entries were
    /// dropped before it came to them, it gets their size first. May be cancelled.
    pub async fn next(&self, cursor: &mut Cursor) -> Entry {
        loop {
            // Made before looking, so that no entry comes between looking and waiting.
            let changed = self.changed.notified();
            if let Some(entry) = self.try_next(cursor) {
                return entry;
            }
            changed.await;
        }
    }

    /// Bytes of stderr that were dropped before anybody took them.
    pub fn lost_bytes(&self) -> u64 {
        lock(&self.record).lost
    }

    fn try_next(&self, cursor: &mut Cursor) -> Option<Entry> {
        let mut record = lock(&self.record);
        if cursor.next < record.first {
            let bytes = record.dropped - cursor.passed;
            cursor.next = record.first;
            cursor.passed = record.dropped;
            if bytes > 0 {
                return Some(Entry::Event(Event::Dropped { bytes }));
            }
        }
        let entry = record.entries.get((cursor.next - record.first) as usize)?.clone();
        cursor.next += 1;
        if let Entry::Stderr(bytes) = &entry {
            cursor.passed += bytes.len() as u64;
        }
        if cursor.next > record.taken {
            record.taken = cursor.next;
            record.passed = cursor.passed;
        }
        Some(entry)
    }
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
pub struct Tail(VecDeque<u8>);

impl Tail {
    /// Appends bytes, forgetting the oldest beyond `limit`.
    pub fn push(&mut self, bytes: &[u8], limit: usize) {
        let new = &bytes[bytes.len().saturating_sub(limit)..];
        let excess = (self.0.len() + new.len()).saturating_sub(limit);
        self.0.drain(..excess);
        self.0.extend(new);
    }

    /// The text, with what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        let (front, back) = self.0.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stderr(byte: u8, length: usize) -> Entry {
        Entry::Stderr(vec![byte; length])
    }

    #[test]
    fn a_late_follower_reads_from_the_beginning() {
        let journal = Journal::default();
        journal.push(stderr(1, 10));
        journal.push(stderr(2, 10));
        let mut cursor = Cursor::default();
        assert_eq!(journal.try_next(&mut cursor), Some(stderr(1, 10)));
        assert_eq!(journal.try_next(&mut cursor), Some(stderr(2, 10)));
        assert_eq!(journal.try_next(&mut cursor), None);
        assert_eq!(journal.lost_bytes(), 0);
    }

    #[test]
    fn what_was_dropped_is_told_and_counted_if_nobody_had_it() {
        // Two such entries are kept.
        const HALF: usize = KEPT_BYTES / 2 - ENTRY_BYTES;
        let journal = Journal::default();
        let mut early = Cursor::default();
        journal.push(stderr(1, HALF));
        assert!(journal.try_next(&mut early).is_some());
        for byte in 2..6 {
            journal.push(stderr(byte, HALF));
        }
        // The first was taken before it was dropped; the second and third were not.
        assert_eq!(journal.lost_bytes(), 2 * HALF as u64);
        let mut late = Cursor::default();
        let dropped = |bytes| Some(Entry::Event(Event::Dropped { bytes }));
        assert_eq!(journal.try_next(&mut late), dropped(3 * HALF as u64));
        assert_eq!(journal.try_next(&mut late), Some(stderr(4, HALF)));
        assert_eq!(journal.try_next(&mut early), dropped(2 * HALF as u64));
    }

    #[test]
    fn after_a_mark_a_follower_goes_on_where_the_last_one_was() {
        let journal = Journal::default();
        journal.push(stderr(1, 10));
        assert!(journal.try_next(&mut Cursor::default()).is_some());
        journal.push(stderr(2, 10));
        journal.mark();
        let mut next = journal.cursor();
        assert_eq!(journal.try_next(&mut next), Some(stderr(2, 10)));
        assert_eq!(journal.try_next(&mut next), None);
    }

    #[test]
    fn single_bytes_do_not_fill_the_memory() {
        let journal = Journal::default();
        for _ in 0..KEPT_BYTES {
            journal.push(stderr(1, 1));
        }
        assert!(lock(&journal.record).entries.len() <= KEPT_BYTES / ENTRY_BYTES);
    }

    #[test]
    fn the_tail_keeps_the_end() {
        let mut tail = Tail::default();
        tail.push(b"0123456789", 4);
        assert_eq!(tail.text(), "6789");
        tail.push(b"ab\xff", 4);
        assert_eq!(tail.text(), "9ab\u{fffd}");
    }
}
