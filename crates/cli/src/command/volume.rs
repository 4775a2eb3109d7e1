//! `casemate volume`.

use crate::{
    context::Context,
    error::{Error, Kind, Outcome},
    render::{
        Screen, bytes, coarse,
        table::{Cell, table},
    },
};
use casemate_machine::{
    Volume as Listed, Volumes,
    volume::{ExportError, Exported},
};
use casemate_proto::ids::Name;
use clap::Subcommand;
use jiff::Timestamp;
use std::{
    fs::{self, File},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Where an archive goes if no file is named.
const STDOUT: &str = "-";

/// List, inspect, export and remove volumes
///
/// A volume holds what a server writes from one machine to the next. `--volume NAME:GUEST` makes it.
///
/// Examples:
///   casemate volume list
///   casemate volume export notes notes.tar
///   casemate volume remove notes
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Volume {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
#[command(disable_help_subcommand = true)]
enum VolumeCommand {
    /// List the volumes
    List {
        /// Print JSON: [{name, size_bytes, disk_bytes, created_at, used_by, path}]
        #[arg(long)]
        json: bool,
    },
    /// Print what is known about a volume, as JSON
    Inspect {
        /// Its name
        name: Name,
        /// Print JSON, as without this option
        #[arg(long)]
        json: bool,
    },
    /// Write what is in a volume as a tar archive; no machine may use it meanwhile
    Export {
        /// Its name
        name: Name,
        /// The new file to write, or - for standard output
        #[arg(default_value = STDOUT, value_name = "FILE")]
        file: PathBuf,
        /// Print what was written as JSON: {volume, file, entries, bytes, left_out}
        #[arg(long)]
        json: bool,
    },
    /// Remove volumes with everything in them
    Remove {
        /// Their names
        #[arg(required = true)]
        names: Vec<Name>,
        /// Print what was removed as JSON: {volumes}
        #[arg(long)]
        json: bool,
    },
}

/// Does what was asked with volumes.
pub fn run(args: Volume, context: &Context) -> Result<Outcome, Error> {
    let screen = context.screen;
    let volumes = Volumes::open(&context.home)?;
    match args.command {
        VolumeCommand::List { json } => {
            let listed = volumes.list()?;
            if json { screen.json(&listed)? } else { print(&listed, screen)? }
        }
        VolumeCommand::Inspect { name, json: _ } => screen.json(&volumes.get(&name)?)?,
        VolumeCommand::Export { name, file, json } => {
            let exported = export(&volumes, &name, &file, json)?;
            if json {
                screen.json(&serde_json::json!({
                    "volume": name, "file": file, "entries": exported.entries, "bytes": exported.bytes,
                    "left_out": exported.left_out,
                }))?;
            } else {
                let Exported { entries, bytes: count, left_out } = exported;
                let without = if left_out == 0 { "" } else { ", without sockets and pipes" };
                screen.note(&format!("Exported {entries} files and folders, {}{without}", bytes(count)));
            }
        }
        VolumeCommand::Remove { names, json } => {
            for name in &names {
                volumes.remove(name)?;
                if !json {
                    screen.line(&format!("Removed {name}"))?;
                }
            }
            if json {
                screen.json(&serde_json::json!({ "volumes": names }))?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn print(volumes: &[Listed], screen: Screen) -> Result<(), Error> {
    if volumes.is_empty() {
        return screen
            .line("There is no volume. --volume NAME:GUEST of casemate run, launch or add makes one.");
    }
    let rows: Vec<[Cell; 5]> = volumes
        .iter()
        .map(|volume| {
            let age = Timestamp::now().duration_since(volume.created_at).try_into().unwrap_or_default();
            [
                volume.name.as_str().into(),
                bytes(volume.size_bytes).into(),
                bytes(volume.disk_bytes).into(),
                format!("{} ago", coarse(age)).into(),
                volume.used_by.clone().unwrap_or_else(|| "-".to_owned()).into(),
            ]
        })
        .collect();
    screen.print(&table(["VOLUME", "SIZE", "DISK", "MADE", "USED BY"], &rows, screen.width))
}

fn export(volumes: &Volumes, name: &Name, file: &Path, json: bool) -> Result<Exported, Error> {
    if file == Path::new(STDOUT) {
        if json {
            return Err(Error::usage("--json needs a FILE: standard output is the archive"));
        }
        let stdout = io::stdout();
        if stdout.is_terminal() {
            return Err(Error::usage("an archive is not for a terminal")
                .hint(format!("casemate volume export {name} {name}.tar")));
        }
        return match volumes.export(name, stdout.lock()) {
            Err(ExportError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(Error::new(Kind::BROKEN_PIPE, "standard output was closed"))
            }
            exported => Ok(exported?),
        };
    }
    // Looked for first: a mistyped name leaves no file behind.
    volumes.get(name)?;
    let created = File::options().write(true).create_new(true).mode(0o600).open(file);
    let mut created = created.map_err(|error| {
        Error::configuration(format!("cannot create {}", file.display()))
            .because(error)
            .hint("name a file that does not exist, in a folder that does")
    })?;
    let exported = volumes.export(name, &mut created).and_then(|exported| {
        created.flush().map_err(ExportError::Write)?;
        Ok(exported)
    });
    if exported.is_err() {
        // Half an archive is worse than none.
        let _ = fs::remove_file(file);
    }
    Ok(exported?)
}
