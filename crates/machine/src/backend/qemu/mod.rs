//! QEMU's microvm machine, under KVM or in software emulation.
//!
//! The VMM gets everything as a descriptor: memory, kernel, root file system, monitor, console and link.
//! It has no network device and no folder of its own.
//!
//! The slots of microvm's eight virtio-mmio devices: root, link and, where asked for, the writable overlay; five are
//! for folders and volumes. Entropy comes over the link (decision 0013).

mod args;
pub mod confine;
mod console;
mod overlay;
pub mod probe;
mod qmp;
mod state;
pub mod tsc;

use super::{BackendError, Beginning, Boxed, Capabilities, GuestMemory, Hosting, Instance};
use crate::{
    cgroup::{Group, Limits},
    log::CappedLog,
    spec::{Accelerator, Spec},
    supervisor::chain,
    template::pages::PAGE,
};
use casemate_link::{Connector, Listener, MuxHandle, mux};
use confine::Confinement;
use qmp::Qmp;
use rustix::fs::MemfdFlags;
use serde_json::json;
use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream as StdStream,
    },
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    task::JoinHandle,
};

/// How long QEMU may take to make its machine and greet; it reads the kernel meanwhile.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a killed VMM may take to be gone.
const REAP_TIMEOUT: Duration = Duration::from_secs(2);

/// Socket buffers of the link: a few windows of the multiplexer.
const LINK_BUFFER_BYTES: usize = 1 << 20;

/// A running QEMU.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    pid: u32,
    qmp: Qmp,
    link: MuxHandle,
    memory: GuestMemory,
    /// What QEMU writes the state of its devices to.
    outgoing: File,
    overlay: bool,
    /// Drain what the VMM prints; they end with it.
    drains: Vec<JoinHandle<()>>,
}

/// Starts a QEMU; its processors run when this returns.
pub(crate) async fn start(spec: &Spec, hosting: &Hosting, beginning: Beginning) -> Result<Vmm, BackendError> {
    let program = probe::find()?;
    let (memory, incoming, pages) = open_beginning(spec, beginning)?;
    let (outgoing, outgoing_end) =
        state::outgoing().map_err(BackendError::system("make room for the state"))?;
    let files = Files::open(spec, hosting)?;
    let (has_overlay, has_incoming) = (files.overlay.is_some(), incoming.is_some());
    let (monitor, monitor_end) = socketpair("make the monitor's socket")?;
    let (console, console_end) = socketpair("make the console's socket")?;
    let (link, link_end) = socketpair("make the link's socket")?;
    for end in [&link, &link_end] {
        // Smaller buffers only make it slower.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(end, LINK_BUFFER_BYTES);
    }

    let boots_in_emulation = spec.accelerator != Some(Accelerator::Kvm) && !has_incoming;
    let tsc_khz = boots_in_emulation.then(|| tsc::khz(&hosting.home));
    let mut command = std::process::Command::new(program);
    command.args(args::build(
        spec,
        &args::Descriptors {
            memory: memory.as_raw_fd(),
            memory_is_template: memory.is_template(),
            incoming: incoming.as_ref().map(AsRawFd::as_raw_fd),
            outgoing: outgoing_end.as_raw_fd(),
            kernel: files.kernel.as_raw_fd(),
            initramfs: files.initramfs.as_raw_fd(),
            root: files.root.as_ref().map(AsRawFd::as_raw_fd),
            overlay: files.overlay.as_ref().map(AsRawFd::as_raw_fd),
            folders: &files.folders.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(),
            volumes: &files.volumes.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(),
            monitor: monitor_end.as_raw_fd(),
            console: console_end.as_raw_fd(),
            link: link_end.as_raw_fd(),
            kvm: files.kvm.as_ref().map(AsRawFd::as_raw_fd),
        },
        tsc_khz,
    ));
    let mut confinement = Confinement {
        uid: confine::vmm_uid(&hosting.home, hosting.record.cid),
        without_huge_pages: memory.is_template(),
        readable: vec![files.kernel, files.initramfs],
        inherit: vec![monitor_end.into(), console_end.into(), link_end.into(), outgoing_end],
    };
    let bytes = u64::from(spec.resources.memory_mb) << 20;
    let (own, is_template) =
        memory.lend(&mut confinement).map_err(BackendError::system("share the guest's memory"))?;
    confinement.inherit.extend(incoming);
    confinement.readable.extend(files.root);
    confinement.inherit.extend(files.overlay);
    confinement.readable.extend(files.folders);
    // Their locks go with them: nobody else has a volume while this VMM could write to it.
    confinement.inherit.extend(files.volumes.into_iter().map(OwnedFd::from));
    confinement.inherit.extend(files.kvm);
    confinement.apply(&mut command)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());

    let mut group =
        Group::create(&hosting.home, &hosting.dir, &hosting.record.id, &Limits::of_vmm(spec.resources));
    let mut command = Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().map_err(BackendError::system("start QEMU"))?;
    // Closes this process's copies of the VMM's ends, or their end of file would never be seen.
    drop(command);
    let pid = child.id().unwrap_or_default();
    group.admit(pid);
    let logs = hosting.dir.join("logs");
    let mut drains = vec![console::drain(tokio_stream(console)?, open_log(&logs.join("console.log"))?)];
    let mut vmm_log = open_log(&logs.join("vmm.log"))?;
    for missing in group.missing() {
        vmm_log.write(format!("[casemate] runs without a limit: {}\n", chain(missing)).as_bytes());
    }
    if let Some(stderr) = child.stderr.take() {
        drains.push(console::drain(stderr, vmm_log));
    }
    let memory = match is_template {
        true => GuestMemory::private(own, bytes, pid),
        false => GuestMemory::shared(own, bytes),
    };
    let made = async {
        let mut qmp = Qmp::connect(tokio_stream(monitor)?, GREETING_TIMEOUT).await?;
        if let Some(pages) = pages {
            write_pages(&pages, &memory).map_err(BackendError::system("fill the guest's memory"))?;
        }
        if has_incoming {
            state::load(&mut qmp).await?;
            qmp.execute("cont", json!({})).await?;
        }
        Ok(qmp)
    };
    let qmp = match made.await {
        Ok(qmp) => qmp,
        Err(error) => {
            let _ = child.kill().await;
            // Why it failed is in what it printed.
            console::finish(drains).await;
            return Err(error);
        }
    };
    let mut nonce = [0; 16];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| BackendError::system("draw the link's nonce")(errno.into()))?;
    let (link, driver) = mux::attach_host(tokio_stream(link)?, nonce);
    // Why it ends is told to everybody who uses the link.
    tokio::spawn(driver);
    tokio::spawn(hosting.way_out.clone().serve(Listener::mux(link.clone())));
    Ok(Vmm { child, pid, qmp, link, memory, outgoing, overlay: has_overlay, drains })
}

