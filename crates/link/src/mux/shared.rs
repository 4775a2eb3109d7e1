//! What the driver, the handles and the streams of one link share.
//!
//! Every operation is short, holds the lock, and gives back the wakers to be called once the lock is free.

use super::{LinkDown, StreamLost};
use crate::handshake::printable;
use casemate_proto::limits::STREAMS;
use casemate_proto::mux::{Event, Mux, OpenError, ResetCode, Role, StreamId, Violation};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::ReadBuf;
use tokio::sync::{Notify, watch};

/// What one stream may write in one round. Small enough that a short message waits for few milliseconds
/// behind bulk on a slow link, large enough that one stream alone keeps a fast link busy.
const QUANTUM: usize = 32 << 10;

/// Names a stream for as long as the link lives: ids begin anew with each synchronisation.
pub(super) type Key = (u64, StreamId);

pub(super) struct Shared {
    state: Mutex<State>,
    /// A stream was offered, or the link ended.
    pub(super) offered: Notify,
}

pub(super) struct State {
    mux: Mux,
    /// How many times the link was synchronised.
    generation: u64,
    syncs: Option<watch::Sender<u64>>,
    /// How many times the driver has taken output.
    round: u64,
    entries: BTreeMap<Key, Entry>,
    /// Offered and not asked about yet, oldest first.
    backlog: VecDeque<(Key, u32)>,
    handles: usize,
    driver: Option<Waker>,
    down: Option<LinkDown>,
}

/// One stream, for as long as somebody holds it.
struct Entry {
    phase: Phase,
    inbox: VecDeque<u8>,
    /// The other side sends no more data.
    fin_received: bool,
    /// This side sends no more data.
    fin_sent: bool,
    /// The multiplexer does not know this stream any more.
    lost: Option<StreamLost>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The round that `written` counts in.
    round: u64,
    written: usize,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Phase {
    Opening,
    Offered,
    Open,
}

/// Why a stream cannot be opened now.
pub(super) enum Unopened {
    TooMany,
    NotSynced,
    Down(LinkDown),
}

/// What the driver is to do.
pub(super) enum Output {
    /// Write these bytes.
    Taken,
    /// Wait.
    Nothing,
    /// Stop.
    End(LinkDown),
}

impl Shared {
    pub(super) fn new(role: Role) -> Self {
        let state = State {
            mux: Mux::new(role),
            generation: 0,
            syncs: Some(watch::Sender::new(0)),
            round: 0,
            entries: BTreeMap::new(),
            backlog: VecDeque::new(),
            handles: 1,
            driver: None,
            down: None,
        };
        Self { state: Mutex::new(state), offered: Notify::new() }
    }

    /// Nothing below panics while it holds the lock, but a caller's waker might.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a change of a handle or a stream, then wakes the driver if there is something to write.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let before = state.mux.pending_output();
        let result = change(&mut state);
        let driver =
            if state.mux.pending_output() != before || state.is_idle() { state.driver.take() } else { None };
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        result
    }

    pub(super) fn drop_handle(&self) {
        self.change(|state| {
            state.handles -= 1;
            if state.handles == 0 {
                for (key, _) in std::mem::take(&mut state.backlog) {
                    state.reset(key, ResetCode::Refused, "nobody listens");
                }
            }
        });
    }

    /// Ends the link; the first reason stays.
    pub(super) fn end(&self, reason: LinkDown) {
        let mut state = self.lock();
        let mut wakes = Vec::new();
        if state.down.is_none() {
            state.down = Some(reason.clone());
            state.syncs = None;
            state.clear_backlog();
            state.lose_all(&StreamLost::LinkDown(reason), &mut wakes);
            wakes.extend(state.driver.take());
        }
        drop(state);
        self.offered.notify_waiters();
        wakes.into_iter().for_each(Waker::wake);
    }
}

impl State {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn down(&self) -> Option<&LinkDown> {
        self.down.as_ref()
    }

    /// The reason of a link that is known to be over.
    pub(super) fn end(&self) -> LinkDown {
        self.down.clone().unwrap_or(LinkDown::GivenUp)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        match &self.syncs {
            Some(syncs) => syncs.subscribe(),
            None => watch::channel(self.generation).1,
        }
    }

    pub(super) fn add_handle(&mut self) {
        self.handles += 1;
    }

    /// Nobody can use the link any more.
    fn is_idle(&self) -> bool {
        self.handles == 0 && self.entries.is_empty()
    }

