//! Tests against the real registries, and against servers that only pretend to be some.

#![allow(clippy::unwrap_used)] // in helpers of tests, where a panic is what is wanted

mod command;
mod confine;
mod debian;
mod dir;
mod home;
mod http;
mod image;
mod kernel;
mod npm;
mod pypi;
mod server;
