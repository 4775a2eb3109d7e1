//! How the host reaches the ports of a machine.

use crate::handshake::{self, HandshakeError};
use crate::mux::{LinkDown, MuxHandle};
use crate::stream::Stream;
use casemate_proto::limits::{HANDSHAKE_TIMEOUT, STREAMS};
use casemate_proto::mux::ResetCode;
use std::io;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The way to one machine's ports.
#[derive(Debug, Clone)]
pub enum Connector {
    /// Streams of a multiplexed link.
    Mux(MuxHandle),
    /// A folder with one Unix socket for each port, see [`port_socket`].
    Unix {
        /// The folder.
        dir: PathBuf,
    },
    /// One Unix socket that asks for the port with the [handshake]: a supervisor's.
    Handshake {
        /// The socket.
        socket: PathBuf,
    },
}

/// Why a stream to a port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The other side does not take this stream. Native links know no reasons: there, nobody listens.
    #[error("port {port} refused the stream ({code:?}): {reason}")]
    Refused {
        /// The port that was asked for.
        port: u32,
        /// Why, for programs.
        code: ResetCode,
        /// Why, for people; foreign text without control characters.
        reason: String,
    },
    /// The link carries [`STREAMS`] streams already.
    #[error("link carries {STREAMS} streams already")]
    TooMany,
    /// Another host attached while the stream was being opened.
    #[error("link was resynchronised while port {port} was being opened")]
    Resynced {
        /// The port that was asked for.
        port: u32,
    },
    /// The multiplexed link is over.
    #[error("link is down")]
    LinkDown(#[source] LinkDown),
    /// Nobody answered within [`HANDSHAKE_TIMEOUT`].
    #[error("port {port} did not answer within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut {
        /// The port that was asked for.
        port: u32,
    },
    /// The socket cannot be connected to.
    #[error("cannot connect to {}", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket answered something else than the handshake.
    #[error("handshake for port {port} failed at {}", socket.display())]
    Handshake {
        /// The port that was asked for.
        port: u32,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: HandshakeError,
    },
}

impl Connector {
    /// Opens a stream to a port, within [`HANDSHAKE_TIMEOUT`].
    ///
    /// Cancellation safe: a stream that was half open is given up.
    pub async fn connect(&self, port: u32) -> Result<Stream, ConnectError> {
        let opening = async {
            match self {
                Self::Mux(handle) => handle.open(port).await,
                Self::Unix { dir } => connect_port(dir, port).await,
                Self::Handshake { socket } => connect_handshake(socket, port).await,
            }
        };
        timeout(HANDSHAKE_TIMEOUT, opening).await.unwrap_or(Err(ConnectError::TimedOut { port }))
    }
}

/// The socket of one port in the folder of a machine whose link is Unix sockets.
pub fn port_socket(dir: &Path, port: u32) -> PathBuf {
    dir.join(format!("{port}.sock"))
}

async fn connect_port(dir: &Path, port: u32) -> Result<Stream, ConnectError> {
    match connect_socket(&port_socket(dir, port), port).await {
        Ok(stream) => Ok(Stream::from_unix(stream)),
        // A port's socket is there while somebody listens; the folder is there while the machine is.
        Err(ConnectError::Socket { source, .. })
            if source.kind() == io::ErrorKind::NotFound && dir.exists() =>
        {
            Err(nobody_listens(port))
        }
        Err(error) => Err(error),
    }
}

async fn connect_socket(socket: &Path, port: u32) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused => nobody_listens(port),
        _ => ConnectError::Socket { socket: socket.to_owned(), source },
    })
}

async fn connect_handshake(socket: &Path, port: u32) -> Result<Stream, ConnectError> {
    let mut stream = connect_socket(socket, port).await?;
    match handshake::request(&mut stream, port).await {
        Ok(()) => Ok(Stream::from_unix(stream)),
        Err(HandshakeError::Refused { code, reason }) => Err(ConnectError::Refused { port, code, reason }),
        // What Firecracker does where no program in the guest listens.
        Err(HandshakeError::Closed) => Err(ConnectError::Refused {
            port,
            code: ResetCode::Refused,
            reason: "connection was closed without an answer".to_owned(),
        }),
        Err(source) => Err(ConnectError::Handshake { port, socket: socket.to_owned(), source }),
    }
}

fn nobody_listens(port: u32) -> ConnectError {
    ConnectError::Refused {
        port,
        code: ResetCode::Refused,
        reason: "nobody listens on its socket".to_owned(),
    }
}
