//! Tests of the program as its users meet it: arguments, exit codes, files, output.

mod bad_input;
mod config;
mod examples;
mod help;
mod home;
mod json;
mod registry;
