//! `casemate kernel`.

use crate::{
    context::Context,
    engine::kernels,
    error::{Error, Outcome},
    render::table::{Cell, table},
};
use casemate_image::kernel::Record;
use clap::Subcommand;
use serde::Serialize;
use std::{num::NonZeroUsize, path::PathBuf};

/// Fetch, build, import and list guest kernels
///
/// A microVM boots a kernel of its own. `fetch` takes the distribution's cloud kernel; other commands do
/// that by themselves when no kernel is there. `build` makes a smaller one that boots faster, from the
/// distribution's source and with its compiler. The one that was obtained last is booted.
///
/// Examples:
///   casemate kernel fetch
///   casemate kernel build --jobs 4
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
    /// Build a kernel that boots faster than the distribution's, unless it is there
    ///
    /// Takes some minutes of all processors, 250 MB of downloads and 2 GB of disk meanwhile. Compiler and
    /// source are the distribution's; nothing has to be installed. Machines that are started later boot it.
    #[command(verbatim_doc_comment)]
    Build {
        /// Run so many compilers at once [default: one for each processor]
        #[arg(long, value_name = "N")]
        jobs: Option<NonZeroUsize>,
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
    /// List the kernels, and which one machines boot
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// A kernel as it is listed.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    record: &'a Record,
    /// Whether machines that are started now boot it.
    default: bool,
}

/// Does what was asked with kernels.
pub async fn run(args: Kernel, context: &Context) -> Result<Outcome, Error> {
    let (obtained, json) = match args.command {
        KernelCommand::Fetch { json } => {
            let registries = context.configuration()?.registries;
            (Some(kernels::fetch(context, &registries).await?.id), json)
        }
        KernelCommand::Build { jobs, json } => {
            let registries = context.configuration()?.registries;
            let id = kernels::build(context, &registries, jobs).await?.id;
            context.screen.note("machines that are started from now on boot this kernel");
            (Some(id), json)
        }
        KernelCommand::Import { kernel, modules, json } => {
            (Some(kernels::import(context, kernel, modules).await?.id), json)
        }
        KernelCommand::List { json } => (None, json),
    };
    let records = kernels::list(context)?;
    let mut listed: Vec<Listed<'_>> =
        records.iter().enumerate().map(|(at, record)| Listed { record, default: at == 0 }).collect();
    if let Some(id) = &obtained {
        listed.retain(|listed| listed.record.id == *id);
    }
    match (json, obtained) {
        (true, None) => context.screen.json(&listed)?,
        (true, Some(_)) => context.screen.json(&listed.first())?,
        (false, Some(id)) => context.screen.line(&id)?,
        (false, None) => {
            let row = |Listed { record, default }: &Listed<'_>| {
                [
                    record.id.as_str().into(),
                    record.version.as_str().into(),
                    if *default { "yes" } else { "" }.into(),
                    kernels::origin(&record.source).into(),
                ]
            };
            let rows: Vec<[Cell; 4]> = listed.iter().map(row).collect();
            let head = ["KERNEL", "VERSION", "DEFAULT", "ORIGIN"];
            context.screen.print(&table(head, &rows, context.screen.width))?;
        }
    }
    Ok(Outcome::Done)
}
