//! How much of a conversation is under way at once: connections to the server, and bytes that it sent.
//!
//! Each connection is a stream of the machine's link. Whatever the guest opens, the host has a part of the
//! link's streams to itself, and the bridge a part of those: the agent is asked over the others.

use std::sync::Arc;

use casemate_proto::limits::{GUEST_STREAMS, STREAMS};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::connections::RESTING;
use super::exchange::Asked;

/// How many requests are on their way at once, each on a connection of its own; others wait.
const REQUESTS: usize = 12;

/// How many streams of the modern era may stay open; they do so for as long as the client likes.
const SUBSCRIPTIONS: usize = 2;

/// How many questions whether the server lives are on their way, which wait for no other request.
const CHECKS: usize = 1;

/// What else has a connection: the message that others wait for, the stream of a session, and the connection
/// that is kept.
const OTHERS: usize = 3;

/// What is left for the agent.
const SPARED: usize = 4;

const _: () = assert!(
    REQUESTS + SUBSCRIPTIONS + CHECKS + OTHERS + RESTING + SPARED <= STREAMS - GUEST_STREAMS,
    "the bridge leaves the host no stream"
);

/// What the server sends in one piece, without room being asked for, in bytes. More than a connection reads
/// at once.
pub(super) const SMALL_BYTES: usize = 256 << 10;

/// How many messages that are longer are on their way from the server to the client.
const LARGE: usize = 2;

/// What is under way.
#[derive(Debug)]
pub(super) struct Rooms {
    requests: Semaphore,
    subscriptions: Semaphore,
    checks: Semaphore,
    large: Arc<Semaphore>,
}

/// The right to hold one message that is not small, until it is dropped. A small one has none.
pub(super) type Room = Option<OwnedSemaphorePermit>;

/// There are as many subscriptions as there may be.
#[derive(Debug)]
pub(super) struct TooManySubscriptions;

impl Default for Rooms {
    fn default() -> Self {
        Self {
            requests: Semaphore::new(REQUESTS),
            subscriptions: Semaphore::new(SUBSCRIPTIONS),
            checks: Semaphore::new(CHECKS),
            large: Arc::new(Semaphore::new(LARGE)),
        }
    }
}

impl Rooms {
    /// Waits until a request may go out. It may for as long as what is returned is held. May be cancelled.
    pub async fn enter(&self, asked: &Asked) -> Result<Option<SemaphorePermit<'_>>, TooManySubscriptions> {
        // No semaphore is ever closed.
        match asked.method.as_str() {
            // The client's next message waits for it: there is no other.
            "initialize" => Ok(None),
            "ping" | "server/discover" => Ok(self.checks.acquire().await.ok()),
            // To wait would be for as long as the client lives.
            _ if asked.is_subscription() => {
                self.subscriptions.try_acquire().map(Some).map_err(|_| TooManySubscriptions)
            }
            _ => Ok(self.requests.acquire().await.ok()),
        }
    }

    /// Waits until a message may grow to so many bytes. It may then become as long as any, so none waits for
    /// another that waits too. May be cancelled.
    pub async fn grow(&self, room: &mut Room, bytes: usize) {
        if bytes > SMALL_BYTES && room.is_none() {
            *room = Arc::clone(&self.large).acquire_owned().await.ok();
        }
    }
}
