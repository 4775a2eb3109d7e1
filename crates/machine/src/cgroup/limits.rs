//! How much a group may use, and the files that say so.

use super::{Controller, Unavailable, find::Version};
use crate::spec::Resources;
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

/// Memory of a VMM beside the guest's, in MiB. Measured with QEMU 10.0 in emulation: 64 for the translation
/// cache, 40 of heap; the rest is room for what was not measured, since who reaches the limit is killed.
const VMM_MEMORY_MB: u64 = 256;

/// Processor time beside the virtual processors', in hundredths: of the VMM's main loop and I/O threads.
const VMM_CPU_PERCENT: u64 = 50;

/// Threads beside the virtual processors': main loop, RCU, migration, and QEMU's pool of at most 64 for I/O.
const VMM_THREADS: u64 = 96;

/// Over which time the kernel counts processor time; its default.
const PERIOD_US: u64 = 100_000;

/// What the processes of a group may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory, with memory files and what is swapped out, in bytes.
    pub memory_bytes: u64,
    /// Processor time, in hundredths of a processor.
    pub cpu_percent: u64,
    /// Threads.
    pub pids: u64,
}

impl Limits {
    /// What a VMM may use whose guest has these resources.
    pub fn of_vmm(resources: Resources) -> Self {
        let (guest_mb, vcpus) = (u64::from(resources.memory_mb), u64::from(resources.vcpus));
        Self {
            // A thirty-second is four times what page tables of 8 bytes for each 4 KiB take, which exist
            // twice where a memory file is mapped.
            memory_bytes: (guest_mb + guest_mb / 32 + VMM_MEMORY_MB) << 20,
            cpu_percent: vcpus * 100 + VMM_CPU_PERCENT,
            pids: vcpus + VMM_THREADS,
        }
    }

    /// Writes what concerns one controller into a group's files.
    pub(super) fn write(
        &self,
        version: Version,
        controller: Controller,
        dir: &Path,
    ) -> Result<(), Unavailable> {
        let memory = self.memory_bytes.to_string();
        let quota_us = self.cpu_percent * PERIOD_US / 100;
        match (version, controller) {
            (Version::V1, Controller::Memory) => {
                write(dir, "memory.limit_in_bytes", &memory)?;
                // Memory and swap together.
                write_if_there(dir, "memory.memsw.limit_in_bytes", &memory)
            }
            (Version::V2, Controller::Memory) => {
                write(dir, "memory.max", &memory)?;
                // Swap alone: all of the guest may be swapped out.
                write_if_there(dir, "memory.swap.max", &memory)
            }
            (Version::V1, Controller::Cpu) => {
                write(dir, "cpu.cfs_period_us", &PERIOD_US.to_string())?;
                match write(dir, "cpu.cfs_quota_us", &quota_us.to_string()) {
                    // A group above has less already, which bounds this one too.
                    Err(Unavailable::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
                        Ok(())
                    }
                    written => written,
                }
            }
            (Version::V2, Controller::Cpu) => write(dir, "cpu.max", &format!("{quota_us} {PERIOD_US}")),
            (_, Controller::Pids) => write(dir, "pids.max", &self.pids.to_string()),
        }
    }
}

fn write(dir: &Path, file: &str, value: &str) -> Result<(), Unavailable> {
    let path = dir.join(file);
    // Not created: a missing file is to be told as one.
    let opened = File::options().write(true).open(&path);
    opened.and_then(|mut file| file.write_all(value.as_bytes())).map_err(Unavailable::io("write", &path))
}

/// For files that a kernel without swap accounting does not have.
fn write_if_there(dir: &Path, file: &str, value: &str) -> Result<(), Unavailable> {
    match write(dir, file, value) {
        Err(Unavailable::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}