/// The guest's memory before its VMM has it.
enum Memory {
    /// All of it.
    Own(OwnedFd),
    /// What it begins as.
    Template(File),
}

impl Memory {
    fn is_template(&self) -> bool {
        matches!(self, Self::Template(_))
    }

    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Own(fd) => fd.as_raw_fd(),
            Self::Template(file) => file.as_raw_fd(),
        }
    }

    /// Gives it to the VMM: to write, or only to read. Returns a handle of one's own.
    fn lend(self, confinement: &mut Confinement) -> io::Result<(File, bool)> {
        match self {
            Self::Own(fd) => {
                let own = fd.try_clone()?.into();
                confinement.inherit.push(fd);
                Ok((own, false))
            }
            Self::Template(file) => {
                let own = file.try_clone()?;
                confinement.readable.push(file);
                Ok((own, true))
            }
        }
    }
}

/// The memory, the state of devices to begin with, and the pages to write before.
fn open_beginning(
    spec: &Spec,
    beginning: Beginning,
) -> Result<(Memory, Option<OwnedFd>, Option<File>), BackendError> {
    let fresh = || {
        memfd("casemate-memory", u64::from(spec.resources.memory_mb) << 20)
            .map(Memory::Own)
            .map_err(BackendError::system("make the guest's memory"))
    };
    let incoming = |state: &[u8]| {
        state::incoming(state).map(Some).map_err(BackendError::system("hand over the state of the devices"))
    };
    match beginning {
        Beginning::Boot => Ok((fresh()?, None, None)),
        Beginning::Template(template) => {
            Ok((Memory::Template(template.memory), incoming(&template.state)?, None))
        }
        Beginning::Suspended(suspended) => {
            let memory = match suspended.base {
                Some(base) => Memory::Template(base),
                None => fresh()?,
            };
            Ok((memory, incoming(&suspended.state)?, Some(suspended.pages)))
        }
    }
}

