//! From sources to immutable root file systems, and the guest kernels that boot them.
//!
//! ```text
//! registries ──> verified packages ──> unpacked trees ──> images/<digest>/
//!                                 └──> vmlinux, modules ──> kernels/<id>/ + initramfs with the agent
//! ```
//!
//! Everything here is synchronous and prints nothing: long work reports to a [`progress::Progress`]. What
//! comes from outside (indices, archives, kernels) is bounded and checked before it touches the disk.
#![forbid(unsafe_code)]

pub mod archive;
pub mod kernel;
pub mod partial;
pub mod progress;
pub mod registry;
