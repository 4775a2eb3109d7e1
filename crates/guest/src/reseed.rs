//! Clones of a server share no randomness: what is preloaded into its runtime, and how the agent knows that
//! it works.
//!
//! ```text
//! <run>/casemate/generation        a counter, increased in each clone before it runs
//!                preload.so        OpenSSL starts anew when the counter changed (`reseed/preload.rs`)
//!                node.cjs          so do Math.random and the caches of Node's crypto
//!                python/           so do Python's Mersenne twisters
//!                node-hook, …      mapped by processes to say what is so, see `State`
//! ```
//!
//! What the hooks do not cover is listed in their sources. Beyond randomness, clones share what processes
//! drew at their start: address space layout, stack protectors, seeds of hash tables.

use crate::handed::{FOLDER, create_folder, make_folder, write};
use casemate_proto::control::Reseed;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A page of memory: what processes map.
const PAGE_BYTES: usize = 4096;
/// A process has at most 65530 mappings (`vm.max_map_count`), of which few have a long name.
const MAPS_BYTES: u64 = 16 << 20;

const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));
const NODE: &[u8] = include_bytes!("../reseed/node.cjs");
const PYTHON: &[u8] = include_bytes!("../reseed/python/sitecustomize.py");

/// A file that processes map to say something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// The script of Node is in effect.
    Node,
    /// The module of Python is in effect.
    Python,
    /// OpenSSL has asked for the process id and is answered by the library.
    OpenSsl,
    /// Python has loaded OpenSSL.
    Ssl,
    /// The program has drawn numbers that clones would share.
    Drawn,
}

const MARKS: [(Mark, &str); 5] = [
    (Mark::Node, "node-hook"),
    (Mark::Python, "python-hook"),
    (Mark::OpenSsl, "openssl"),
    (Mark::Ssl, "ssl"),
    (Mark::Drawn, "drawn"),
];

/// Whether clones of processes would share randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooked {
    /// They would not: each process has loaded what makes it draw anew, and has drawn nothing yet.
    Complete,
    /// They might: this process has not, or there is none at all.
    Missing(Option<i32>),
    /// They would: this process has loaded it, and has drawn numbers before.
    Drawn(i32),
}

/// What was installed for a server's runtime.
#[derive(Debug)]
pub struct Reseeder {
    kind: Reseed,
    /// The folder as the server sees it.
    seen: PathBuf,
    /// Absent for [`Reseed::Kernel`], which needs nothing.
    files: Option<Files>,
}

#[derive(Debug)]
struct Files {
    /// Kept open: the paths may lead elsewhere once a server ran.
    generation: File,
    /// Device and inode of each mark, by which mappings name a file wherever it is mounted.
    marks: Vec<(Mark, Identity)>,
}

/// Device (major, minor) and inode.
type Identity = (u32, u32, u64);

impl Reseeder {
    /// Writes the hooks into `<run>/casemate`, which the server will see below `seen`. To be called before
    /// the server is started; again for another kind or a new root.
    ///
    /// Where the server could rename that folder or may not execute from it, it gets a file system of its own,
    /// which takes the privilege to mount.
    ///
    /// # Errors
    ///
    /// Those of the operating system. What was written so far stays and does no harm.
    pub fn install(run: &Path, seen: &Path, kind: Reseed) -> io::Result<Self> {
        let seen = seen.join(FOLDER);
        if kind == Reseed::Kernel {
            return Ok(Self { kind, seen, files: None });
        }
        let folder = run.join(FOLDER);
        make_folder(run)?;
        let scripts = folder.join("python");
        create_folder(&scripts)?;
        write(&folder, "preload.so", LIBRARY)?;
        write(&folder, "node.cjs", NODE)?;
        write(&scripts, "sitecustomize.py", PYTHON)?;
        let generation = write(&folder, "generation", &[0; PAGE_BYTES])?;
        let mut marks = Vec::with_capacity(MARKS.len());
        for (mark, name) in MARKS {
            marks.push((mark, identity(&write(&folder, name, &[0; PAGE_BYTES])?.metadata()?)));
        }
        Ok(Self { kind, seen, files: Some(Files { generation, marks }) })
    }

    /// Adds to the environment of the server what makes its runtime load the hooks; they take it out again, so
    /// that the server and what it starts find the environment as it was configured.
    pub fn extend_environment(&self, env: &mut BTreeMap<String, String>) {
        let mut prepend = |name: &str, value: String, separator: char| {
            let whole = match env.get(name) {
                Some(configured) => format!("{value}{separator}{configured}"),
                None => value,
            };
            env.insert(name.to_owned(), whole);
        };
        let path = |name: &str| self.seen.join(name).to_string_lossy().into_owned();
        match self.kind {
            Reseed::Kernel => {}
            Reseed::Node => {
                prepend("LD_PRELOAD", path("preload.so"), ':');
                prepend("NODE_OPTIONS", format!("--require {}", path("node.cjs")), ' ');
            }
            Reseed::Python => {
                prepend("LD_PRELOAD", path("preload.so"), ':');
                prepend("PYTHONPATH", path("python"), ':');
            }
        }
    }

