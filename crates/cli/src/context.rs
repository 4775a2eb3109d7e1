//! What every command has at hand: where output goes, what the environment says, the home folder's files.

use crate::{
    args::Global,
    config::{self, Configuration, settings::Environment},
    engine::Home,
    error::Error,
    interrupt::Drain,
    render::Screen,
};
use casemate_proto::ids::Name;
use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// The surroundings of a command.
#[derive(Debug)]
pub struct Context {
    /// Where output goes.
    pub screen: Screen,
    /// What the environment asks for.
    pub environment: Environment,
    /// Where everything is kept.
    pub home: Home,
    /// Machines that end with this command, unless it lets them go.
    pub leases: RefCell<BTreeSet<Name>>,
    /// Machines that this command started and let go.
    pub kept: RefCell<Vec<Name>>,
    /// For a command that ends in its own time when it is told to.
    pub drain: Drain,
    config: Option<PathBuf>,
}

impl Context {
    /// Opens the home folder and reads the environment.
    pub fn new(global: &Global) -> Result<Self, Error> {
        Ok(Self {
            screen: Screen::new(global.quiet),
            environment: Environment::read(|name| std::env::var(name).ok())?,
            home: Home::from_environment()?,
            leases: RefCell::default(),
            kept: RefCell::default(),
            drain: Drain::default(),
            config: global.config.clone(),
        })
    }

    /// Reads the configuration.
    pub fn configuration(&self) -> Result<Configuration, Error> {
        Ok(config::load(self.home.path(), self.config.as_deref())?)
    }

    /// The configuration that was asked for in place of the home folder's files.
    pub fn asked_config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The file that servers are added to.
    pub fn config_file(&self) -> Result<PathBuf, Error> {
        match &self.config {
            None => Ok(self.home.path().join("config.toml")),
            Some(path) if path.extension().is_some_and(|extension| extension == "toml") => Ok(path.clone()),
            Some(path) => Err(Error::unavailable(format!("cannot write servers into {}", path.display()))
                .hint("only TOML files are written; leave --config out to use the one in the home folder")),
        }
    }
}
