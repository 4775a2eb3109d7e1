//! `casemate volume`.

use crate::{
    config::{Configuration, Server},
    context::Context,
    engine::blocking,
    error::{Error, Kind, Outcome},
    files::rename_new,
    render::{
        Screen, bytes, coarse, first_line,
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
use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use serde::Serialize;
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, IsTerminal},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Where an archive goes if no file is named.
const STDOUT: &str = "-";

/// How many of the files that an archive lacks are named.
const TOLD: usize = 3;

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
        /// Print JSON: [{name, size_bytes, disk_bytes, created_at, used_by, path, servers}]
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
        /// Print what was written as JSON: {volume, file, entries, bytes, left_out, unread,
        /// errors: [{path, reason}]}
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

/// One entry of `volume list --json`.
#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    volume: Listed,
    /// Servers whose definitions name it.
    servers: Vec<String>,
}

impl Entry {
    fn new(volume: Listed, configuration: &Configuration) -> Self {
        let names_it = |server: &&Server| server.volumes.iter().any(|wish| wish.name == volume.name);
        let servers = configuration.servers.values().filter(names_it).map(|server| server.name.to_string());
        Self { servers: servers.collect(), volume }
    }
}

/// Does what was asked with volumes.
pub async fn run(args: Volume, context: &Context) -> Result<Outcome, Error> {
    let screen = context.screen;
    let volumes = Volumes::open(&context.home)?;
    match args.command {
        VolumeCommand::List { json } => {
            let configuration = context.configuration()?;
            let listed: Vec<Entry> =
                volumes.list()?.into_iter().map(|it| Entry::new(it, &configuration)).collect();
            if json { screen.json(&listed)? } else { print(&listed, screen)? }
        }
        VolumeCommand::Inspect { name, json: _ } => screen.json(&volumes.get(&name)?)?,
        VolumeCommand::Export { name, file, json } => {
            let exported = export(&volumes, &name, &file, json).await?;
            if json {
                screen.json(&serde_json::json!({
                    "volume": name, "file": file, "entries": exported.entries, "bytes": exported.bytes,
                    "left_out": exported.left_out, "unread": exported.unread, "errors": exported.errors,
                }))?;
            } else {
                let Exported { entries, bytes: count, left_out, .. } = exported;
                let without = if left_out == 0 { "" } else { ", without sockets and pipes" };
                let files = if entries == 1 { "file or folder" } else { "files and folders" };
                screen.note(&format!("Exported {entries} {files}, {}{without}", bytes(count)));
            }
            if exported.unread > 0 {
                return Err(incomplete(&name, &exported));
            }
        }
        VolumeCommand::Remove { names, json } => {
            for name in &names {
                let (volumes, of) = (volumes.clone(), name.clone());
                blocking(move || volumes.remove(&of)).await??;
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

fn print(volumes: &[Entry], screen: Screen) -> Result<(), Error> {
    if volumes.is_empty() {
        return screen
            .line("There is no volume. The first start of a server with --volume NAME:GUEST makes it.");
    }
    let rows: Vec<[Cell; 6]> = volumes
        .iter()
        .map(|Entry { volume, servers }| {
            let age = Timestamp::now().duration_since(volume.created_at).try_into().unwrap_or_default();
            [
                volume.name.as_str().into(),
                bytes(volume.size_bytes).into(),
                bytes(volume.disk_bytes).into(),
                format!("{} ago", coarse(age)).into(),
                if servers.is_empty() { "-".into() } else { servers.join(", ").into() },
                volume.used_by.clone().unwrap_or_else(|| "-".to_owned()).into(),
            ]
        })
        .collect();
    screen.print(&table(["VOLUME", "SIZE", "DISK", "MADE", "SERVERS", "USED BY"], &rows, screen.width))
}

/// An archive that holds less than its volume.
fn incomplete(name: &Name, exported: &Exported) -> Error {
    let told = exported.errors.iter().take(TOLD);
    let mut told: Vec<String> =
        told.map(|one| first_line(&format!("{} ({})", one.path, one.reason))).collect();
    if let Some(more) = exported.unread.checked_sub(told.len() as u64).filter(|more| *more > 0) {
        told.push(format!("{more} more"));
    }
    let message = format!("the archive holds everything of volume {name} but {}", told.join(", "));
    Error::new(Kind::Failed, message).hint("e2fsck says more about a copy of the volume's file")
}

/// Writes the archive. On a thread of its own, so that a signal is heard meanwhile: then this is dropped, and with
/// it what was not finished.
async fn export(volumes: &Volumes, name: &Name, file: &Path, json: bool) -> Result<Exported, Error> {
    let (volumes, of) = (volumes.clone(), name.clone());
    if file == Path::new(STDOUT) {
        if json {
            return Err(Error::usage("--json needs a FILE: standard output is the archive"));
        }
        let stdout = io::stdout();
        if stdout.is_terminal() {
            return Err(Error::usage("an archive is not for a terminal")
                .hint(format!("casemate volume export {name} {name}.tar")));
        }
        return match blocking(move || volumes.export(&of, stdout.lock())).await? {
            Err(ExportError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(Error::new(Kind::BROKEN_PIPE, "standard output was closed"))
            }
            exported => Ok(exported?),
        };
    }
    let uncreated = |error: io::Error| {
        Error::configuration(format!("cannot create {}", file.display()))
            .because(error)
            .hint("name a file that does not exist, in a folder that does")
    };
    // Found out first: reading a volume takes its time.
    if fs::symlink_metadata(file).is_ok() {
        return Err(Error::configuration(format!("{} exists already", file.display()))
            .hint("name a new file; an archive replaces nothing"));
    }
    let created = Unfinished::beside(file).map_err(uncreated)?;
    let to = created.file.try_clone().map_err(uncreated)?;
    let exported = blocking(move || volumes.export(&of, to)).await??;
    created.publish(file).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => uncreated(error),
        _ => ExportError::Write(error).into(),
    })?;
    Ok(exported)
}

/// A file that has its name only when it is whole, and on the disk.
struct Unfinished {
    file: File,
    /// Where it is meanwhile, on file systems on which it has to have a name; else it is gone with this process,
    /// however that ends.
    hidden: Option<PathBuf>,
}

impl Unfinished {
    fn beside(file: &Path) -> io::Result<Self> {
        // The link by which a file without a name gets one.
        match File::options()
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .open(folder(file))
        {
            Ok(file) if opened(&file).exists() => Ok(Self { file, hidden: None }),
            _ => Self::hidden(file),
        }
    }

    fn hidden(file: &Path) -> io::Result<Self> {
        let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".unfinished-{}", std::process::id()));
        let path = file.with_file_name(hidden);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, hidden: Some(path) })
    }

    /// Gives it its name, unless something else has that.
    fn publish(self, file: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match &self.hidden {
            Some(hidden) => rename_new(hidden, file)?,
            None => linkat(CWD, opened(&self.file), CWD, file, AtFlags::SYMLINK_FOLLOW)?,
        }
        match File::open(folder(file)).and_then(|folder| folder.sync_all()) {
            // A file system that has nothing to be done for it.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            // Once it has its name there is nothing here; else half an archive is worse than none.
            let _ = fs::remove_file(hidden);
        }
    }
}

