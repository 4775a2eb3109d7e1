//! The program that is measured, as its users see it: commands, and what they print.

use crate::{
    failure::Failure,
    process::{self, Finished, Identity, Running},
    server::Server,
    workspace::Layout,
};
use casemate_testkit::LineClient;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

/// How long any one command may take: a machine in emulation on a busy host starts in a tenth of it.
const PATIENCE: Duration = Duration::from_secs(180);

/// The revision that the conversations use; every measured server speaks it.
const REVISION: &str = "2025-06-18";

/// Exit codes by which the program says that it has not got something: usage, and not available.
const UNAVAILABLE: [i32; 2] = [2, 4];

/// How a machine is to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Its kernel boots.
    Cold,
    /// It is restored from a template.
    Restored,
}

impl Start {
    /// As `status` says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Restored => "restored",
        }
    }
}

/// An entry of `status --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Machine {
    /// Names its folder.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its server.
    pub server: String,
    /// Where it stands.
    pub state: String,
    /// What made it.
    pub backend: String,
    /// What executes its instructions.
    pub accelerator: Option<String>,
    /// Its VMM.
    pub pid: Option<u32>,
    /// How it came to run.
    pub start: String,
    /// Why there was no template.
    pub template_reason: Option<String>,
}

impl Machine {
    /// Refuses a machine that did not start as it was to.
    pub fn started(&self, start: Start) -> Result<(), Failure> {
        if self.start == start.word() {
            return Ok(());
        }
        let reason = self.template_reason.clone().unwrap_or_else(|| "no reason is given".to_owned());
        Err(Failure::Restoration { start: self.start.clone(), reason })
    }

    /// Its VMM, if it has one.
    pub fn vmm(&self) -> Option<Identity> {
        Identity::of(self.pid?)
    }
}

/// A conversation that was begun, and when.
#[derive(Debug)]
pub struct Talk {
    /// Its client.
    pub client: LineClient,
    /// When the command was spawned.
    pub spawned: Instant,
    /// From then to the answer of `initialize`.
    pub initialized: Duration,
    _running: Running,
}

impl Talk {
    /// Spawns a server, or what stands in front of it, and shakes hands.
    pub fn begin(mut command: Command) -> Result<Self, Failure> {
        let spawned = Instant::now();
        let client = LineClient::spawn(command.process_group(0))?;
        let running = Running::note(client.pid());
        let mut client = client.with_patience(PATIENCE);
        let answer = client.initialize(REVISION, serde_json::json!({}))?;
        let initialized = spawned.elapsed();
        if answer.get("result").is_none() {
            return Err(Failure::Answer {
                expected: "a result of initialize".to_owned(),
                answer: cut(&answer),
            });
        }
        Ok(Self { client, spawned, initialized, _running: running })
    }

    /// Calls the server's tool with an argument that the answer has to carry.
    pub fn call(&mut self, server: &Server, word: &str) -> Result<(), Failure> {
        let answer = self.client.call(server.tool, (server.arguments)(word))?;
        server.check(word, &answer["result"])
    }

    /// Closes the server's input and waits for its end.
    pub fn end(mut self) -> Result<Duration, Failure> {
        let closed = Instant::now();
        self.client.close_stdin();
        self.client.wait()?;
        Ok(closed.elapsed())
    }
}

/// The program.
#[derive(Debug)]
pub struct Casemate {
    program: PathBuf,
    home: PathBuf,
    run_takes_cold: bool,
}

impl Casemate {
    /// The copy in the workspace, with a home of its own.
    pub fn new(layout: &Layout) -> Result<Self, Failure> {
        let mut this = Self { program: layout.program(), home: layout.home(), run_takes_cold: false };
        let help = process::run(&mut this.command(&["run", "--help"]), PATIENCE)?;
        // Before there were templates there was nothing to say it against.
        this.run_takes_cold = String::from_utf8_lossy(&help.stdout).contains("--cold");
        Ok(this)
    }

