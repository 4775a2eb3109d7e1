//! Links, driven from both ends over real sockets.
#![allow(clippy::unwrap_used)] // clippy.toml allows it in test functions only; these are their helpers.

mod every_link;
mod handshake;
mod hostile;
mod interleaving;
mod mux;
mod resync;
mod support;
