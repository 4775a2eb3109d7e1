//! How the guest learns that the host wants a stream.

use crate::connector::port_socket;
use crate::mux::{MuxHandle, MuxOffer};
use crate::stream::Stream;
use casemate_proto::mux::ResetCode;
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::task::Poll;
use tokio::net::UnixListener;

/// Where streams come in.
#[derive(Debug)]
pub struct Listener(Inner);

#[derive(Debug)]
enum Inner {
    Mux(MuxHandle),
    Unix(Vec<(u32, UnixListener)>),
}

/// A stream that the other side wants; dropped unanswered, it is refused.
#[derive(Debug)]
pub struct Incoming {
    /// The port that it is for.
    pub port: u32,
    /// How many times the link was synchronised when the stream was asked for, see
    /// [`MuxHandle::generation`]; 0 on native links, which need no synchronisation.
    pub generation: u64,
    offer: Offer,
}

#[derive(Debug)]
enum Offer {
    Mux(MuxOffer),
    Native(Stream),
}

impl Listener {
    /// Takes the streams of a multiplexed link, whatever their port.
    pub fn mux(handle: MuxHandle) -> Self {
        Self(Inner::Mux(handle))
    }

    /// Listens on one Unix socket for each port, see [`port_socket`]. The sockets must not exist yet.
    pub fn unix(dir: &Path, ports: &[u32]) -> io::Result<Self> {
        let bind = |&port| Ok((port, UnixListener::bind(port_socket(dir, port))?));
        ports.iter().map(bind).collect::<io::Result<_>>().map(Inner::Unix).map(Self)
    }

    /// The next stream that the other side wants.
    ///
    /// Cancellation safe. An error of kind `NotConnected` is the end of the link; any other concerns one
    /// connection (or says that descriptors ran out), and the next call may succeed.
    pub async fn accept(&mut self) -> io::Result<Incoming> {
        match &mut self.0 {
            Inner::Mux(handle) => {
                handle.accept().await.map_err(|down| io::Error::new(io::ErrorKind::NotConnected, down))
            }
            Inner::Unix(listeners) => {
                poll_fn(|cx| {
                    for (port, listener) in &*listeners {
                        if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                            return Poll::Ready(
                                accepted.map(|(s, _)| Incoming::native(*port, Stream::from_unix(s))),
                            );
                        }
                    }
                    Poll::Pending
                })
                .await
            }
        }
    }
}

impl Incoming {
    pub(crate) fn mux(port: u32, generation: u64, offer: MuxOffer) -> Self {
        Self { port, generation, offer: Offer::Mux(offer) }
    }

    fn native(port: u32, stream: Stream) -> Self {
        Self { port, generation: 0, offer: Offer::Native(stream) }
    }

    /// Takes the stream. If the other side has given it up meanwhile, its first read fails.
    pub fn accept(self) -> Stream {
        match self.offer {
            Offer::Mux(offer) => Stream::from_mux(offer.accept()),
            Offer::Native(stream) => stream,
        }
    }

    /// Refuses the stream. A native link carries no reason: there the connection is closed.
    pub fn refuse(self, code: ResetCode, reason: &str) {
        match self.offer {
            Offer::Mux(offer) => offer.refuse(code, reason),
            Offer::Native(stream) => drop(stream),
        }
    }
}