    /// A command that uses the home of this run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("CASEMATE_HOME", &self.home).env_remove("CASEMATE_CONFIG");
        command
    }

    /// Runs a command to its end.
    pub fn finish(&self, arguments: &[&str]) -> Result<Finished, Failure> {
        self.finish_within(arguments, PATIENCE)
    }

    /// Runs a command to its end, within a time.
    pub fn finish_within(&self, arguments: &[&str], limit: Duration) -> Result<Finished, Failure> {
        process::run(&mut self.command(arguments), limit)
    }

    /// Runs a command with an option that may not be built yet.
    pub fn try_option(&self, arguments: &[&str]) -> Result<Finished, Failure> {
        let mut command = self.command(arguments);
        let (output, took) = process::output(&mut command, PATIENCE)?;
        let said = process::tail(&output.stderr);
        match output.status.code() {
            Some(0) => Ok(Finished { stdout: output.stdout, took }),
            Some(code) if UNAVAILABLE.contains(&code) => Err(Failure::Unavailable(said)),
            _ => Err(Failure::Command {
                command: process::line(&command),
                status: output.status.to_string(),
                said,
            }),
        }
    }

    /// Runs a command that prints JSON.
    pub fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T, Failure> {
        parse(&self.command(arguments), &self.finish(arguments)?.stdout)
    }

    /// The machines that run.
    pub fn status(&self) -> Result<Vec<Machine>, Failure> {
        self.json(&["status", "--json"])
    }

    /// The one machine of a server.
    pub fn machine_of(&self, server: &str) -> Result<Machine, Failure> {
        // Templates are made by machines too.
        let is_own = |machine: &Machine| machine.server == server && !machine.name.starts_with("template.");
        let found = self.status()?.into_iter().find(is_own);
        found.ok_or_else(|| Failure::NoMachine { server: server.to_owned() })
    }

    /// Be that server on stdin and stdout.
    pub fn run(&self, server: &Server, start: Start) -> Command {
        match start {
            Start::Cold if self.run_takes_cold => self.command(&["run", server.name, "--cold"]),
            _ => self.command(&["run", server.name]),
        }
    }

    /// Starts a machine that stays; how long the command took.
    pub fn launch(&self, server: &Server, start: Start) -> Result<(Machine, Duration), Failure> {
        let mut arguments = vec!["launch", server.name, "--json"];
        if start == Start::Cold {
            arguments.push("--cold");
        }
        let finished = self.finish(&arguments)?;
        let machine: Machine = parse(&self.command(&arguments), &finished.stdout)?;
        machine.started(start)?;
        Ok((machine, finished.took))
    }

    /// Calls a server's tool on a machine, and checks the answer; how long the command took.
    pub fn call(&self, machine: &str, server: &Server, word: &str) -> Result<Duration, Failure> {
        let json = (server.arguments)(word).to_string();
        let arguments = ["call", machine, server.tool, &json, "--json"];
        let finished = self.finish(&arguments)?;
        server.check(word, &parse(&self.command(&arguments), &finished.stdout)?)?;
        Ok(finished.took)
    }

    /// Stops every machine.
    pub fn stop_all(&self) -> Result<Duration, Failure> {
        Ok(self.finish(&["stop", "--all"])?.took)
    }

    /// The supervisor of a machine, from its record: `status` shows VMMs only.
    pub fn supervisor(&self, machine: &Machine) -> Result<Identity, Failure> {
        #[derive(Deserialize)]
        struct Record {
            supervisor_pid: Option<u32>,
        }
        let path = self.folder(machine).join("machine.json");
        let text = fs::read(&path).map_err(Failure::file("read", &path))?;
        let record: Record = serde_json::from_slice(&text)
            .map_err(|source| Failure::Output { command: "machine.json".to_owned(), source })?;
        record
            .supervisor_pid
            .and_then(Identity::of)
            .ok_or_else(|| Failure::Unavailable(format!("{} has no supervisor", machine.name)))
    }

    /// The folder of a machine.
    pub fn folder(&self, machine: &Machine) -> PathBuf {
        self.home.join("machines").join(&machine.id)
    }

    /// Its home folder.
    pub fn home(&self) -> &std::path::Path {
        &self.home
    }
}

/// Reads what a command printed.
pub fn parse<T: DeserializeOwned>(command: &Command, stdout: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(stdout)
        .map_err(|source| Failure::Output { command: process::line(command), source })
}

/// The beginning of an answer.
pub fn cut(answer: &serde_json::Value) -> String {
    answer.to_string().chars().take(200).collect()
}
