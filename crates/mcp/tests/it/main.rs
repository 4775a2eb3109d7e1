//! The client against servers that behave, misbehave and lie, and properties of what it is made of.
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails; clippy.toml allows it in test functions only"
)]

mod adversary;
mod http;
mod lifecycle;
mod negotiation;
mod peer;
mod probe;
mod properties;
mod vectors;
