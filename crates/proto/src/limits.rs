//! Bounds on everything that crosses the wall, in bytes, counts and times.

use std::time::Duration;

/// The largest MCP message in either direction; a larger one ends the conversation.
pub const MCP_MESSAGE_BYTES: usize = 16 << 20;

/// The largest control message in either direction.
pub const CONTROL_MESSAGE_BYTES: usize = 1 << 20;

/// The largest payload of one frame of an `exec` or `watch` stream.
pub const FRAME_BYTES: usize = 64 << 10;

/// The most streams that one link carries at once, native or multiplexed.
pub const STREAMS: usize = 64;

/// How many of them a guest may have opened: the host needs some for itself, whatever its guest does.
pub const GUEST_STREAMS: usize = 40;

/// How much of a server's stderr is kept for the report of its exit.
pub const STDERR_TAIL_BYTES: usize = 8 << 10;

/// The most entries that one `inventory` reports of each kind.
pub const INVENTORY_ENTRIES: usize = 4096;

/// How long a control request may take unless it says otherwise.
pub const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the first bytes of a stream (`CONNECT`, `hello`) may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server may take to end by itself once its stdin is closed or it was told to stop.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

/// How long a machine may take to power itself off, beyond what its server is given to end.
pub const POWER_OFF: Duration = Duration::from_millis(500);

/// How long a machine may take to write to its volumes what its server wrote: on a busy host seconds pass until its
/// agent so much as hears of it.
pub const FLUSH: Duration = Duration::from_secs(6);

/// How long a suspended machine may take to be resumed for its end.
pub const WAKE: Duration = Duration::from_secs(6);

/// How long a stopped machine may take to be gone, whatever it is and was doing; half of that is for its processes
/// to be collected, on a busy host.
pub const STOP_TIMEOUT: Duration =
    Duration::from_millis(2 * (STOP_GRACE.as_millis() + POWER_OFF.as_millis()) as u64)
        .saturating_add(FLUSH)
        .saturating_add(WAKE);
