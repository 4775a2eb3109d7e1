//! A small MCP server that does on purpose what servers do by accident.
//!
//! It speaks every revision, on stdio and Streamable HTTP, and its tools show where it runs and what that
//! place lets it do. It is started inside emulated machines, so it does as little as possible before it reads
//! its first message: no runtime, one thread, no randomness, no files.
//!
//! ```text
//! stdio, http   bytes to messages, answers to bytes        (transports)
//! conversation  messages to requests; lifecycle decides    (what is allowed when)
//! methods       requests to effects; tools                 (what is done)
//! ```

mod args;
mod call;
mod conversation;
mod http;
mod lifecycle;
mod methods;
mod misbehave;
mod revision;
mod rpc;
mod server;
mod signal;
mod stdio;
mod sys;
mod tools;

use args::{Command, Transport};
use std::process::ExitCode;

fn main() -> ExitCode {
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print!("{}", args::HELP),
        Ok(Command::Version) => println!("casemate-probe {}", env!("CARGO_PKG_VERSION")),
        Ok(Command::Serve(options)) => {
            let server = server::Server::new(options.eras);
            return match options.transport {
                Transport::Stdio(misbehaviour) => stdio::serve(&server, misbehaviour),
                Transport::Http { host, port } => http::serve(&server, host, port),
            };
        }
        Err(error) => {
            eprintln!("casemate-probe: {error}; see --help");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
