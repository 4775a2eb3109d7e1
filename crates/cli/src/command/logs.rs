//! `casemate logs`.

use crate::{
    context::Context,
    engine::{self, Record, machines},
    error::{Error, Outcome},
    render::harmless,
};
use casemate_machine::Registry;
use casemate_proto::ids::Name;
use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Print the log of a machine, live or ended
///
/// The server's log holds its standard error and whatever it printed that is no message.
///
/// Examples:
///   casemate logs everything -f
///   casemate logs everything --console
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Logs {
    /// The machine; or a server, of which the machine started last is meant
    name: Name,
    /// Go on until the machine ends
    #[arg(long, short)]
    follow: bool,
    /// Print what the machine's kernel and agent said
    #[arg(long)]
    console: bool,
    /// Print what the VMM said
    #[arg(long, conflicts_with = "console")]
    vmm: bool,
    /// Print what the server tried to reach outside, with the verdicts, as JSON lines
    #[arg(long, conflicts_with_all = ["console", "vmm"])]
    egress: bool,
}

/// Prints a log.
pub async fn run(args: Logs, context: &Context) -> Result<Outcome, Error> {
    let record = find(context, &args.name)?;
    let which = match (args.console, args.vmm, args.egress) {
        (true, _, _) => "console",
        (_, true, _) => "vmm",
        (_, _, true) => "egress",
        _ => "server",
    };
    let path = context.home.machine(&record.id).join("logs").join(format!("{which}.log"));
    if args.egress && !args.follow && fs::metadata(&path).is_ok_and(|log| log.len() == 0) {
        context.screen.note(&format!("{} has tried to reach nothing outside", record.name));
    }
    let mut log = Follower::new(path.clone());
    // What was moved aside when the file was full came before.
    let mut moved = path.into_os_string();
    moved.push(".1");
    Follower::new(PathBuf::from(moved)).print_new(context)?;
    loop {
        // Asked first: what is written before the end is then printed after it is known.
        let over = !args.follow || Registry::new(&context.home).is_over(&record.id);
        log.print_new(context)?;
        if over {
            return Ok(Outcome::Done);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The live machine of a name, else the last live one of that server, else the last of either that ended.
fn find(context: &Context, name: &Name) -> Result<Record, Error> {
    let mut records = machines::list(context)?;
    records.reverse();
    let named = records.iter().filter(|record| record.name == *name);
    let of_server = records.iter().filter(|record| record.server == name.as_str());
    let is_live = |record: &&Record| !record.state.is_final();
    let live = named.clone().find(is_live).or(of_server.clone().find(is_live));
    let best = live.or(named.clone().next()).or(of_server.clone().next());
    if let Some(record) = best {
        return Ok(record.clone());
    }
    let configuration = context.configuration()?;
    if configuration.servers.contains_key(name) {
        return Err(Error::configuration(format!("no machine of {name} ran in the last days"))
            .hint(format!("casemate launch {name} starts one")));
    }
    Err(engine::unknown_server(name, &configuration))
}

/// A log file that grows, and is replaced by a new one when it is full.
struct Follower {
    path: PathBuf,
    open: Option<File>,
}

impl Follower {
    fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    /// Prints what was written since the last time.
    fn print_new(&mut self, context: &Context) -> Result<(), Error> {
        if let Some(file) = &mut self.open {
            // The rest of a file that was moved aside, too.
            print_rest(file, context)?;
        }
        let fresh = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unreadable(&self.path, error)),
        };
        let inode = |file: &File| file.metadata().map(|meta| (meta.ino(), meta.len())).unwrap_or_default();
        let (new, old) = (inode(&fresh), self.open.as_ref().map(inode));
        if old.is_none_or(|old| old.0 != new.0) {
            let mut fresh = fresh;
            print_rest(&mut fresh, context)?;
            self.open = Some(fresh);
        } else if let Some(file) = &mut self.open
            && file.stream_position().is_ok_and(|position| position > new.1)
        {
            // Emptied in place: from the beginning.
            file.seek(SeekFrom::Start(0)).map_err(|error| unreadable(&self.path, error))?;
        }
        Ok(())
    }
}

fn print_rest(file: &mut File, context: &Context) -> Result<(), Error> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| unreadable(Path::new("log"), error))?;
    if bytes.is_empty() {
        return Ok(());
    }
    match context.screen.width {
        // A guest's bytes must not drive the terminal.
        Some(_) => context.screen.print(&harmless(&String::from_utf8_lossy(&bytes))),
        None => context.screen.write(&bytes),
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::configuration(format!("cannot read {}", path.display()))
        .because(error)
        .hint("check that you are the user who started the machine")
}
