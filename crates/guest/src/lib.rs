//! The agent inside every machine: it starts the server under its hardening and answers the host.
//!
//! ```text
//! link ── serve ─┬─ 5252 conversation ──┐
//!                ├─ 5253 control ── exec├── server ── launch ── spawn ── wall: the child's steps to its program
//!                └─ 5255 ingress ───────┘      └── group: its end, with everything that it started
//!   5254 <── egress: a proxy and forwarded ports on loopback, where the host gives any
//! ```
//!
//! In a machine with a kernel of its own the agent is the first process ([`boot`], [`root`]); elsewhere the
//! backend has set up the root, and the agent takes those steps of the hardening that it has the privilege
//! for. It trusts the host, which configures it, and nothing that the server says or does.

pub mod agent;
pub mod args;
pub mod boot;
pub mod control;
pub mod conversation;
pub mod egress;
pub mod exec;
pub mod failure;
pub mod filter;
pub mod follow;
pub mod group;
pub mod handed;
pub mod ingress;
pub mod inventory;
pub mod journal;
pub mod launch;
pub mod log;
pub mod modules;
pub mod mounts;
pub mod port;
pub mod procfs;
pub mod reaper;
pub mod reseed;
pub mod root;
pub mod serve;
pub mod server;
pub mod spawn;
mod sys;
pub mod wall;
