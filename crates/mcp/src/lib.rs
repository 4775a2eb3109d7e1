//! MCP as casemate speaks it: JSON-RPC envelopes over raw JSON, bounded framing, the id multiplexer, a client
//! for both eras of the protocol over any byte stream, and a bridge from such a stream to Streamable HTTP.
//!
//! ```text
//! bytes ── framing ──> Message ── multiplex ──> its one owner
//!            (lines)     (envelope)   (ids, tokens, cancellations)
//! ```
//!
//! Only the envelope of a message is ever parsed: typed models drop fields that they do not know, so what a
//! server wrote reaches its reader as it was written. Nothing here starts processes or knows about machines.
#![forbid(unsafe_code)]

pub mod client;
pub mod compose;
pub mod envelope;
pub mod era;
pub mod framing;
pub mod http;
pub mod multiplex;
pub mod object;

pub use client::{Answer, Conversation, Options};
pub use envelope::{Envelope, Id, Message};
pub use era::Era;