/// By which an opened file is found that may have no name.
fn opened(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_machine::volume::Unread;
    use rustix::fs::Mode;
    use std::{
        io::Write,
        os::{fd::OwnedFd, unix::fs::PermissionsExt},
    };

    #[test]
    fn an_archive_has_its_name_when_it_is_whole_and_replaces_nothing() {
        for make in [Unfinished::beside, Unfinished::hidden] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("notes.tar");
            let names = || fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name());
            let mut half = make(&file).unwrap();
            half.file.write_all(b"half").unwrap();
            assert!(!file.exists());
            drop(half);
            assert_eq!(names().count(), 0);

            let mut whole = make(&file).unwrap();
            whole.file.write_all(b"whole").unwrap();
            whole.publish(&file).unwrap();
            let error = make(&file).unwrap().publish(&file).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&file).unwrap(), b"whole");
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(names().collect::<Vec<_>>(), ["notes.tar"]);
        }
    }

    #[test]
    fn half_an_archive_is_gone_with_whoever_wrote_it() {
        let folder = tempfile::tempdir().unwrap();
        let nameless = rustix::fs::open(folder.path(), OFlags::TMPFILE | OFlags::WRONLY, Mode::RUSR);
        if nameless.is_err() {
            eprintln!("skipped: files in {} have to have names", folder.path().display());
            return;
        }
        let mut half = Unfinished::beside(&folder.path().join("notes.tar")).unwrap();
        half.file.write_all(b"half").unwrap();
        // Nothing that whoever is killed now could leave.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_archive_that_is_not_on_the_disk_gets_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let (file, hidden) = (folder.path().join("notes.tar"), folder.path().join("hidden"));
        fs::write(&hidden, "whole").unwrap();
        // What cannot be put on a disk.
        let (_reader, writer) = io::pipe().unwrap();
        let unfinished = Unfinished { file: File::from(OwnedFd::from(writer)), hidden: Some(hidden) };
        assert!(unfinished.publish(&file).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_an_archive_lacks_is_named_harmlessly_and_not_without_end() {
        let unread = |path: &str| Unread { path: path.to_owned(), reason: "why".to_owned() };
        let errors = vec![unread("/a\x1b[2J"), unread("/b"), unread("/c"), unread("/d")];
        let error = incomplete(&"v".parse().unwrap(), &Exported { unread: 9, errors, ..Exported::default() });
        let shown = error.to_string();
        assert!(shown.ends_with("/b (why), /c (why), 6 more") && !shown.contains('\x1b'), "{shown}");
    }
}
