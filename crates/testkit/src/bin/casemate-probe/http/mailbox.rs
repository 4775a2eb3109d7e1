//! Hands messages from the threads that make them to the thread that owns the connection.

use crate::conversation::Outlet;
use crate::rpc::Answer;
use crate::signal::lock;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use serde_json::Value;
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

/// The most messages that wait; the oldest are dropped, as a client that does not listen misses them.
const WAITING: usize = 256;

/// What comes out of a mailbox.
#[derive(Debug)]
pub enum Event {
    /// A notification, or a request of the server's own.
    Message(Value),
    /// The answer; the last event.
    Answer(Answer),
    /// No answer will come; the last event.
    End,
    /// The client has closed the connection.
    HungUp,
}

/// A queue whose reader can wait for a connection at the same time.
#[derive(Debug)]
pub struct Mailbox {
    events: Mutex<VecDeque<Event>>,
    bell: OwnedFd,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { events: Mutex::default(), bell })
    }

    /// Waits for an event, or for the client to hang up.
    pub fn wait(&self, stream: &TcpStream) -> Event {
        loop {
            if let Some(event) = lock(&self.events).pop_front() {
                return event;
            }
            let mut fds = [
                PollFd::new(&self.bell, PollFlags::IN),
                // Not for bytes: another request may wait there already, and stays until this one is done.
                PollFd::new(stream, PollFlags::RDHUP),
            ];
            // An interrupted wait is tried again like one that brought nothing.
            let _ = poll(&mut fds, None);
            let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
            if fds[1].revents().intersects(gone) {
                return Event::HungUp;
            }
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
    }

    fn put(&self, event: Event) {
        let mut events = lock(&self.events);
        if events.len() >= WAITING {
            events.pop_front();
        }
        events.push_back(event);
        // Fails only when the counter is full, and then the reader is awake already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

impl Outlet for Mailbox {
    fn send(&self, message: Value) {
        self.put(Event::Message(message));
    }

    fn answer(&self, answer: Answer) {
        self.put(Event::Answer(answer));
    }

    fn abandon(&self) {
        self.put(Event::End);
    }
}
