//! Tests of the program as its users meet it: arguments, exit codes, files, output.

// Clippy's exception for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used)]

mod attack;
mod bad_input;
mod clients;
mod clones;
mod commands;
mod config;
mod crowd;
mod descriptors;
mod doctor;
mod egress;
mod examples;
mod faults;
mod foreign;
mod groups;
mod guide;
mod health;
mod help;
mod home;
mod http;
mod hung;
mod interrupted;
mod json;
mod kernels;
mod kill;
mod links;
mod live;
mod mounts;
mod peers;
mod program;
mod registry;
mod restore;
mod routing;
mod run;
mod secrets;
mod security;
mod serve;
mod servers;
mod support;
mod suspend;
mod templates;
mod volumes;
