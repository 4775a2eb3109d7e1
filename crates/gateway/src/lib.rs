//! The HTTP front of all servers: Streamable HTTP of the legacy revisions (2025-03-26 to 2025-11-25).
//!
//! ```text
//! client ──HTTP──> connection ── guard, routes ──> Gateway ── sessions ──> Session ── Backend ──> machine
//!                  (heads)       (names, paths)    (POST, GET, DELETE)     (streams)             (leased)
//! ```
//!
//! * A session begins with `initialize`, has a machine of its own from then on, and ends with DELETE, when it
//!   was idle for too long, or with its server. Its id is 160 random bits.
//! * A message passes as it was written; only its envelope is read. An answer is found by its id among the
//!   requests of its session, so none can reach another client: that one has another server.
//! * A quick answer is a JSON document; what takes longer, or reports progress, becomes a stream, which a client
//!   that lost its connection reads on with `Last-Event-ID`.
//! * Everything that a client or a server sends, holds open or makes others wait for is bounded ([`Limits`]).
//!
//! What it does not do yet, and says so where it is asked to: revision 2026-07-28, HTTP+SSE of 2024-11-05, all
//! servers behind one path, sessions that share a server, authentication.
//!
//! Everything here lives in one thread (`spawn_local`): a machine's supervisor ends with the thread that started
//! it. Time is tokio's, so that tests can let it pass.
#![forbid(unsafe_code)]

mod backend;
mod body;
mod connection;
mod gateway;
mod guard;
mod headers;
mod limits;
mod patience;
mod queue;
mod refusal;
mod respond;
mod routes;
mod session;
mod socket;
#[cfg(test)]
mod testing;

pub use backend::{Backend, Machine, OpenError};
pub use gateway::Gateway;
pub use guard::Guard;
pub use limits::Limits;
