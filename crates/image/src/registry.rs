//! What comes from package registries: where they are, how to fetch from them, and Debian's archive.
//!
//! Nothing here trusts an answer: sizes are bounded, names are checked before they become paths, and every
//! package is compared with the digest that its index states.

pub mod address;
mod apt_sources;
mod control;
pub mod debian;
pub mod digest;
pub mod http;
pub mod npm;
pub mod pypi;