    /// Makes every process of the server draw anew. To be called in a clone, after the kernel was given fresh
    /// randomness and before any of them runs.
    pub fn bump(&self) -> io::Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        let mut counter = [0; 4];
        files.generation.read_exact_at(&mut counter, 0)?;
        let next = u32::from_le_bytes(counter).wrapping_add(1);
        files.generation.write_all_at(&next.to_le_bytes(), 0)
    }

    /// Looks at all processes of the server. To be called while they are frozen: one that runs may draw in
    /// the next moment.
    pub fn state(&self, pids: &[i32]) -> Hooked {
        let Some(files) = &self.files else { return Hooked::Complete };
        let mut state = Hooked::Missing(None);
        for &pid in pids {
            let Ok(maps) = read_maps(pid) else { return Hooked::Missing(Some(pid)) };
            if maps.is_empty() {
                // Dead, or gone meanwhile.
                continue;
            }
            let marks = files.marks_in(&maps);
            if marks.contains(&Mark::Drawn) {
                return Hooked::Drawn(pid);
            }
            if !self.is_covered(&marks) {
                return Hooked::Missing(Some(pid));
            }
            state = Hooked::Complete;
        }
        state
    }

    fn is_covered(&self, marks: &[Mark]) -> bool {
        let has = |mark| marks.contains(&mark);
        match self.kind {
            Reseed::Kernel => true,
            Reseed::Node => has(Mark::Node) && has(Mark::OpenSsl),
            Reseed::Python => has(Mark::Python) && (has(Mark::OpenSsl) || !has(Mark::Ssl)),
        }
    }
}

impl Files {
    fn marks_in(&self, maps: &str) -> Vec<Mark> {
        let mapped: Vec<Identity> = maps.lines().filter_map(parse_mapping).collect();
        self.marks.iter().filter(|(_, file)| mapped.contains(file)).map(|(mark, _)| *mark).collect()
    }
}

/// The device and the inode of a line of `/proc/PID/maps`, proc(5): `address permissions offset device inode
/// path`. The path comes last, so no name can pretend to be another field.
fn parse_mapping(line: &str) -> Option<Identity> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some((number(major)?, number(minor)?, fields.next()?.parse().ok()?))
}

fn identity(metadata: &fs::Metadata) -> Identity {
    let device = metadata.dev();
    (rustix::fs::major(device), rustix::fs::minor(device), metadata.ino())
}

/// A process's mappings; empty if there is no such process, or no more.
fn read_maps(pid: i32) -> io::Result<String> {
    let mut bytes = Vec::new();
    let opened = File::open(format!("/proc/{pid}/maps"));
    match opened.and_then(|file| file.take(MAPS_BYTES).read_to_end(&mut bytes)) {
        Ok(length) if length as u64 == MAPS_BYTES => Err(io::ErrorKind::FileTooLarge.into()),
        // Names of files may be anything.
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(String::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_told_by_device_and_inode_whatever_it_is_called() {
        let line = "7f0000-7f1000 r--s 00000000 00:1f 42                         /run/casemate/drawn";
        assert_eq!(parse_mapping(line), Some((0, 0x1f, 42)));
        let evil = "7f0000-7f1000 r--p 00000000 fe:00 7    /tmp/x\u{20}00:1f 42 /run/casemate/drawn";
        assert_eq!(parse_mapping(evil), Some((0xfe, 0, 7)));
        assert_eq!(parse_mapping("7f0000-7f1000 rw-p 00000000 00:00 0"), Some((0, 0, 0)));
        assert_eq!(parse_mapping(""), None);
    }

    #[test]
    fn what_was_configured_stays_behind_what_is_added() {
        let folder = tempfile::tempdir().unwrap();
        let seen = Path::new("/run");
        let reseeder = Reseeder::install(folder.path(), seen, Reseed::Node).unwrap();
        let mut env = BTreeMap::from([("NODE_OPTIONS".to_owned(), "--no-warnings".to_owned())]);
        reseeder.extend_environment(&mut env);
        assert_eq!(env["NODE_OPTIONS"], "--require /run/casemate/node.cjs --no-warnings");
        assert_eq!(env["LD_PRELOAD"], "/run/casemate/preload.so");

        let python = Reseeder::install(folder.path(), seen, Reseed::Python).unwrap();
        let mut env = BTreeMap::from([("PYTHONPATH".to_owned(), String::new())]);
        python.extend_environment(&mut env);
        assert_eq!(env["PYTHONPATH"], "/run/casemate/python:");

        let kernel = Reseeder::install(folder.path(), seen, Reseed::Kernel).unwrap();
        let mut env = BTreeMap::new();
        kernel.extend_environment(&mut env);
        assert!(env.is_empty());
        assert_eq!(kernel.state(&[]), Hooked::Complete);
    }
}
