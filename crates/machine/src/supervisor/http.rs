//! A server that is reached by HTTP, spoken with as if it had a stdin and a stdout.
//!
//! ```text
//! who speaks ══ DuplexStream ── bridge ══ a stream to port 5255 for each request that is open ── server
//! ```
//!
//! The bridge lives here, so a machine may be suspended between two requests and nobody notices: what was open
//! to the server then, the bridge opens again. A process of the server serves one conversation; a client that
//! comes after another gets a new one.

use super::{
    ending::{Ending, chain},
    health::is_full,
    shared::{EXIT_NEWS, Link, Shared, Talk},
};
use crate::{
    control::{Control, ControlError},
    log,
    spec::{Conversation, Workload},
};
use casemate_link::{ConnectError, Stream};
use casemate_mcp::http::{DEFAULT_PATH, End, Endpoint, InvalidPath, Lost, Purpose, Reach, bridge};
use casemate_proto::{
    control::{ReplyError, Request, Started, Transport},
    limits::{CONTROL_TIMEOUT, STOP_GRACE},
    port,
};
use std::{
    cell::{Cell, RefCell},
    io,
    path::Path,
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{DuplexStream, duplex},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// What waits in the pipe in each direction.
const PIPE_BYTES: usize = 64 << 10;

/// How long a busy guest may take to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a server said last may still be on its way when it is seen to have ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often it is looked whether a suspended machine goes on, for what is no reason to wake it.
const AWAKE_POLL: Duration = Duration::from_millis(250);

/// Between the agent's patience and this side's.
const MARGIN: Duration = Duration::from_millis(500);

/// How long a server that ended takes to start anew.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of the server's log is shown with an error.
const TAIL_BYTES: usize = 1500;

/// Signals, in the order in which a server is told to end.
const SIGNALS: [i32; 2] = [15, 9];

/// A server that listens.
#[derive(Debug)]
pub(super) struct Http {
    endpoint: Endpoint,
    /// Leads the conversation that there is, or that was last.
    leading: RefCell<Option<JoinHandle<()>>>,
    /// The process has had a client.
    served: Cell<bool>,
}

impl Http {
    /// The server of a machine, if it is reached in this way.
    pub(super) fn of(workload: Option<&Workload>) -> Result<Option<Self>, InvalidPath> {
        let Some(workload) = workload else { return Ok(None) };
        let Transport::Http { port } = workload.transport else { return Ok(None) };
        let path = workload.http_path.as_deref().unwrap_or(DEFAULT_PATH);
        Ok(Some(Self::at(Endpoint::new(port, path)?)))
    }
}

impl Http {
    /// A server that nobody has spoken with.
    fn at(endpoint: Endpoint) -> Self {
        Self { endpoint, leading: RefCell::default(), served: Cell::new(false) }
    }
}

/// Has the server started, and waits until it listens.
pub(super) async fn listening(control: &mut Control, deadline: Instant, logs: &Path) -> Result<(), Ending> {
    let patience = deadline.saturating_duration_since(Instant::now()).saturating_sub(2 * MARGIN);
    match control.request::<serde_json::Value>("listen", listen(patience), patience + MARGIN).await {
        Ok(_) => Ok(()),
        Err(ControlError::Refused { source: ReplyError::Failed(failure), .. }) => {
            let tail = log::tail(&logs.join("server.log"), TAIL_BYTES);
            Err(Ending::Deaf { reason: failure.message, tail })
        }
        Err(error) => Err(error.into()),
    }
}

fn listen(patience: Duration) -> Request {
    Request::Listen { patience_ms: patience.as_millis() as u64 }
}

/// A stream to the server, whatever way it is reached. Nobody else may speak with it meanwhile.
pub(super) async fn talk(shared: &Rc<Shared>) -> Result<Talk, ControlError> {
    let Some(http) = &shared.http else { return shared.converse().await };
    let previous = http.leading.take();
    if let Some(previous) = previous {
        previous.abort();
        // Cancelled, which was the purpose.
        let _ = previous.await;
    }
    // It stays so where no other process begins: the next client is not to get this one either.
    if http.served.replace(true) {
        start_anew(shared).await?;
    }
    let (near, far) = duplex(PIPE_BYTES);
    let leading = tokio::task::spawn_local(lead(Rc::clone(shared), http.endpoint.clone(), far));
    *http.leading.borrow_mut() = Some(leading);
    Ok(Box::new(near))
}

/// Leads one conversation to its end.
async fn lead(shared: Rc<Shared>, endpoint: Endpoint, far: DuplexStream) {
    let mut exits = shared.server_exit.subscribe();
    let over = async {
        // The sender is in `shared`.
        let _ = exits.wait_for(Option::is_some).await.map(drop);
        sleep(LAST_WORDS).await;
    };
    let ended = tokio::select! {
        ended = bridge(Inside(Rc::clone(&shared)), endpoint, far) => Some(ended),
        () = over => None,
    };
    if let Some(End::Lost(lost)) = ended
        && !matches!(lost, Lost::Over)
    {
        let reason = chain(&lost);
        shared.note(&format!("conversation ended: {reason}"));
        // Before whoever speaks sees the end, and looks for a reason.
        shared.broken.send_replace(Some(reason));
    }
    if shared.recorder.get().conversation == Some(Conversation::Client) {
        // A machine that is ending ends its server itself; otherwise the next client tries again.
        let _ = end_server(&shared).await;
    }
}

/// Ends the server, as the end of its input ends one that has one. An error says that it may run on.
async fn end_server(shared: &Shared) -> Result<(), ControlError> {
    let mut exits = shared.server_exit.subscribe();
    for signal in SIGNALS {
        if exits.borrow_and_update().is_some() {
            return Ok(());
        }
        let told =
            shared.ask::<serde_json::Value>("signal", Request::Signal { signal }, CONTROL_TIMEOUT).await;
        // One that has just ended cannot be told, and the news of its end are on their way.
        let patience = if told.is_ok() { STOP_GRACE } else { EXIT_NEWS };
        if timeout(patience, exits.wait_for(Option::is_some)).await.is_ok() {
            return Ok(());
        }
        told?;
    }
    Err(ControlError::Unended)
}

/// Gives the next client a server of its own.
async fn start_anew(shared: &Shared) -> Result<(), ControlError> {
    end_server(shared).await?;
    let _: Started = shared.ask("start", Request::Start, CONTROL_TIMEOUT).await?;
    let mut exits = shared.server_exit.subscribe();
    // What is told of the one before is not to be taken for the end of this one.
    let _ = timeout(EXIT_NEWS, exits.wait_for(Option::is_none)).await;
    let _: serde_json::Value =
        shared.ask("listen", listen(RESTART_TIMEOUT), RESTART_TIMEOUT + MARGIN).await?;
    Ok(())
}

/// The way to the server's port.
struct Inside(Rc<Shared>);

/// Keeps the machine from being suspended, and is no use of it: what uses it is counted by who speaks.
struct Unnoticed(Rc<Shared>);

impl Drop for Unnoticed {
    fn drop(&mut self) {
        self.0.usage.end_unnoticed();
    }
}

impl Reach for Inside {
    type Stream = Stream;
    type Busy = Unnoticed;

    async fn connect(&self, purpose: Purpose) -> io::Result<Stream> {
        let until = Instant::now() + CONNECT_TIMEOUT;
        loop {
            let link = match purpose {
                Purpose::Message => self.0.link().await.map_err(|error| io::Error::other(chain(&error)))?,
                Purpose::Listen => self.awake().await,
            };
            match link.connector.connect(port::INGRESS).await {
                Ok(stream) => return Ok(stream),
                Err(ConnectError::TimedOut { .. } | ConnectError::Resynced { .. })
                    if Instant::now() < until => {}
                Err(error) if is_full(&error) => {
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, chain(&error)));
                }
                Err(ConnectError::Refused { reason, .. }) => return Err(io::Error::other(reason)),
                Err(error) => return Err(io::Error::other(chain(&error))),
            }
        }
    }

    fn busy(&self) -> Unnoticed {
        self.0.usage.begin();
        Unnoticed(Rc::clone(&self.0))
    }

    async fn is_over(&self) -> bool {
        self.0.exit_news().await.is_some()
    }

    fn note(&self, sentence: &str) {
        self.0.note(sentence);
    }
}

impl Inside {
    /// Waits for a machine that is suspended, and does not wake it.
    async fn awake(&self) -> Link {
        loop {
            if let Some(link) = self.0.link.borrow().clone() {
                return link;
            }
            sleep(AWAKE_POLL).await;
        }
    }
}

#[cfg(test)]
mod tests;
