//! What a guest consists of outside: processes.

use crate::home::Home;
use casemate::embedded;
use casemate_image::{
    build::{BuildRequest, build},
    kernel,
    progress::Silent,
    registry::address::Registries,
    source::Source,
    store::Store,
};
use casemate_machine::backend::qemu::{probe::find as find_qemu, tsc};
use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::Path,
    process::{Child, Command, Stdio},
};

/// A process that ends with this value.
pub struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// A process that does nothing but hold a connection open.
    pub fn holding(connection: OwnedFd) -> Self {
        Self::start(Command::new("sleep").arg("1000").stdin(connection))
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The agent as a process of this host, with its sockets in a folder.
pub fn agent(home: &Home, folder: &Path) -> Process {
    // The server's user has to get at its program.
    for folder in [home.path(), folder] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, program) in [("agent", embedded::AGENT), ("probe", embedded::PROBE)] {
        fs::write(folder.join(name), program).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    Process::start(Command::new(folder.join("agent")).arg("--unix").arg(folder).stdin(Stdio::null()))
}

/// The host's half of a vsock device.
pub fn vsock_device(folder: &Path) -> Process {
    let mut command = Command::new("vhost-device-vsock");
    command.args(["--guest-cid", "100", "--socket"]).arg(folder.join("device.sock"));
    command.arg("--uds-path").arg(folder.join("vsock")).stdin(Stdio::null());
    Process::start(&mut command)
}

/// The device of a multiplexed link.
pub const SERIAL: [&str; 6] = [
    "-device",
    "virtio-serial-device,max_ports=2",
    "-chardev",
    "socket,id=link,path=port.sock,server=on,wait=off",
    "-device",
    "virtserialport,chardev=link,name=casemate.link",
];

/// The guest's half of a vsock device.
pub const VSOCK: [&str; 4] =
    ["-chardev", "socket,id=link,path=device.sock", "-device", "vhost-user-vsock-device,chardev=link"];

/// What machines differ in.
pub struct Machine<'a> {
    pub rootfs: &'a Path,
    /// A memory backend, `memory` by name.
    pub memory: &'a str,
    pub megabytes: &'a str,
}

/// A machine with the probe server and a link that can be let go and taken up again.
pub fn probe(home: &Home, folder: &Path, link: &[&str]) -> Process {
    let store = Store::open(home.path()).unwrap();
    let request = BuildRequest::new(Source::Builtin, embedded::PROBE);
    let image = build(&store, &Registries::default(), &request, &Silent).unwrap();
    let memory = "memory-backend-memfd,id=memory,size=128M,share=on";
    qemu(home, folder, &Machine { rootfs: &image.rootfs, memory, megabytes: "128M" }, link)
}

/// The machine of the QEMU backend.
pub fn qemu(home: &Home, folder: &Path, machine: &Machine<'_>, options: &[&str]) -> Process {
    let kernel = kernel::ensure(home.path(), &Registries::default(), embedded::AGENT, &Silent).unwrap();

    let mut command = Command::new(find_qemu().unwrap());
    command.current_dir(folder).stdin(Stdio::null());
    command.args(["-M", "microvm,acpi=on,pic=off,pit=off,rtc=on,memory-backend=memory"]);
    command.args(["-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-smp", "1"]);
    command.args(["-m", machine.megabytes, "-object", machine.memory]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-serial", "file:console"]);
    command.arg("-kernel").arg(&kernel.vmlinux).arg("-initrd").arg(&kernel.initramfs).arg("-append").arg(
        format!(
            "console=ttyS0 quiet reboot=t panic=-1 rdinit=/init rcupdate.rcu_expedited=1 tsc_early_khz={} tsc=reliable lpj=4000000 no_timer_check \
         mitigations=off cryptomgr.notests noreplace-smp",
            tsc::khz(&casemate_machine::Home::open(home.path()).unwrap())
        ),
    );
    let root = format!("id=root,if=none,format=raw,readonly=on,file={}", machine.rootfs.display());
    command.args(["-drive", &root, "-device", "virtio-blk-device,drive=root,serial=casemate-root"]);
    command.args(options);
    Process::start(&mut command)
}
