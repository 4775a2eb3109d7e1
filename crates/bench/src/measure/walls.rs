//! The same server from the same files without casemate: on the host, in bubblewrap, and in runc.

use crate::{
    bench::{Bench, Image},
    casemate::Talk,
    failure::Failure,
    process::{self, Memory},
    results::Samples,
    server::Server,
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

/// An unassigned user.
const NOBODY: u32 = 65_534;

/// Folders that are writable and empty in a machine.
const SCRATCH: [&str; 3] = ["/tmp", "/run", "/home/casemate"];

/// runc refuses a hierarchy of control groups that has no controllers, so it gets a view without it; where
/// it is the only one, it stays.
const WITHOUT_EMPTY_HIERARCHY: &str = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";

/// What stands around a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// Another root folder, and nothing else: the floor.
    Host,
    /// Namespaces, by bubblewrap.
    Bubblewrap,
    /// A container, by runc.
    Runc,
}

impl Wall {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Host, Self::Bubblewrap, Self::Runc];

    /// As the cases call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Bubblewrap => "bubblewrap",
            Self::Runc => "runc",
        }
    }

    /// The command that runs an image's server behind this wall.
    fn command(self, bench: &Bench, server: &Server, image: &Image) -> Result<Command, Failure> {
        let tree = bench.tree(server)?;
        match self {
            Self::Host => host(tree, image),
            Self::Bubblewrap => bubblewrap(tree, image),
            Self::Runc => runc(bench, server, tree, image),
        }
    }
}

pub fn measure(bench: &Bench, samples: &mut Samples<'_>, wall: Wall, server: &Server) -> Result<(), Failure> {
    let image = bench.image(server)?;
    let mut talk = Talk::begin(wall.command(bench, server, image)?)?;
    talk.call(server, "a start")?;
    let called = talk.spawned.elapsed();
    samples.time("initialize answered", talk.initialized);
    samples.time("first call answered", called);
    samples.mebibytes("memory, after a call", Memory::of_tree(talk.client.pid())?);
    talk.end()?;
    Ok(())
}

/// The image's programs are linked to its own libraries, so even on the host they see it as their root.
fn host(tree: &Path, image: &Image) -> Result<Command, Failure> {
    let mut command = Command::new(process::find("chroot")?);
    command.arg(tree).args(&image.command).env_clear().envs(&image.env);
    Ok(command)
}

fn bubblewrap(tree: &Path, image: &Image) -> Result<Command, Failure> {
    let mut command = Command::new(process::find("bwrap")?);
    // A network namespace of its own, in which there is a loopback device.
    command.args(["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
    command.arg("--ro-bind").arg(tree).args(["/", "--proc", "/proc", "--dev", "/dev"]);
    for folder in SCRATCH {
        command.args(["--tmpfs", folder]);
    }
    command.args(["--chdir", &image.cwd, "--"]).args(&image.command).env_clear().envs(&image.env);
    Ok(command)
}

fn runc(bench: &Bench, server: &Server, tree: &Path, image: &Image) -> Result<Command, Failure> {
    let runc = process::find("runc")?;
    let bundle = bench.layout.root().join("bundles").join(server.name);
    fs::create_dir_all(&bundle).map_err(Failure::file("make the folder", &bundle))?;
    let config = bundle.join("config.json");
    fs::write(&config, configuration(tree, image).to_string()).map_err(Failure::file("write", &config))?;
    let mut command = Command::new(process::find("unshare")?);
    command.args(["-m", "sh", "-c", WITHOUT_EMPTY_HIERARCHY, "sh"]).arg(runc);
    command.arg("--root").arg(bench.layout.runc_state()).arg("run").arg("--bundle").arg(bundle);
    // One at a time, of this process alone.
    command.arg(format!("casemate-bench-{}-{}", server.name, std::process::id()));
    Ok(command)
}

/// A container as closed as a machine: no capabilities, no network but loopback, a read-only root.
fn configuration(tree: &Path, image: &Image) -> Value {
    let environment: Vec<String> = image.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
    ];
    mounts.extend(SCRATCH.map(|folder| {
        json!({ "destination": folder, "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "nodev", "mode=1777"] })
    }));
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "hostname": "casemate-bench",
        "root": { "path": tree, "readonly": true },
        "mounts": mounts,
        "process": {
            "terminal": false,
            "user": { "uid": NOBODY, "gid": NOBODY },
            "args": image.command,
            "env": environment,
            "cwd": image.cwd,
            "capabilities": {},
            "noNewPrivileges": true,
        },
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
