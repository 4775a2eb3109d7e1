//! Tests against the real registries, and against servers that only pretend to be some.

mod debian;
mod home;
mod http;
mod kernel;
mod server;
