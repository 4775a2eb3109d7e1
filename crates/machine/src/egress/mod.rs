//! The way out of a machine: port 5254, which its agent opens and the supervisor decides about.
//!
//! ```text
//! guest                                              host
//! server ── 127.0.0.1:5254 ── agent ══ link 5254 ══ Gate ── policy ── resolve ── admit ── TCP
//!           (HTTP, SOCKS5)                            │       a name, looked up here, pinned to an address
//!           (forwarded ports)                         └── egress.log, and refusals in the server's log
//! ```
//!
//! There is no network device in a machine, so what does not come this way reaches nobody. The guest is not
//! trusted: the agent's proxy is a convenience for programs, and all decisions fall here.
//!
//! | attack | barrier |
//! | --- | --- |
//! | a target that is not allowed | `policy`: exact names, addresses and ports |
//! | a name that resolves into the host's network, now or later | `address`: each connection is made to an address that was just checked, never to a name |
//! | another server behind an allowed one's address | `hello`: on port 443 the TLS handshake names the one that was asked for |
//! | exhausting the host | `budget`: streams, attempts, bytes, idleness, lookups |
//!
//! What is inside TLS is not seen: who may reach a server may tell it anything. Where the host puts secrets
//! into requests it ends the TLS of both sides.

mod address;
mod budget;
mod carry;
pub(crate) mod environment;
mod hello;
mod journal;
mod policy;
mod resolve;
mod swap;
#[cfg(test)]
mod tests;

pub use casemate_proto::egress::{Allow, Forward, InvalidEntry};
pub use journal::FILE;
pub use policy::{Conflict, Egress};
pub(crate) use swap::SwapError;

use crate::{
    secret::{Kept, Redactor, Swapped},
    supervisor::chain,
};
use budget::{Bounds, Rate, Turn};
use carry::{Meter, Metered};
use casemate_link::{Incoming, Listener};
use casemate_proto::{
    control::Trust,
    egress::{Answer, Host, InvalidRequest, REQUEST_BYTES, Refusal, Request, Target},
    limits::HANDSHAKE_TIMEOUT,
    mux::ResetCode,
    port,
};
use hello::{Guarded, HelloError};
use jiff::Timestamp;
use journal::{Attempt, Journal, Line, Verdict};
use policy::Denied;
use resolve::{Resolve, ResolveError};
use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use swap::{Swap, Verified};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};

/// How long one address may take to answer, and how many are tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TRIES: usize = 3;

/// After a failed accept (descriptors ran out), before the next.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// What becomes of the streams that a guest opens.
#[derive(Debug, Clone, Default)]
pub(crate) enum WayOut {
    /// Each is refused.
    #[default]
    None,
    /// Each is refused, and somebody wants to know: a template must hold nothing of the outside.
    Watched(Arc<Notify>),
    /// Each is decided about.
    Open(Arc<Gate>),
}

impl WayOut {
    /// What the programs of the machine are to trust, so that they believe its gate.
    pub(crate) fn trust(&self) -> Option<Trust> {
        match self {
            Self::Open(gate) => gate.swap.as_ref().map(|swap| swap.trust().clone()),
            Self::None | Self::Watched(_) => None,
        }
    }

    /// Serves the streams of one life of a machine, until its link is over.
    pub(crate) async fn serve(self, mut link: Listener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = link.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let incoming = match accepted {
                Ok(incoming) => incoming,
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                Err(_) => {
                    tokio::time::sleep(AFTER_FAILURE).await;
                    continue;
                }
            };
            match &self {
                Self::Open(gate) if incoming.port == port::EGRESS => {
                    connections.spawn(Arc::clone(gate).take(incoming));
                }
                Self::Watched(tried) if incoming.port == port::EGRESS => {
                    tried.notify_one();
                    incoming.refuse(ResetCode::Refused, "templates are made without a way out");
                }
                _ => incoming.refuse(ResetCode::Refused, "nothing is offered to this machine"),
            }
        }
    }
}

