//! The real agent binary, reached over its real links, with real programs behind it.

// clippy's own exception covers test functions, not their helpers.
#![allow(clippy::unwrap_used)]

mod control;
mod conversation;
mod egress;
mod exec;
mod hardening;
mod hostile;
mod reseed;
mod support;
