//! `casemate kernel`.

use crate::{
    context::Context,
    engine::kernels,
    error::{Error, Outcome},
    render::table::{Cell, table},
};
use casemate_image::kernel::Record;
use clap::Subcommand;
use std::path::PathBuf;

/// Fetch, import and list guest kernels
///
/// A microVM boots a kernel of its own. `fetch` takes the distribution's cloud kernel; other commands do
/// that by themselves when no kernel is there.
///
/// Examples:
///   casemate kernel fetch
///   casemate kernel import ./vmlinux --modules ./lib/modules/6.1.0
///   casemate kernel list
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Kernel {
    #[command(subcommand)]
    command: KernelCommand,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
#[command(disable_help_subcommand = true)]
enum KernelCommand {
    /// Fetch the newest cloud kernel of the distribution, unless it is there
    Fetch {
        /// Print what the kernel is as JSON
        #[arg(long)]
        json: bool,
    },
    /// Import a kernel of your own, a vmlinux or a bzImage
    Import {
        /// The kernel
        kernel: PathBuf,
        /// The folder of its modules, where virtio, vsock or EROFS are modules
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// Print what the kernel is as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the kernels; machines boot the first one
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Does what was asked with kernels.
pub async fn run(args: Kernel, context: &Context) -> Result<Outcome, Error> {
    let (obtained, json) = match args.command {
        KernelCommand::Fetch { json } => {
            let registries = context.configuration()?.registries;
            (Some(kernels::fetch(context, &registries).await?.id), json)
        }
        KernelCommand::Import { kernel, modules, json } => {
            (Some(kernels::import(context, kernel, modules).await?.id), json)
        }
        KernelCommand::List { json } => (None, json),
    };
    let mut records = kernels::list(context)?;
    if let Some(id) = &obtained {
        records.retain(|record| record.id == *id);
    }
    match (json, obtained) {
        (true, None) => context.screen.json(&records)?,
        (true, Some(_)) => context.screen.json(&records.first())?,
        (false, Some(id)) => context.screen.line(&id)?,
        (false, None) => {
            let row = |record: &Record| {
                [
                    record.id.as_str().into(),
                    record.version.as_str().into(),
                    kernels::origin(&record.source).into(),
                ]
            };
            let rows: Vec<[Cell; 3]> = records.iter().map(row).collect();
            context.screen.print(&table(["KERNEL", "VERSION", "ORIGIN"], &rows, context.screen.width))?;
        }
    }
    Ok(Outcome::Done)
}
