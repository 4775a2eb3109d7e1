//! What the machine crate promises, tried from outside it.
#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod confinement;
