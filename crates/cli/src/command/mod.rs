//! One file for each command: its arguments, whose documentation is its help, then what it does.

pub mod add;
pub mod call;
pub mod client_config;
pub mod client_file;
pub mod doctor;
pub mod image;
pub mod import;
pub mod kernel;
pub mod later;
pub mod launch;
pub mod launch_many;
pub mod list;
pub mod logs;
pub mod mcp;
pub mod options;
pub mod remove;
pub mod run;
pub mod secret;
pub mod serve;
pub mod status;
pub mod stop;
pub mod template;
pub mod test;
pub mod tools;
pub mod volume;

use crate::{
    args::Command,
    context::Context,
    error::{Error, Outcome},
};
use std::rc::Rc;

/// Does what the command line asks for.
///
/// May be dropped at any point: a machine that the command leased stops with it.
pub async fn dispatch(command: Command, context: &Rc<Context>) -> Result<Outcome, Error> {
    match command {
        Command::Doctor(args) => doctor::run(args, context).await,
        Command::Add(args) => add::run(*args, context).await,
        Command::Remove(args) => remove::run(args, context),
        Command::List(args) => list::run(args, context),
        Command::ClientConfig(args) => client_config::run(*args, context),
        Command::Import(args) => import::run(*args, context).await,
        Command::Image(args) => image::run(args, context).await,
        Command::Kernel(args) => kernel::run(args, context).await,
        Command::Template(args) => template::run(args, context).await,
        Command::Volume(args) => volume::run(args, context).await,
        Command::Secret(args) => secret::run(args, context).await,
        Command::Launch(args) => launch::run(*args, context).await,
        Command::LaunchMany(args) => launch_many::run(*args, context).await,
        Command::Status(args) => status::run(args, context),
        Command::Stop(args) => stop::run(args, context).await,
        Command::Logs(args) => logs::run(args, context).await,
        Command::Tools(args) => tools::run(*args, context).await,
        Command::Call(args) => call::run(*args, context).await,
        Command::Run(args) => run::run(*args, context).await,
        Command::Serve(args) => serve::run(*args, context).await,
        Command::Test(args) => test::run(args, context).await,
        Command::Mcp(args) => Box::pin(dispatch(args.canonical(), context)).await,
        Command::Later(args) => Err(args.refuse()),
    }
}
