//! Tools that ask for a machine unlike their server's: a wall, a size, folders.

use super::{
    error::{ConfigError, Place},
    meaning::{folder, isolation, sized},
    written,
};
use crate::{
    command::options::{MEMORY_MB, MachineOptions, VCPUS},
    engine::Isolation,
    mounts::FolderWish,
};

/// What a file says of one tool of a server. Whatever it does not say is as the server's table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// The tool's name; the server need not have such a tool.
    pub name: String,
    /// Where its table begins.
    pub place: Place,
    /// The weakest wall that will do for it.
    pub isolation: Option<Isolation>,
    /// Memory of a machine that it is called in, in MiB.
    pub memory_mb: Option<u32>,
    /// Virtual processors of such a machine.
    pub vcpus: Option<u32>,
    /// Folders of the host that only such a machine has.
    pub folders: Vec<FolderWish>,
    /// Where the file names an image of a unikernel for it, which nothing here can boot.
    pub unikernel_image: Option<Place>,
}

impl Tool {
    fn new(written: written::Tool) -> Result<Self, ConfigError> {
        Ok(Self {
            name: written.name,
            place: written.place,
            isolation: written.isolation.map(isolation).transpose()?,
            memory_mb: sized(written.memory_mb, "memory_mb", &MEMORY_MB)?,
            vcpus: sized(written.vcpus, "vcpus", &VCPUS)?,
            folders: written.folders.into_iter().map(folder).collect::<Result<_, _>>()?,
            unikernel_image: written.unikernel_image.map(|image| image.place),
        })
    }

    /// What it says about the machine that it is called in.
    pub fn machine(&self) -> MachineOptions {
        MachineOptions { isolation: self.isolation, backend: None, memory: self.memory_mb, vcpus: self.vcpus }
    }
}

/// The tools of a server.
pub(super) fn tools(written: Vec<written::Tool>) -> Result<Vec<Tool>, ConfigError> {
    let mut tools: Vec<Tool> = Vec::new();
    for tool in written {
        let tool = Tool::new(tool)?;
        if let Some(first) = tools.iter().find(|other| other.name == tool.name) {
            let (place, first) = (tool.place, first.place.clone());
            return Err(ConfigError::DuplicateTool { place, name: tool.name, first });
        }
        tools.push(tool);
    }
    Ok(tools)
}
