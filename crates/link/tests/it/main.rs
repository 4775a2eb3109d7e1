//! Links, driven from both ends over real sockets.

mod every_link;
mod handshake;
mod hostile;
mod interleaving;
mod mux;
mod resync;
mod support;
