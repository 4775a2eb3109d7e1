//! Links: what joins supervisor and agent, as streams to numbered [ports](casemate_proto::port).
//!
//! There are two kinds, and one seam above both:
//!
//! ```text
//!              host                                   guest
//! Connector::connect(port) -> Stream      Listener::accept() -> Incoming{port} -> Stream
//!
//! native       one connection a stream: Unix sockets, also behind the CONNECT handshake
//! multiplexed  one byte stream for all: mux::attach_host, mux::attach_guest;
//!              a virtio-serial port, or a vsock connection
//! ```
//!
//! A [`Stream`] is an ordinary tokio byte stream with a half-close. What the bytes mean is not known here.
#![forbid(unsafe_code)]

mod connector;
pub mod handshake;
mod listener;
pub mod mux;
mod stream;
#[cfg(feature = "vsock")]
mod vsock;

pub use connector::{ConnectError, Connector, port_socket};
pub use listener::{Incoming, Listener};
pub use mux::{LinkDown, MuxHandle, StreamLost};
pub use stream::Stream;
#[cfg(feature = "vsock")]
pub use vsock::VsockPort;
