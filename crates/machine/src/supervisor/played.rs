//! A machine whose agent and VMM are played by a test.

use super::{
    http::Http,
    shared::{Link, Recorder, Shared, Use, Wish},
};
use crate::{
    backend::{BackendError, Boxed, Capabilities, GuestMemory, Hosting, Instance},
    egress::WayOut,
    home::Home,
    log::CappedLog,
    record::Record,
    secret::{Kept, Redacted, Secrets},
    spec::{BackendKind, Spec},
};
use casemate_link::{
    Connector, Stream,
    mux::{self, MuxHandle},
    port_socket,
};
use casemate_proto::{
    control::{Envelope, Reply, VERSION, Welcome},
    ids::Cid,
    limits::STREAMS,
    mux::ResetCode,
};
use std::{
    cell::{Cell, RefCell},
    fs,
    future::{Future, pending},
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
    task::{LocalSet, yield_now},
};

/// How often other tasks are let go on, until they are taken to rest.
const TURNS: usize = 50;

const CAPABLE: Capabilities = Capabilities {
    snapshot: true,
    pause: true,
    resume: true,
    kill: true,
    cut_link: true,
    set_clock: true,
    writable_overlay: false,
    conversations: false,
};

/// A machine whose agent is one Unix socket for each port.
pub(super) struct Played {
    dir: tempfile::TempDir,
    pub(super) spec: Spec,
    pub(super) shared: Rc<Shared>,
    pub(super) wished: mpsc::Receiver<Wish>,
}

impl Played {
    /// A machine that is never suspended.
    pub(super) fn new() -> Self {
        Self::idle_for(None)
    }

    /// A machine that is suspended after so many idle milliseconds.
    pub(super) fn idle_for(idle_ms: Option<u64>) -> Self {
        Self::with(idle_ms, None)
    }

    /// A machine whose server is reached by HTTP.
    pub(super) fn listening(http: Http) -> Self {
        Self::with(None, Some(http))
    }

    fn with(idle_ms: Option<u64>, http: Option<Http>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        let nowhere = PathBuf::new;
        let mut spec = Spec::bare("m".parse().unwrap(), BackendKind::Qemu, nowhere(), nowhere());
        spec.idle_ms = idle_ms;
        let record = Record::planned("1".to_owned(), Cid(100), &spec);
        fs::create_dir_all(home.machine(&record.id).join("logs")).unwrap();
        let (wishes, wished) = mpsc::channel(16);
        let shared = Shared {
            link: RefCell::new(Some(link(dir.path(), "one"))),
            server_log: RefCell::new(Redacted::new(
                CappedLog::open(&dir.path().join("log")).unwrap(),
                Arc::default(),
            )),
            recorder: Rc::new(Recorder::new(home, record, Kept::new(Secrets::default()).unwrap())),
            usage: Use::default(),
            may_be_suspended: idle_ms.is_some(),
            paused: Cell::new(false),
            carrier: RefCell::default(),
            http,
            capabilities: CAPABLE,
            wishes,
            conversation: RefCell::default(),
            holder: RefCell::default(),
            server_exit: watch::Sender::new(None),
            broken: watch::Sender::new(None),
            garbage_lines: Cell::new(0),
        };
        Self { dir, spec, shared: Rc::new(shared), wished }
    }

    pub(super) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(port_socket(self.dir.path(), port)).unwrap()
    }

    /// The way to the agent in another life.
    pub(super) fn link(&self, epoch: &str) -> Link {
        link(self.dir.path(), epoch)
    }

    /// Makes the way to the agent a link that carries as many streams as it can, for as long as they are held.
    pub(super) async fn fill_link(&self) -> (MuxHandle, Vec<Stream>) {
        let guest = self.multiplex();
        let mut streams = Vec::new();
        let connector = self.shared.link.borrow().clone().unwrap().connector;
        for _ in 0..STREAMS {
            let accepted = async { guest.accept().await.unwrap().accept() };
            let (near, far) = tokio::join!(connector.connect(1), accepted);
            streams.extend([near.unwrap(), far]);
        }
        (guest, streams)
    }

    /// Makes the way to the agent a link whose other side has no room for a stream.
    pub(super) fn refuse_streams(&self) {
        let guest = self.multiplex();
        tokio::spawn(async move {
            while let Ok(incoming) = guest.accept().await {
                incoming.refuse(ResetCode::Busy, "too many streams");
            }
        });
    }

    fn multiplex(&self) -> MuxHandle {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (host, driver) = mux::attach_host(near, [1; 16]);
        tokio::spawn(driver);
        let (guest, driver) = mux::attach_guest(far);
        tokio::spawn(driver);
        let epoch = "one".to_owned();
        *self.shared.link.borrow_mut() = Some(Link { connector: Connector::Mux(host), epoch });
        guest
    }

    pub(super) fn hosting(&self) -> Hosting {
        let record = self.shared.recorder.get();
        let home = self.shared.recorder.home.clone();
        Hosting { dir: home.machine(&record.id), home, record, disks: Rc::default(), way_out: WayOut::None }
    }

    /// What was noted in the server's log.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

