//! Bounds on everything that clients and servers send and hold.

use casemate_proto::limits::MCP_MESSAGE_BYTES;
use std::time::Duration;

/// What the gateway takes, holds and waits for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest body of a request, in bytes.
    pub body_bytes: usize,
    /// The longest body of a request that belongs to no session, in bytes: `initialize`, and what is refused.
    pub first_body_bytes: usize,
    /// What the bodies of all requests that are not yet with their servers may take together, in bytes; those of
    /// one session may take a quarter of it.
    pub bodies_bytes: usize,
    /// The longest head of a request, in bytes; at least 8192.
    pub head_bytes: usize,
    /// The most header fields of a request.
    pub head_fields: usize,
    /// How long the head of a request may take, and how long a connection may rest between two requests.
    pub head_time: Duration,
    /// How long the body of a request may take.
    pub body_time: Duration,
    /// The most connections; others wait to be accepted.
    pub connections: usize,
    /// The most sessions, those that start and those that end included.
    pub sessions: usize,
    /// The most machines that start at once, and the most sessions of one server that get at once what they need for
    /// that.
    pub starts: usize,
    /// The most sessions that wait until their machine may start.
    pub queue: usize,
    /// The most sessions of one server whose machine has not started.
    pub queue_of_server: usize,
    /// How long a server may take to answer `initialize`.
    pub initialize: Duration,
    /// How long a session is kept for a client that has not named it since.
    pub first_word: Duration,
    /// The most open requests of one session.
    pub open_requests: usize,
    /// The most messages of one session that wait to be written to its server.
    pub outbox: usize,
    /// How long a message may wait for a place among them.
    pub outbox_time: Duration,
    /// What one session keeps for clients that read slowly or come back, in bytes, beside one message that may
    /// be longer.
    pub kept_bytes: usize,
    /// The most streams of one session that are over and kept for clients that come back.
    pub kept_streams: usize,
    /// How long a server, and what is written to a connection, wait for a client that does not read; then its
    /// stream or its connection is cut.
    pub slow_reader: Duration,
    /// How long an answer may take to be a document by itself; then a stream is begun.
    pub quick: Duration,
    /// How long an answer is waited for that has to be a document. Nothing is sent meanwhile, so that a client
    /// may be gone without being seen to be.
    pub document: Duration,
    /// How often something is sent on a stream that rests.
    pub keep_alive: Duration,
    /// After how long without a message a session ends.
    pub session_idle: Duration,
    /// How long requests may take to be answered once the gateway is told to end.
    pub drain: Duration,
    /// How long machines may then take to end, before those that are left are dropped.
    pub stop: Duration,
}

/// Descriptors of a program beside those of connections and sessions: its own, and those of machines that start.
const SPARE: usize = 128;

/// Of how many descriptors a session is: the conversation, and the leash of its machine's supervisor.
const OF_SESSION: usize = 2;

impl Limits {
    /// How many descriptors connections and sessions may need, with what is needed beside them.
    pub fn descriptors(&self) -> usize {
        SPARE + self.connections + OF_SESSION * self.sessions
    }

    /// The same limits, with as many connections and sessions as so many descriptors suffice for: a connection
    /// that cannot be accepted waits, a session that has no descriptors breaks.
    pub fn within_descriptors(self, descriptors: usize) -> Self {
        let each = (descriptors.saturating_sub(SPARE) / (1 + OF_SESSION)).max(1);
        match descriptors >= self.descriptors() {
            true => self,
            false => {
                Self { connections: self.connections.min(each), sessions: self.sessions.min(each), ..self }
            }
        }
    }

    /// What the bodies of one session may take, in bytes; its longest always may.
    pub(crate) fn bodies_of_session(&self) -> usize {
        (self.bodies_bytes / 4).max(self.body_bytes)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: MCP_MESSAGE_BYTES,
            first_body_bytes: 64 << 10,
            bodies_bytes: 8 * MCP_MESSAGE_BYTES,
            head_bytes: 64 << 10,
            head_fields: 100,
            head_time: Duration::from_secs(15),
            body_time: Duration::from_secs(60),
            connections: 1024,
            sessions: 1024,
            starts: 4,
            queue: 64,
            queue_of_server: 48,
            initialize: Duration::from_secs(5 * 60),
            first_word: Duration::from_secs(60),
            open_requests: 64,
            outbox: 16,
            outbox_time: Duration::from_secs(10),
            kept_bytes: 1 << 20,
            kept_streams: 32,
            slow_reader: Duration::from_secs(10),
            quick: Duration::from_secs(1),
            document: Duration::from_secs(60 * 60),
            keep_alive: Duration::from_secs(15),
            session_idle: Duration::from_secs(30 * 60),
            drain: Duration::from_secs(10),
            stop: Duration::from_secs(15),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_and_sessions_are_as_many_as_descriptors_suffice_for() {
        let limits = Limits::default();
        let all = limits.descriptors();
        assert_eq!(limits.clone().within_descriptors(all).sessions, limits.sessions);
        for have in [0, 130, 1024, all - 1] {
            let fewer = limits.clone().within_descriptors(have);
            assert!(fewer.descriptors() <= have.max(SPARE + 3), "{have}: {fewer:?}");
            assert!(fewer.sessions < limits.sessions && fewer.sessions > 0);
        }
    }
}
