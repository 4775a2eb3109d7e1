//! `casemate image`.

use crate::{
    context::Context,
    engine::{
        self,
        images::{self, Wanted},
    },
    error::{Error, Outcome},
    render::{bytes, harmless, table::table},
};
use clap::Subcommand;

/// Build, list, inspect and prune images
///
/// An image is the read-only root file system that a server's machines share. `casemate add` builds it.
///
/// Examples:
///   casemate image build npm:@modelcontextprotocol/server-everything
///   casemate image list
///   casemate image prune
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Image {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
#[command(disable_help_subcommand = true)]
enum ImageCommand {
    /// Build the image of a source, or find it built
    Build {
        /// npm:PACKAGE[@VERSION], pypi:PACKAGE[@VERSION], dir:PATH, or a command
        source: String,
        /// The command to run, where the source does not say it
        #[arg(long, value_name = "TEXT")]
        command: Option<String>,
        /// Let packages run code of theirs while they are installed (not built yet)
        #[arg(long, hide = true)]
        allow_scripts: bool,
        /// Ask the registries again although a recent answer is known
        #[arg(long)]
        refresh: bool,
        /// Print what the image is as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the images
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what an image is, as JSON
    Inspect {
        /// Its digest, or the first four or more digits of it
        image: String,
        /// Print JSON, as without this option
        #[arg(long)]
        json: bool,
    },
    /// Remove the images that no server and no running machine uses
    Prune {
        /// Print what was removed as JSON: {images, bytes}
        #[arg(long)]
        json: bool,
    },
}

/// Does what was asked with images.
pub async fn run(args: Image, context: &Context) -> Result<Outcome, Error> {
    let screen = context.screen;
    match args.command {
        ImageCommand::Build { source, command, allow_scripts, refresh, json } => {
            let command = command.as_deref().map(engine::split_command).transpose()?;
            let (source, args) = engine::parse_source(&source)?;
            let wanted = Wanted { source, args, command, allow_scripts, refresh };
            let image = images::build(context, &context.configuration()?.registries, wanted).await?;
            if json {
                screen.json(&image.meta)?;
            } else {
                screen.line(&image.digest)?;
            }
        }
        ImageCommand::List { json } => {
            let images = images::list(context)?;
            if json {
                screen.json(&images.iter().map(|image| &image.meta).collect::<Vec<_>>())?;
            } else {
                let rows: Vec<_> = images
                    .iter()
                    .map(|image| {
                        let digest: String = image.meta.hex().chars().take(12).collect();
                        let packages = image.meta.packages.len().to_string();
                        [
                            digest.into(),
                            bytes(image.meta.size_bytes).into(),
                            packages.into(),
                            harmless(&image.meta.source).into(),
                        ]
                    })
                    .collect();
                screen.print(&table(["IMAGE", "SIZE", "PACKAGES", "SOURCE"], &rows, screen.width))?;
            }
        }
        ImageCommand::Inspect { image, json: _ } => screen.json(&images::inspect(context, &image)?.meta)?,
        ImageCommand::Prune { json } => {
            let pruned = images::prune(context).await?;
            if json {
                screen.json(&serde_json::json!({"images": pruned.images, "bytes": pruned.bytes}))?;
            } else {
                screen.line(&format!("Removed {} images, {}", pruned.images.len(), bytes(pruned.bytes)))?;
            }
        }
    }
    Ok(Outcome::Done)
}
