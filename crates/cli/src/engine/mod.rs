//! What commands do with images, kernels and machines: the crates below, with this program's errors,
//! progress and choices.

pub mod asking;
mod check;
pub mod disks;
mod failure;
pub mod fleet;
pub mod images;
pub mod kernels;
pub mod machines;
mod plan;
mod processes;
pub mod routing;
pub mod secrets;
mod target;

pub use casemate_image::{
    progress::Progress,
    registry::address::Registries,
    source::{Source, SourceError},
};
pub use casemate_machine::{
    Accelerator, BackendKind, Conversation, ConversationEnd, Home, Isolation, Leased, Lifetime, Record,
    Restart, Session, State, Status, client::McpAnswer, doctor::Report, record::Start,
};
use check::check;
pub use check::defined;
pub use failure::{launch_error, session_error};
pub use plan::{Plan, plan};
pub use target::{
    Target, Unknown, ad_hoc, parse_source, resolve, source_of_command, split_command, transport, undefined,
    unknown_server,
};

use crate::{context::Context, error::Error, render::progress::Steps};

/// Tries every backend of this host; fetches a guest kernel if there is none, because only a boot decides.
pub async fn doctor(context: &Context) -> Result<Report, Error> {
    let configuration = context.configuration()?;
    let kernel = kernels::guest(context, &configuration).await?;
    let steps = Steps::new(context.screen);
    steps.step("trying the backends of this host");
    Ok(casemate_machine::doctor::examine(&context.home, &kernel).await)
}

/// Runs work that blocks on a thread of its own, which lives as long as the work. Dropping the future
/// leaves the work to the end of the process.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::server("internal error: a worker thread ended early").because(error))
}
