//! The numbered ports that a link carries streams to.
//!
//! They are the `CONNECT n` of the supervisor's socket, whatever the link is made of.

/// The one port of a real vsock device, on which the guest calls the host: the multiplexer, whose streams are
/// for the ports below.
pub const LINK: u32 = 5251;

/// The MCP conversation: newline-delimited JSON-RPC, one client at a time.
pub const CONVERSATION: u32 = 5252;

/// Control: JSON-RPC between supervisor and agent; several streams at once.
pub const CONTROL: u32 = 5253;

/// Egress, opened from guest to host, only where a server may reach the network.
pub const EGRESS: u32 = 5254;

/// Ingress, host to the server's own HTTP port on guest loopback.
pub const INGRESS: u32 = 5255;
