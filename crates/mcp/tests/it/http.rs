//! The bridge to servers that listen: the probe in both eras, and servers that a test plays byte by byte.

mod bad;
mod fake;
mod flood;
mod probe;
mod streams;
