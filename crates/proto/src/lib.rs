//! What host and guest agree on: ports, control messages, framing, the stream multiplexer, limits and ids.
//!
//! This crate does no I/O. Everything here is a value or a state machine that is fed bytes and asked for
//! bytes, so the agent, the supervisor, the tests and the fuzz targets run the same code.
#![forbid(unsafe_code)]

#[macro_use]
mod text;

pub mod control;
pub mod egress;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod line;
pub mod mount;
pub mod mux;
pub mod port;
