//! The virtio-serial port that joins a machine to its supervisor, as an async byte stream.
//!
//! While no host is connected, `poll` reports a hang-up on the port and `read` says end of file. Neither is an
//! end: the next host continues the stream. tokio keeps a hang-up for ever, so a task that waited for this
//! descriptor would spin. Each direction therefore waits for an epoll set of its own, which holds the port
//! edge-triggered: it becomes readable once for every change, and never hangs up.

use crate::sys;
use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The name that the VMM gives the port.
pub const NAME: &str = "casemate.link";

const PORTS: &str = "/sys/class/virtio-ports";

/// An open port.
#[derive(Debug)]
pub struct Port {
    device: OwnedFd,
    readable: Edge,
    writable: Edge,
}

impl Port {
    /// Opens a character device that behaves like a virtio-serial port, or any other with `poll`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let device = rustix::fs::open(path, flags, Mode::empty())?;
        let readable = Edge::new(&device, epoll::EventFlags::IN)?;
        let writable = Edge::new(&device, epoll::EventFlags::OUT)?;
        Ok(Self { device, readable, writable })
    }
}

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match rustix::io::read(&self.device, buf.initialize_unfilled()) {
                // Nobody is connected.
                Ok(0) | Err(Errno::AGAIN) => {}
                Ok(length) => {
                    buf.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            ready!(self.readable.poll_change(cx))?;
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(&self.device, bytes) {
                Ok(0) | Err(Errno::AGAIN) if !bytes.is_empty() => {}
                Err(Errno::INTR) => continue,
                result => return Poll::Ready(result.map_err(io::Error::from)),
            }
            ready!(self.writable.poll_change(cx))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Tells changes of a descriptor's readiness, each once. One task waits for it at a time.
#[derive(Debug)]
struct Edge(AsyncFd<OwnedFd>);

impl Edge {
    fn new(device: &OwnedFd, events: epoll::EventFlags) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&set, device, epoll::EventData::new_u64(0), events | epoll::EventFlags::ET)?;
        Ok(Self(sys::readable(set)?))
    }

    /// Ready if something changed since it was last ready: try again.
    fn poll_change(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.0.poll_read_ready(cx))?;
        let mut events = Vec::with_capacity(1);
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(self.0.get_ref(), rustix::buffer::spare_capacity(&mut events), Some(&zero))?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }
}

/// Waits for the port with [`NAME`] and says where its device is.
pub async fn find() -> io::Result<PathBuf> {
    // Listens before it looks, so that a port that appears in between is not missed.
    let news = Uevents::open()?;
    loop {
        if let Some(device) = look()? {
            return Ok(device);
        }
        news.next().await?;
    }
}

/// Where its device is, if it is there already.
pub fn look() -> io::Result<Option<PathBuf>> {
    let folder = match fs::read_dir(PORTS) {
        // The driver is not loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        folder => folder?,
    };
    for entry in folder {
        let entry = entry?;
        // A port gets its name a moment after it appears.
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == NAME) {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

/// The kernel's messages about devices.
#[derive(Debug)]
struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    fn open() -> io::Result<Self> {
        /// The multicast group of the kernel itself.
        const KERNEL: u32 = 1;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::KOBJECT_UEVENT),
        )?;
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(sys::readable(socket)?))
    }

    /// Waits for at least one message and forgets all that are there.
    async fn next(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut received = false;
        loop {
            let mut guard = self.0.readable().await?;
            match rustix::io::read(self.0.as_fd(), &mut buffer) {
                Err(Errno::AGAIN) if received => return Ok(()),
                Err(Errno::AGAIN) => guard.clear_ready(),
                // Some were lost: reason enough to look.
                Ok(_) | Err(Errno::NOBUFS) => received = true,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Numbers of the virtio specification, section 5.
pub mod virtio {
    /// A console, of which ports are a feature.
    pub const CONSOLE: u32 = 3;
    /// A socket device.
    pub const SOCKET: u32 = 19;

    /// The kinds of all virtio devices that the kernel has found.
    pub fn devices() -> Vec<u32> {
        let folder = std::fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
        let kind = |entry: std::fs::DirEntry| {
            let text = std::fs::read_to_string(entry.path().join("device")).ok()?;
            u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
        };
        folder.filter_map(kind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, mknodat};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Duration, timeout};

    /// A named pipe: what is written to it can be read from it, and `poll` works as on a device.
    fn device() -> (tempfile::TempDir, Port) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let port = Port::open(&path).unwrap();
        (folder, port)
    }

    #[tokio::test]
    async fn a_reader_is_woken_by_every_write() {
        let (_folder, mut port) = device();
        let mut buffer = [0; 8];
        for round in 0..200u8 {
            let waiting = timeout(Duration::from_millis(1), port.read(&mut buffer)).await;
            assert!(waiting.is_err(), "read something out of nothing");
            let writer = rustix::io::dup(&port.device).unwrap();
            let (read, _) = tokio::join!(port.read(&mut buffer), async {
                tokio::task::yield_now().await;
                rustix::io::write(&writer, &[round]).unwrap();
            });
            assert_eq!((read.unwrap(), buffer[0]), (1, round));
        }
    }

    #[tokio::test]
    async fn a_writer_waits_for_room_and_goes_on() {
        let (_folder, port) = device();
        let reader = rustix::io::dup(&port.device).unwrap();
        let (_, mut output) = tokio::io::split(port);
        let message = vec![7; 1 << 20];
        let draining = async {
            let (mut buffer, mut seen) = (vec![0; 10_000], 0);
            while seen < message.len() {
                match rustix::io::read(&reader, &mut buffer) {
                    Ok(length) => seen += length,
                    Err(Errno::AGAIN) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let writing = timeout(Duration::from_secs(60), output.write_all(&message));
        let (written, ()) = tokio::join!(writing, draining);
        written.unwrap().unwrap();
    }
}
