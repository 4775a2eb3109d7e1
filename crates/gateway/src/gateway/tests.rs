//! Each rule of the transport, and each kind of bad input, over an in-memory connection.

mod bad;
mod bounds;
mod connections;
mod ending;
mod sessions;
mod streams;
