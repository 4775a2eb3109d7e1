//! How programs are started in this machine: the configuration, turned into what a start needs.

use crate::failure;
use crate::group::Groups;
use crate::reaper::Reaper;
use crate::spawn::{Child, SpawnError, spawn};
use crate::wall::{Identity, Wall};
use casemate_proto::control::{Configure, Exec, Failure, FailureCode, Limits, Transport};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::Arc;

/// What to start, where, and behind which wall.
#[derive(Debug, Clone)]
pub struct Launch {
    command: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: CString,
    limits: Limits,
    root: Option<CString>,
    /// How the server is reached.
    pub transport: Transport,
}

impl Launch {
    /// The server of a configuration; `root` is the machine's root as the agent sees it, if it is not the
    /// agent's own.
    pub fn new(config: &Configure, root: Option<CString>) -> Result<Self, Failure> {
        check(&config.command, &config.env)?;
        Ok(Self {
            command: config.command.clone(),
            env: config.env.clone(),
            cwd: folder(&config.cwd)?,
            limits: config.limits,
            root,
            transport: config.transport,
        })
    }

    /// Another program in the server's place and environment.
    pub fn beside(&self, exec: Exec) -> Result<Self, Failure> {
        let mut env = self.env.clone();
        env.extend(exec.env);
        check(&exec.argv, &env)?;
        let cwd = exec.cwd.as_deref().map_or_else(|| Ok(self.cwd.clone()), folder)?;
        Ok(Self { command: exec.argv, env, cwd, ..self.clone() })
    }

    /// Starts it.
    pub fn spawn(&self, groups: &Arc<Groups>, reaper: &Reaper) -> Result<Child, SpawnError> {
        let wall = Wall {
            root: self.root.clone(),
            cgroup: None,
            identity: Identity::of_this_process(),
            limits: self.limits,
            cwd: self.cwd.clone(),
        };
        spawn(&self.command, &self.env, wall, groups, reaper)
    }
}

fn check(command: &[String], env: &BTreeMap<String, String>) -> Result<(), Failure> {
    let refuse = |what: &str| Err(failure::new(FailureCode::Params, what));
    if command.first().is_none_or(String::is_empty) {
        return refuse("the command is empty");
    }
    if command.iter().chain(env.values()).any(|text| text.contains('\0')) {
        return refuse("an argument or the value of a variable contains a zero byte");
    }
    if env.keys().any(|name| name.is_empty() || name.contains(['\0', '='])) {
        return refuse("the name of a variable is empty or contains '=' or a zero byte");
    }
    Ok(())
}

fn folder(path: &str) -> Result<CString, Failure> {
    if !path.starts_with('/') {
        return Err(failure::new(
            FailureCode::Params,
            format!("the working folder {path:?} is no absolute path"),
        ));
    }
    CString::new(path)
        .map_err(|_| failure::new(FailureCode::Params, "the working folder contains a zero byte"))
}
