//! The probe as a program, over both transports and in both eras.
#![expect(
    clippy::unwrap_used,
    reason = "everything here is a test; clippy knows only functions marked as such"
)]

mod http;
mod http_legacy;
mod http_modern;
mod legacy;
mod misbehave;
mod modern;
mod schema;
mod support;
mod tools;
