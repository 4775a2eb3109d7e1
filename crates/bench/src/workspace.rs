//! The folder of a run, and the end of everything that was started in it.

use crate::{failure::Failure, process};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where things are in the folder of a run.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The program that is measured: a copy, so that a build meanwhile changes nothing.
    pub fn program(&self) -> PathBuf {
        self.root.join("casemate")
    }

    /// casemate's home folder.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// The unpacked root file system of a server.
    pub fn tree(&self, server: &str) -> PathBuf {
        self.root.join("trees").join(server)
    }

    /// runc's own records.
    pub fn runc_state(&self) -> PathBuf {
        self.root.join("runc")
    }

    /// Ends what was started and removes the folder. Failures are left alone: there is nobody to tell.
    pub fn clean(&self) {
        process::kill_all();
        self.delete_containers();
        let _ = Command::new(self.program())
            .args(["stop", "--all"])
            .env("CASEMATE_HOME", self.home())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let _ = fs::remove_dir_all(&self.root);
    }

    /// A container outlives the command that runs it.
    fn delete_containers(&self) {
        let Ok(containers) = fs::read_dir(self.runc_state()) else { return };
        for container in containers.flatten() {
            let _ = Command::new("runc")
                .arg("--root")
                .arg(self.runc_state())
                .args(["delete", "--force"])
                .arg(container.file_name())
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// A temporary folder; cleaned when dropped.
#[derive(Debug)]
pub struct Workspace(Layout);

impl Workspace {
    /// Makes the folder, with a copy of the program.
    pub fn create(program: &Path) -> Result<Self, Failure> {
        let root = tempfile::Builder::new()
            .prefix("casemate-bench.")
            .tempdir()
            .map_err(Failure::system("make a temporary folder"))?
            .keep();
        let workspace = Self(Layout { root });
        fs::copy(program, workspace.0.program()).map_err(Failure::file("copy the program", program))?;
        Ok(workspace)
    }

    /// Where things are in it.
    pub fn layout(&self) -> &Layout {
        &self.0
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.0.clean();
    }
}
