//! Tests against the real registries.

mod home;
mod kernel;