fn link(dir: &Path, epoch: &str) -> Link {
    Link { connector: Connector::Unix { dir: dir.to_owned() }, epoch: epoch.to_owned() }
}

pub(super) fn within_a_minute<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(60), what).await };
    LocalSet::new().block_on(&runtime, bounded).expect("still waiting after a minute")
}

/// Lets other tasks go on until they wait for something.
pub(super) async fn at_rest() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}

/// Plays the agent up to the first request of the next control stream.
pub(super) async fn asked(agent: &UnixListener) -> (BufReader<UnixStream>, Envelope) {
    let mut stream = BufReader::new(agent.accept().await.unwrap().0);
    let hello = read_request(&mut stream).await;
    let welcome = Welcome { protocol: VERSION, agent: "test".to_owned() };
    reply(&mut stream, &Reply::done(hello.id, &welcome)).await;
    let request = read_request(&mut stream).await;
    (stream, request)
}

async fn read_request(stream: &mut BufReader<UnixStream>) -> Envelope {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    serde_json::from_str(&line).unwrap()
}

pub(super) async fn reply(stream: &mut BufReader<UnixStream>, reply: &Reply) {
    stream.write_all(format!("{}\n", serde_json::to_string(reply).unwrap()).as_bytes()).await.unwrap();
}

/// What a VMM is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Pause,
    Resume,
    Save,
}

/// A VMM that asks the test whether it does as it is told.
pub(super) struct Vmm {
    orders: mpsc::Sender<(Order, oneshot::Sender<bool>)>,
    memory: GuestMemory,
}

/// What a VMM was told; it waits to hear whether it succeeds.
pub(super) struct Orders(mpsc::Receiver<(Order, oneshot::Sender<bool>)>);

impl Vmm {
    pub(super) fn new() -> (Self, Orders) {
        let (orders, ordered) = mpsc::channel(1);
        let memory = GuestMemory::shared(tempfile::tempfile().unwrap(), 0);
        (Self { orders, memory }, Orders(ordered))
    }

    async fn told(&self, order: Order) -> Result<(), BackendError> {
        let (done, told) = oneshot::channel();
        self.orders.send((order, done)).await.unwrap();
        match told.await {
            Ok(true) => Ok(()),
            _ => Err(BackendError::Incapable { backend: "test", what: "do that" }),
        }
    }
}

impl Orders {
    /// The next order, which is this one.
    pub(super) async fn expect(&mut self, expected: Order) -> oneshot::Sender<bool> {
        let (order, done) = self.0.recv().await.unwrap();
        assert_eq!(order, expected);
        done
    }
}

impl Instance for Vmm {
    fn capabilities(&self) -> Capabilities {
        CAPABLE
    }

    fn pid(&self) -> u32 {
        0
    }

    fn connector(&self) -> Connector {
        Connector::Unix { dir: PathBuf::new() }
    }

    fn exited(&mut self) -> Boxed<'_, io::Result<ExitStatus>> {
        Box::pin(pending())
    }

    fn pause(&mut self) -> Boxed<'_, Result<(), BackendError>> {
        Box::pin(self.told(Order::Pause))
    }

    fn resume(&mut self) -> Boxed<'_, Result<(), BackendError>> {
        Box::pin(self.told(Order::Resume))
    }

    fn save(&mut self) -> Boxed<'_, Result<Vec<u8>, BackendError>> {
        Box::pin(async { self.told(Order::Save).await.map(|()| b"devices".to_vec()) })
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn cut_link(&mut self) {}

    fn kill(&mut self) -> Boxed<'_, ()> {
        Box::pin(async {})
    }
}
