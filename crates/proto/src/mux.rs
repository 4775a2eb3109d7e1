//! Many streams over one byte stream: the link of a machine whose VMM has a single serial port.
//!
//! A raw port cannot tell clients apart: half a request of one would swallow the next one's, and an
//! abandoned call's answer would reach a stranger. Here every stream has an id that is never used twice
//! in one attachment, a window of its own, and an end of its own in each direction.
//!
//! # On the wire
//!
//! Each frame is COBS-encoded and ends with a zero byte, so a reader finds the next frame's start whatever
//! came before it: half a frame of a host that was killed, or bytes from before a snapshot.
//!
//! ```text
//! kind u8 | stream u32 | body          integers little endian
//!
//! SYNC   0 | 0 | version u16, nonce [16]   host: forget everything, begin anew
//! SYNCED 1 | 0 | version u16, nonce [16]   guest: done; what I send from here on is new
//! OPEN   2 | n | port u32                  odd streams are the host's, even ones the guest's
//! ACCEPT 3 | n |                           the port took the stream
//! DATA   4 | n | 1..=DATA_BYTES bytes      at most the window the reader has granted
//! CREDIT 5 | n | bytes u32                 the reader has room for so many more
//! FIN    6 | n |                           no more data from me
//! RESET  7 | n | code u8, reason (UTF-8, at most REASON_BYTES)   the stream is over, both ways
//! ```
//!
//! The host drops everything up to the `SYNCED` that repeats its nonce. What the guest sends against these
//! rules ends the link ([`Violation`]); what the host sends against them the guest ignores until the next
//! `SYNC`.

mod cobs;
mod codec;
mod state;

pub use codec::{Frame, Malformed, decode, encode};
pub use state::{Event, Mux, OpenError, Role, StreamId, Violation};

/// Version of the multiplexer's wire form.
pub const VERSION: u16 = 1;

/// The most bytes of data in one frame.
pub const DATA_BYTES: usize = 16 << 10;

/// The most bytes of a reset's reason.
pub const REASON_BYTES: usize = 256;

/// What a writer may send on a stream before the reader grants more.
pub const WINDOW: usize = 256 << 10;

/// The longest encoded frame, its delimiter included.
pub const ENCODED_BYTES: usize = cobs::max_encoding_length(5 + DATA_BYTES) + 1;

/// What a host skips at most while it waits for `SYNCED`.
pub const SYNC_SKIP_BYTES: usize = 64 << 20;

/// A nonce that names one attachment of a host.
pub type Nonce = [u8; 16];

/// Why a stream was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ResetCode {
    /// Nobody listens on that port.
    Refused = 1,
    /// The port serves one client and has one.
    Busy = 2,
    /// The opener or reader went away.
    Gone = 3,
    /// The stream broke a rule of its port (a message too long, …).
    Protocol = 4,
    /// Something failed inside.
    Internal = 5,
}

impl ResetCode {
    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Refused,
            2 => Self::Busy,
            3 => Self::Gone,
            4 => Self::Protocol,
            _ => Self::Internal,
        }
    }
}