/// Gives a suspended machine its pages back.
fn write_pages(pages: &File, memory: &GuestMemory) -> io::Result<()> {
    let writer = memory.writer()?;
    let mut reader = BufReader::with_capacity(64 << 10, pages);
    let (mut index, mut page) = ([0; 8], [0; PAGE]);
    loop {
        match reader.read_exact(&mut index) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        reader.read_exact(&mut page)?;
        writer.write(u64::from_le_bytes(index), &page)?;
    }
}

/// What the VMM is given to read and write.
struct Files {
    kernel: File,
    initramfs: File,
    root: Option<File>,
    overlay: Option<OwnedFd>,
    folders: Vec<File>,
    volumes: Vec<File>,
    kvm: Option<OwnedFd>,
}

impl Files {
    fn open(spec: &Spec, hosting: &Hosting) -> Result<Self, BackendError> {
        let root = spec.workload.as_ref().map(|workload| open("image", &workload.rootfs)).transpose()?;
        let shared = |files: &[File]| {
            let shared = files.iter().map(File::try_clone).collect::<io::Result<Vec<_>>>();
            shared.map_err(BackendError::system("share the machine's disks"))
        };
        Ok(Self {
            kernel: open("kernel", &spec.kernel)?,
            initramfs: open("initramfs", &spec.initramfs)?,
            kvm: match spec.accelerator {
                Some(Accelerator::Kvm) => Some(open_kvm()?.into()),
                _ => None,
            },
            root,
            folders: shared(&hosting.disks.folders)?,
            volumes: shared(&hosting.disks.volumes)?,
            overlay: match &spec.workload {
                Some(workload) if workload.overlay => Some(overlay::create(&hosting.home)?),
                _ => None,
            },
        })
    }
}

impl Instance for Vmm {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // The overlay is a device in memory that no file holds.
            snapshot: !self.overlay,
            pause: true,
            resume: true,
            kill: true,
            cut_link: true,
            set_clock: true,
            writable_overlay: self.overlay,
            conversations: false,
        }
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    fn connector(&self) -> Connector {
        Connector::Mux(self.link.clone())
    }

    fn exited(&mut self) -> Boxed<'_, io::Result<ExitStatus>> {
        Box::pin(self.child.wait())
    }

    fn pause(&mut self) -> Boxed<'_, Result<(), BackendError>> {
        Box::pin(async { self.qmp.execute("stop", json!({})).await.map(drop) })
    }

    fn resume(&mut self) -> Boxed<'_, Result<(), BackendError>> {
        Box::pin(async { self.qmp.execute("cont", json!({})).await.map(drop) })
    }

    fn save(&mut self) -> Boxed<'_, Result<Vec<u8>, BackendError>> {
        Box::pin(state::save(&mut self.qmp, &self.outgoing))
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn cut_link(&mut self) {
        self.link.give_up();
    }

    fn kill(&mut self) -> Boxed<'_, ()> {
        Box::pin(async {
            // Fails only where it has ended already.
            let _ = tokio::time::timeout(REAP_TIMEOUT, self.child.kill()).await;
            console::finish(std::mem::take(&mut self.drains)).await;
        })
    }
}

impl Drop for Vmm {
    /// The safety net: a machine whose making was given up leaves no VMM behind.
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let until = std::time::Instant::now() + REAP_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.link.give_up();
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, BackendError> {
    File::open(path).map_err(|source| BackendError::Open { what, path: path.to_owned(), source })
}

fn open_log(path: &Path) -> Result<CappedLog, BackendError> {
    CappedLog::open(path).map_err(|source| BackendError::Open { what: "log", path: path.to_owned(), source })
}

fn open_kvm() -> Result<File, BackendError> {
    let path = Path::new("/dev/kvm");
    let opened = File::options().read(true).write(true).open(path);
    opened.map_err(|source| BackendError::Open { what: "KVM device", path: path.to_owned(), source })
}

/// Memory that is a file: the VMM maps it by its descriptor's path, and a template can be made of it.
fn memfd(name: &str, bytes: u64) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    Ok(fd)
}

fn socketpair(action: &'static str) -> Result<(StdStream, StdStream), BackendError> {
    StdStream::pair().map_err(BackendError::system(action))
}

fn tokio_stream(stream: StdStream) -> Result<UnixStream, BackendError> {
    stream
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(stream))
        .map_err(BackendError::system("watch a socket of the VMM"))
}