    // --- the driver's side ---

    /// Gives the driver everything there is to write, in exchange for an empty buffer.
    pub(super) fn take_output(
        &mut self,
        out: &mut Vec<u8>,
        cx: &Context<'_>,
        wakes: &mut Vec<Waker>,
    ) -> Output {
        if let Some(down) = &self.down {
            return Output::End(down.clone());
        }
        if self.mux.pending_output() == 0 {
            if self.is_idle() {
                return Output::End(LinkDown::GivenUp);
            }
            remember(&mut self.driver, cx);
            return Output::Nothing;
        }
        *out = self.mux.take_output();
        let ended = self.round;
        self.round += 1;
        for entry in self.entries.values_mut() {
            if entry.round == ended && entry.written >= QUANTUM {
                wakes.extend(entry.writer.take());
            }
        }
        Output::Taken
    }

    /// The driver waits although it has output of its own: it is still woken when the link is ended.
    pub(super) fn watch(&mut self, cx: &Context<'_>) -> Option<LinkDown> {
        remember(&mut self.driver, cx);
        self.down.clone()
    }

    /// Takes bytes from the link; true when a host attached, so that output of before is void.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        offered: &Notify,
        wakes: &mut Vec<Waker>,
    ) -> Result<bool, Violation> {
        let result = self.mux.receive(bytes);
        let mut synced = false;
        while let Some(event) = self.mux.next_event() {
            synced |= event == Event::Synced;
            self.handle(event, offered, wakes);
        }
        result.map(|()| synced)
    }

    fn handle(&mut self, event: Event, offered: &Notify, wakes: &mut Vec<Waker>) {
        match event {
            Event::Synced => {
                self.clear_backlog();
                self.lose_all(&StreamLost::Resynced, wakes);
                self.generation += 1;
                if let Some(syncs) = &self.syncs {
                    syncs.send_replace(self.generation);
                }
            }
            Event::Opened { stream, port } => {
                let key = (self.generation, stream);
                // A stream that is over for the link may still be held here, with its unread bytes.
                let held = self.entries.keys().filter(|key| key.0 == self.generation).count();
                if self.handles == 0 {
                    self.mux.reset(stream, ResetCode::Refused, "nobody listens");
                } else if held >= STREAMS {
                    self.mux.reset(stream, ResetCode::Busy, "too many streams");
                } else {
                    self.entries.insert(key, Entry::new(Phase::Offered));
                    self.backlog.push_back((key, port));
                    offered.notify_one();
                }
            }
            Event::Accepted { stream } => {
                if let Some(entry) = self.current(stream) {
                    entry.phase = Phase::Open;
                    wakes.extend(entry.reader.take());
                }
            }
            Event::Data { stream, bytes } => {
                if let Some(entry) = self.current(stream) {
                    entry.inbox.extend(&bytes);
                    wakes.extend(entry.reader.take());
                }
            }
            Event::Finished { stream } => {
                if let Some(entry) = self.current(stream) {
                    entry.fin_received = true;
                    wakes.extend(entry.reader.take());
                }
            }
            Event::Writable { stream } => {
                if let Some(entry) = self.current(stream) {
                    wakes.extend(entry.writer.take());
                }
            }
            Event::Reset { stream, code, reason } => {
                let key = (self.generation, stream);
                if let Some(index) = self.backlog.iter().position(|(offered, _)| *offered == key) {
                    self.backlog.remove(index);
                    self.entries.remove(&key);
                }
                if let Some(entry) = self.current(stream) {
                    entry.lose(StreamLost::Reset { code, reason: printable(&reason) }, wakes);
                }
            }
        }
    }

    fn current(&mut self, stream: StreamId) -> Option<&mut Entry> {
        self.entries.get_mut(&(self.generation, stream))
    }

    /// Forgets the offers that nobody has asked about, and so nobody holds.
    fn clear_backlog(&mut self) {
        for (key, _) in self.backlog.drain(..) {
            self.entries.remove(&key);
        }
    }

    fn lose_all(&mut self, lost: &StreamLost, wakes: &mut Vec<Waker>) {
        for entry in self.entries.values_mut().filter(|entry| entry.lost.is_none()) {
            entry.lose(lost.clone(), wakes);
        }
    }

    // --- the streams' side ---

    pub(super) fn open(&mut self, port: u32) -> Result<Key, Unopened> {
        if let Some(down) = &self.down {
            return Err(Unopened::Down(down.clone()));
        }
        let id = self.mux.open(port).map_err(|error| match error {
            OpenError::TooMany => Unopened::TooMany,
            OpenError::NotSynced => Unopened::NotSynced,
        })?;
        let key = (self.generation, id);
        self.entries.insert(key, Entry::new(Phase::Opening));
        Ok(key)
    }

    pub(super) fn poll_opened(&mut self, key: Key, cx: &Context<'_>) -> Poll<Result<(), StreamLost>> {
        let Some(entry) = self.entries.get_mut(&key) else { return Poll::Ready(Ok(())) };
        match &entry.lost {
            _ if entry.phase == Phase::Open => Poll::Ready(Ok(())),
            Some(lost) => Poll::Ready(Err(lost.clone())),
            None => {
                remember(&mut entry.reader, cx);
                Poll::Pending
            }
        }
    }

    pub(super) fn next_offer(&mut self) -> Option<(Key, u32)> {
        self.backlog.pop_front()
    }

    pub(super) fn accept(&mut self, key: Key) {
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.lost.is_none()
        {
            entry.phase = Phase::Open;
            self.mux.accept(key.1);
        }
    }

    /// Forgets a stream; if it is not over yet, the other side is told why it is now.
    pub(super) fn reset(&mut self, key: Key, code: ResetCode, reason: &str) {
        if let Some(entry) = self.entries.remove(&key)
            && entry.lost.is_none()
        {
            self.mux.reset(key.1, code, reason);
        }
    }

    pub(super) fn poll_read(
        &mut self,
        key: Key,
        cx: &Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), StreamLost>> {
        let Some(entry) = self.entries.get_mut(&key) else { return Poll::Ready(Ok(())) };
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if entry.inbox.is_empty() {
            return match &entry.lost {
                _ if entry.fin_received => Poll::Ready(Ok(())),
                Some(lost) => Poll::Ready(Err(lost.clone())),
                None => {
                    remember(&mut entry.reader, cx);
                    Poll::Pending
                }
            };
        }
        let (front, back) = entry.inbox.as_slices();
        let front = &front[..front.len().min(buf.remaining())];
        buf.put_slice(front);
        let back = &back[..back.len().min(buf.remaining())];
        buf.put_slice(back);
        let taken = front.len() + back.len();
        entry.inbox.drain(..taken);
        if entry.lost.is_none() {
            self.mux.release(key.1, taken);
        }
        Poll::Ready(Ok(()))
    }

    /// `Ok(None)`: this side has finished already.
    pub(super) fn poll_write(
        &mut self,
        key: Key,
        cx: &Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<Option<usize>, StreamLost>> {
        let Some(entry) = self.entries.get_mut(&key) else { return Poll::Ready(Ok(None)) };
        if let Some(lost) = &entry.lost {
            return Poll::Ready(Err(lost.clone()));
        }
        if entry.fin_sent {
            return Poll::Ready(Ok(None));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(Some(0)));
        }
        if entry.round != self.round {
            (entry.round, entry.written) = (self.round, 0);
        }
        let room = bytes.len().min(QUANTUM - entry.written);
        let taken = self.mux.send(key.1, &bytes[..room]);
        if taken == 0 {
            // Woken by the next round, or by the reader's credit.
            remember(&mut entry.writer, cx);
            return Poll::Pending;
        }
        entry.written += taken;
        Poll::Ready(Ok(Some(taken)))
    }

    pub(super) fn finish(&mut self, key: Key) {
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.lost.is_none()
            && !entry.fin_sent
        {
            entry.fin_sent = true;
            self.mux.finish(key.1);
        }
    }
}

impl Entry {
    fn new(phase: Phase) -> Self {
        Self {
            phase,
            inbox: VecDeque::new(),
            fin_received: false,
            fin_sent: false,
            lost: None,
            reader: None,
            writer: None,
            round: 0,
            written: 0,
        }
    }

    fn lose(&mut self, lost: StreamLost, wakes: &mut Vec<Waker>) {
        if matches!(lost, StreamLost::Resynced) {
            // The bytes are another host's, and so is the end that may follow them.
            self.inbox = VecDeque::new();
            self.fin_received = false;
        }
        self.lost = Some(lost);
        wakes.extend(self.reader.take());
        wakes.extend(self.writer.take());
    }
}

fn remember(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}
