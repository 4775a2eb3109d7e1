//! From sources to immutable root file systems, and the guest kernels that boot them.
//!
//! ```text
//! registries ──> verified packages ──> unpacked trees ──> images/<digest>/
//!                                 └──> vmlinux, modules ──> kernels/<id>/ + initramfs with the agent
//! ```
//!
//! Everything here is synchronous and prints nothing: long work reports to a [`progress::Progress`]. What
//! comes from outside (indices, archives, kernels) is bounded and checked before it touches the disk.
#![deny(unsafe_code)] // but in `confine::child`, which makes system calls between fork and exec

pub mod archive;
pub mod build;
pub mod confine;
pub mod erofs;
pub mod files;
pub mod folder;
pub mod helper;
pub mod kernel;
pub mod lock;
pub mod partial;
pub mod progress;
mod record;
pub mod registry;
mod runtime;
pub mod source;
pub mod store;
