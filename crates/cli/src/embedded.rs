//! The programs that go into machines, built with this one: `build.rs` puts them where these names point.

/// The agent, a static executable for the guest.
pub const AGENT: &[u8] = include_bytes!(env!("CASEMATE_EMBEDDED_AGENT"));

/// The probe server, a static executable for the guest.
pub const PROBE: &[u8] = include_bytes!(env!("CASEMATE_EMBEDDED_PROBE"));