/// Decides about the connections of one machine, and carries those that may be.
#[derive(Debug)]
pub(crate) struct Gate {
    egress: Egress,
    /// The port of a server that is reached by HTTP.
    own_port: Option<u16>,
    /// Where the host puts secrets into requests.
    swap: Option<Swap>,
    bounds: Bounds,
    resolver: Arc<dyn Resolve>,
    lookups: Arc<Semaphore>,
    streams: Semaphore,
    rate: Rate,
    journal: Journal,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{} attempts within a minute are too many", .0)]
    TooOften(u32),
    #[error("{} connections at once are too many", .0)]
    TooMany(usize),
    #[error("no request came within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Slow,
    #[error("request is longer than {REQUEST_BYTES} bytes, or no text")]
    Unreadable,
    #[error(transparent)]
    Request(#[from] InvalidRequest),
    #[error("stream ended before its request")]
    Ended,
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("{address} does not answer")]
    Unreachable { address: SocketAddr, source: io::Error },
    #[error("cannot verify that {address} is that server")]
    Unverified { address: SocketAddr, source: io::Error },
    #[error("no TLS with the server inside, which is to trust this machine's own authority ($SSL_CERT_FILE)")]
    Inside(#[source] io::Error),
    #[error("its TLS handshake is for {named}")]
    OtherServer { named: String },
    #[error(transparent)]
    Hello(#[from] HelloError),
}

impl Refused {
    fn code(&self) -> Refusal {
        match self {
            Self::TooOften(_) | Self::TooMany(_) => Refusal::Busy,
            Self::Slow | Self::Unreadable | Self::Request(_) | Self::Ended => Refusal::Malformed,
            Self::Denied(_) | Self::OtherServer { .. } | Self::Hello(_) | Self::Inside(_) => Refusal::Denied,
            Self::Resolve(_) | Self::Unreachable { .. } | Self::Unverified { .. } => Refusal::Unreachable,
        }
    }

    fn verdict(&self) -> Verdict {
        match self.code() {
            Refusal::Unreachable => Verdict::Failed,
            _ => Verdict::Refused,
        }
    }
}

/// Why there is no gate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GateError {
    /// Its log cannot be written.
    #[error("cannot open {FILE}")]
    Journal(#[from] io::Error),
    /// It cannot put secrets into requests.
    #[error("cannot keep secrets from the server")]
    Swap(#[from] SwapError),
}

/// What the guest is connected to.
enum Outside {
    /// It speaks with it as it likes.
    Plain(Metered),
    /// The host speaks for it.
    Verified(Box<Verified>),
}

impl Gate {
    /// A gate that writes to the logs in this folder; lines for the server's log come out of the receiver.
    pub(crate) fn open(
        egress: Egress,
        own_port: Option<u16>,
        secrets: &Kept,
        logs: &Path,
    ) -> Result<(Self, mpsc::Receiver<String>), GateError> {
        let swapped: Vec<Swapped> = secrets.swapped();
        let swap = (!swapped.is_empty()).then(|| Swap::new(swapped)).transpose()?;
        let redactor = Arc::clone(&secrets.redactor);
        let (gate, notes) =
            Self::with(egress, own_port, logs, redactor, Bounds::default(), Arc::new(resolve::System))?;
        Ok((Self { swap, ..gate }, notes))
    }

    fn with(
        egress: Egress,
        own_port: Option<u16>,
        logs: &Path,
        redactor: Arc<Redactor>,
        bounds: Bounds,
        resolver: Arc<dyn Resolve>,
    ) -> io::Result<(Self, mpsc::Receiver<String>)> {
        let (journal, notes) = Journal::open(logs, redactor)?;
        let gate = Self {
            egress,
            own_port,
            swap: None,
            resolver,
            lookups: Arc::new(Semaphore::new(bounds.lookups)),
            streams: Semaphore::new(bounds.streams),
            rate: Rate::default(),
            journal,
            bounds,
        };
        Ok((gate, notes))
    }

    /// Takes a stream that the guest has opened, to its end.
    async fn take(self: Arc<Self>, incoming: Incoming) {
        let turn = self.rate.take(Instant::now(), self.bounds.attempts);
        let refused = match (turn, self.streams.try_acquire()) {
            (Turn::Taken, Ok(_permit)) => return self.converse(incoming.accept()).await,
            (Turn::Taken, Err(_)) => Refused::TooMany(self.bounds.streams),
            (Turn::FirstTooMany | Turn::TooMany, _) => Refused::TooOften(self.bounds.attempts),
        };
        // A flood must not become one of the log.
        if turn != Turn::TooMany {
            self.note("a connection", None, &refused);
        }
        incoming.refuse(ResetCode::Busy, &refused.to_string());
    }

    async fn converse(&self, mut guest: impl AsyncRead + AsyncWrite + Unpin) {
        let request = match read_request(&mut guest).await {
            Ok(request) => request,
            Err(refused) => {
                self.note("a request", None, &refused);
                return refuse(&mut guest, &refused).await;
            }
        };
        let asked = request.to_string();
        let target = match self.egress.judge(&request, self.own_port) {
            Ok(target) => target,
            Err(denied) => {
                let refused = denied.into();
                self.note(&asked, None, &refused);
                return refuse(&mut guest, &refused).await;
            }
        };
        let meter = Meter::new(self.bounds.bytes);
        let (outside, address) = match self.outside(&target, &meter).await {
            Ok(connected) => connected,
            Err(refused) => {
                self.note(&asked, Some(&target), &refused);
                return refuse(&mut guest, &refused).await;
            }
        };
        let shown = target.to_string();
        let shown = matches!(request, Request::Forward(_)).then_some(&*shown);
        let mut attempt = Attempt::connected(&self.journal, (&asked, shown), address, meter);
        if guest.write_all(format!("{}\n", Answer::Open).as_bytes()).await.is_err() {
            return;
        }
        if let Err(refused) = self.carry(&target, guest, outside, &mut attempt).await {
            attempt.refuse(self.explain(&asked, Some(&target), &refused));
        }
    }

    /// Carries one connection to its end, after the guest has shown that it wants the server that it asked for:
    /// nothing of the guest's goes out before.
    async fn carry(
        &self,
        target: &Target,
        mut guest: impl AsyncRead + AsyncWrite + Unpin,
        outside: Outside,
        attempt: &mut Attempt<'_>,
    ) -> Result<(), Refused> {
        match (outside, &self.swap) {
            (Outside::Verified(outside), Some(swap)) => {
                let guest = swap.accept(target, guest).await.map_err(Refused::Inside)?;
                attempt.allow();
                let used = &attempt.secrets;
                attempt.reason = swap.carry(target, guest, *outside, &self.bounds, used).await;
            }
            (Outside::Plain(outside), _) => {
                let first = self.expect_server(&mut guest, target).await?;
                attempt.allow();
                let carried = match &target.host {
                    Host::Name(name) if target.port != self.bounds.tls_port => {
                        carry::carry(Guarded::new(guest, name), outside, &first, &self.bounds).await
                    }
                    _ => carry::carry(guest, outside, &first, &self.bounds).await,
                };
                attempt.reason = carried?;
            }
            (Outside::Verified(_), None) => unreachable!("it was verified in order to put secrets in"),
        }
        Ok(())
    }

    /// Connects to a target; where secrets go to it, only if it is who it should be.
    async fn outside(&self, target: &Target, meter: &Arc<Meter>) -> Result<(Outside, SocketAddr), Refused> {
        let (stream, address) = self.connect(target).await?;
        let stream = Metered::new(stream, Arc::clone(meter));
        let Some(swap) = self.swap.as_ref().filter(|swap| swap.concerns(target)) else {
            return Ok((Outside::Plain(stream), address));
        };
        let verified = swap.verify(target, stream).await;
        let verified = verified.map_err(|source| Refused::Unverified { address, source })?;
        Ok((Outside::Verified(Box::new(verified)), address))
    }

    /// Connects to the first address of a target that may be connected to and answers. What was checked is an
    /// address, and that address is what is connected to: no name is looked up a second time.
    async fn connect(&self, target: &Target) -> Result<(TcpStream, SocketAddr), Refused> {
        let addresses = resolve::resolve(&self.resolver, &self.lookups, &target.host).await?;
        let (mut last, mut tries): (Option<Refused>, _) = (None, 0);
        for ip in addresses {
            let ip = ip.to_canonical();
            if let Err(denied) = self.egress.admit(target, ip) {
                last.get_or_insert(denied.into());
                continue;
            }
            if tries == CONNECT_TRIES {
                break;
            }
            tries += 1;
            let address = SocketAddr::new(ip, target.port);
            let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
            match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    // Small messages would wait for answers to earlier ones.
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, address));
                }
                Err(source) => last = Some(Refused::Unreachable { address, source }),
            }
        }
        // There was an address, and each has left its reason.
        Err(last.unwrap_or(Refused::Resolve(ResolveError::None)))
    }

    /// On TLS's own port, has the guest name the server that it asked for before a byte goes out; gives back
    /// what was read for that. An address has no name to compare, and was allowed as itself.
    async fn expect_server(
        &self,
        guest: &mut (impl AsyncRead + Unpin),
        target: &Target,
    ) -> Result<Vec<u8>, Refused> {
        match &target.host {
            Host::Name(name) if target.port == self.bounds.tls_port => {
                let (named, first) = hello::read(guest).await?;
                if named == *name { Ok(first) } else { Err(Refused::OtherServer { named }) }
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Writes a refusal down, for people and programs.
    fn note(&self, asked: &str, target: Option<&Target>, refused: &Refused) {
        let (reason, shown) = (self.explain(asked, target, refused), target.map(Target::to_string));
        self.journal.write(&Line {
            time: Timestamp::now(),
            request: asked,
            // Of a forward; another request names its target itself.
            target: shown.as_deref().filter(|target| !asked.ends_with(target)),
            verdict: refused.verdict(),
            address: None,
            reason: Some(&reason),
            secrets: Vec::new(),
            sent: None,
            received: None,
        });
    }

    /// Writes a refusal down for people; gives back its reason.
    fn explain(&self, asked: &str, target: Option<&Target>, refused: &Refused) -> String {
        let (reason, target) = (chain(refused), target.map(Target::to_string));
        let target = target.filter(|target| !asked.ends_with(target));
        let shown = target.map_or_else(|| asked.to_owned(), |target| format!("{asked} ({target})"));
        self.journal.explain(&shown, &reason);
        reason
    }
}

/// Reads the request's line and not one byte more: what follows is the connection's.
async fn read_request(guest: &mut (impl AsyncRead + Unpin)) -> Result<Request, Refused> {
    let reading = async {
        let mut line = Vec::with_capacity(REQUEST_BYTES);
        loop {
            match guest.read_u8().await {
                Ok(b'\n') => break,
                Ok(_) if line.len() + 1 >= REQUEST_BYTES => return Err(Refused::Unreadable),
                Ok(byte) => line.push(byte),
                Err(_) => return Err(Refused::Ended),
            }
        }
        let line = std::str::from_utf8(&line).map_err(|_| Refused::Unreadable)?;
        Ok(Request::parse(line)?)
    };
    timeout(HANDSHAKE_TIMEOUT, reading).await.unwrap_or(Err(Refused::Slow))
}

async fn refuse(guest: &mut (impl AsyncWrite + Unpin), refused: &Refused) {
    let answer = Answer::refused(refused.code(), &chain(refused));
    // A guest that has gone needs no answer.
    let _ = guest.write_all(format!("{answer}\n").as_bytes()).await;
    let _ = guest.shutdown().await;
}
