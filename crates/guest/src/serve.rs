//! Opens the links and hands each stream to its port.

use crate::agent::{Agent, Kernel};
use crate::args::Link;
use crate::port::{self, Port, virtio};
use crate::{control, conversation, ingress, log, modules};
use casemate_link::{Connector, Incoming, Listener, VsockPort, mux};
use casemate_proto::limits::{STOP_GRACE, STREAMS};
use casemate_proto::mux::ResetCode;
use casemate_proto::port::{CONTROL, CONVERSATION, INGRESS, LINK};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const PORTS: [u32; 3] = [CONVERSATION, CONTROL, INGRESS];

/// After a failed accept (descriptors ran out), before the next.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The sockets cannot be listened on.
    #[error("listen on sockets in {}", folder.display())]
    Unix {
        /// Their folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device or socket cannot be opened.
    #[error("open {}", path.display())]
    Serial {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's list of ports cannot be read.
    #[error("look for the port {}", port::NAME)]
    Find(#[source] io::Error),
    /// The kernel found no device that could be a link.
    #[error("this machine has no device for a link")]
    None,
    /// The other side closed it.
    #[error("the link is closed")]
    Closed,
}

/// Serves the link until it is over; returns why.
pub async fn serve(agent: Arc<Agent>, link: Link) -> LinkError {
    let result = match link {
        Link::Unix(folder) => unix(&folder, agent).await,
        Link::Serial(path) => serial(&path, agent).await,
        Link::Devices => devices(agent).await,
    };
    match result {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// What a link that is served returns.
enum Never {}

/// The link that the machine's devices make: the port that is there already, or whatever comes first.
async fn devices(agent: Arc<Agent>) -> Result<Never, LinkError> {
    // Going through all devices takes 7 ms in emulation, and most machines have this one.
    if let Ok(Some(path)) = port::look() {
        return serial(&path, agent).await;
    }
    let mut links = JoinSet::new();
    for kind in virtio::devices() {
        let agent = agent.clone();
        match kind {
            virtio::SOCKET => {
                modules::load(modules::VSOCK);
                links.spawn(vsock(agent));
            }
            virtio::CONSOLE => {
                links.spawn(async {
                    let path = port::find().await.map_err(LinkError::Find)?;
                    serial(&path, agent).await
                });
            }
            _ => {}
        }
    }
    let mut last = LinkError::None;
    while let Some(ended) = links.join_next().await {
        if let Ok(Err(error)) = ended {
            log::warn(format_args!("{}", log::chain(&error)));
            last = error;
        }
    }
    Err(last)
}

async fn unix(folder: &Path, agent: Arc<Agent>) -> Result<Never, LinkError> {
    let listener = Listener::unix(folder, &PORTS)
        .map_err(|source| LinkError::Unix { folder: folder.to_owned(), source })?;
    agent.egress.use_link(Connector::Unix { dir: folder.to_owned() });
    accept(listener, agent).await
}

async fn vsock(agent: Arc<Agent>) -> Result<Never, LinkError> {
    multiplexed(VsockPort::call(LINK), agent).await
}

async fn serial(path: &Path, agent: Arc<Agent>) -> Result<Never, LinkError> {
    let failed = |source| LinkError::Serial { path: path.to_owned(), source };
    let is_socket = std::fs::metadata(path).map_err(failed)?.file_type().is_socket();
    if is_socket {
        multiplexed(UnixStream::connect(path).await.map_err(failed)?, agent).await
    } else {
        multiplexed(Port::open(path).map_err(failed)?, agent).await
    }
}

async fn multiplexed<T>(io: T, agent: Arc<Agent>) -> Result<Never, LinkError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (handle, driver) = mux::attach_guest(io);
    tokio::spawn(driver);
    agent.egress.use_link(Connector::Mux(handle.clone()));
    accept(Listener::mux(handle), agent).await
}

async fn accept(mut listener: Listener, agent: Arc<Agent>) -> Result<Never, LinkError> {
    let room = Arc::new(Semaphore::new(STREAMS));
    loop {
        let incoming = match listener.accept().await {
            Ok(incoming) => incoming,
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Err(LinkError::Closed),
            Err(error) => {
                log::warn(format_args!("accept a stream: {error}"));
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            incoming.refuse(ResetCode::Busy, "too many streams");
            continue;
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            dispatch(&agent, incoming).await;
            drop(permit);
        });
    }
}

async fn dispatch(agent: &Arc<Agent>, incoming: Incoming) {
    match incoming.port {
        CONVERSATION => conversation::converse(agent, incoming).await,
        CONTROL => control::serve(agent, incoming).await,
        INGRESS => ingress::carry(agent, incoming).await,
        _ => incoming.refuse(ResetCode::Refused, "nobody listens on this port"),
    }
}

/// Runs the agent until it was told to shut down or its link is lost.
///
/// With a kernel of its own the agent never gives up: the host may come back, and its end is the machine's.
pub async fn run(agent: Arc<Agent>, kernel: Kernel, link: Link) -> Result<(), LinkError> {
    let serving = serve(agent.clone(), link);
    tokio::pin!(serving);
    tokio::select! {
        () = agent.ended() => Ok(()),
        () = told_to_end(), if kernel == Kernel::Shared => {
            agent.shut_down(STOP_GRACE);
            agent.ended().await;
            Ok(())
        }
        error = &mut serving => match kernel {
            Kernel::Shared => {
                agent.shut_down(Duration::ZERO);
                agent.ended().await;
                Err(error)
            }
            Kernel::Own => {
                log::warn(format_args!("{}", log::chain(&error)));
                agent.ended().await;
                Ok(())
            }
        }
    }
}

/// Waits for the signal by which a container or a sandbox is ended.
async fn told_to_end() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(error) => {
            log::warn(format_args!("wait for the signal to end: {error}"));
            std::future::pending::<()>().await;
        }
    }
}
