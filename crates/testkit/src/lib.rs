//! What tests need to drive the probe server and other servers.
//!
//! The probe itself is the program `casemate-probe` of this package: a small MCP server of both eras whose
//! tools show where it runs and what that place lets it do. This library finds it ([`probe_path`]) and talks
//! to it, or to any other server, line by line ([`LineClient`]).
#![forbid(unsafe_code)]

mod client;
mod missing;
mod probe;

pub use client::{ClientError, LineClient, PATIENCE, modern_meta};
pub use missing::{cannot_run, may_mount};
pub use probe::{ProbeError, find_probe, probe_path};
