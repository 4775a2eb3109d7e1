//! A guest of our own on each kind of link: no supervisor between the test and the agent.

use super::{boot, boot::Process, control::Control};
use crate::home::Home;
use casemate_link::{ConnectError, Connector, MuxHandle, Stream, mux, port_socket};
use casemate_proto::{
    control::{Configure, Limits, Pong, Request, Root, Started, Transport},
    mux::ResetCode,
    port,
};
use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

/// Beyond what anything takes on a busy host; what takes this long never ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at something that is to happen.
const PAUSE: Duration = Duration::from_millis(20);

/// What the last host was sending when it died: many frames of any kind of link.
const UNFINISHED_BYTES: usize = 300_000;

/// What a link is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// QEMU's virtio-serial port with the multiplexer.
    Serial,
    /// AF_VSOCK inside, `vhost-device-vsock` outside, with the multiplexer.
    Vsock,
    /// Unix sockets of an agent that is a process of this host.
    Sockets,
}

/// An agent whose server gives back every byte, and the way to it.
pub struct Guest {
    kind: Kind,
    connector: Connector,
    /// The task that moves the multiplexed link's bytes.
    driver: Option<JoinHandle<()>>,
    hosts: u8,
    knocks: u32,
    // Dropped in this order: processes, then what they have open.
    _processes: Vec<Process>,
    home: Home,
}

impl Guest {
    pub async fn start(kind: Kind) -> Self {
        let home = Home::new();
        let folder = home.path().join("link");
        fs::create_dir(&folder).unwrap();
        let processes = match kind {
            Kind::Sockets => vec![boot::agent(&home, &folder)],
            Kind::Vsock => {
                let device = boot::vsock_device(&folder);
                soon("the device's socket", exists(&folder.join("device.sock"))).await;
                vec![boot::probe(&home, &folder, &boot::VSOCK), device]
            }
            Kind::Serial => vec![boot::probe(&home, &folder, &boot::SERIAL)],
        };
        // Replaced by the first attachment, where the link is attached to.
        let connector = Connector::Unix { dir: folder };
        let mut guest =
            Self { kind, connector, driver: None, hosts: 0, knocks: 0, _processes: processes, home };
        if kind != Kind::Sockets {
            guest.attach().await;
        }
        let mut control = guest.control().await;
        let _: serde_json::Value = control.done(Request::Configure(Box::new(guest.configuration()))).await;
        let _: Started = control.done(Request::Start).await;
        guest
    }

    /// The way of an ordinary client.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// A control stream that said hello, however long the guest takes to boot.
    pub async fn control(&self) -> Control {
        let open = async {
            loop {
                match self.connector.connect(port::CONTROL).await {
                    Ok(stream) => {
                        if let Some(control) = Control::greet(stream, &self.epoch()).await {
                            return control;
                        }
                    }
                    // The agent does not listen yet.
                    Err(ConnectError::Refused { .. } | ConnectError::TimedOut { .. }) => {}
                    Err(error) => panic!("{error}: {error:?}"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        soon("a control stream", open).await
    }

    /// A conversation, once the one before it is over. Its server has answered, and with nothing that anybody
    /// else had asked.
    pub async fn converse(&mut self) -> Stream {
        let open = async {
            loop {
                match self.connector.connect(port::CONVERSATION).await {
                    Ok(mut stream) => {
                        self.knocks += 1;
                        if knock(&mut stream, self.knocks).await {
                            return stream;
                        }
                    }
                    Err(ConnectError::Refused { code: ResetCode::Busy, .. }) => {}
                    Err(error) => panic!("{error}: {error:?}"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        soon("a conversation", open).await
    }

    /// Asks the agent whether it is well.
    pub async fn ping(&self) -> Pong {
        self.control().await.done(Request::Ping).await
    }

    /// A host that holds a conversation is killed while it sends a message and while it is answered.
    pub async fn kill_the_host(&mut self) {
        match self.kind {
            Kind::Serial | Kind::Vsock => {
                let mut host = self.attached_host().await;
                host.kill();
                self.attach().await;
            }
            Kind::Sockets => {
                let stream = soon("a conversation", self.connected_host()).await;
                let mut host = Process::holding(stream.into_std().unwrap().into());
                host.kill();
            }
        }
    }

    /// Connects to the machine's device as a new host. The one before it is gone.
    async fn attach(&mut self) {
        let device = soon("the device", self.device()).await;
        let (handle, driver) = mux::attach_host(device, self.next_nonce());
        self.driver = Some(tokio::spawn(async move { drop(driver.await) }));
        soon("the synchronisation", handle.synced()).await.unwrap();
        self.connector = Connector::Mux(handle);
    }

    /// The host's end of the byte stream of a multiplexed link.
    async fn device(&self) -> UnixStream {
        match self.kind {
            Kind::Serial => connect(&self.link().join("port.sock")).await,
            Kind::Vsock => {
                // The guest calls; a host that is new takes the place of the one before it.
                let socket = self.link().join(format!("vsock_{}", port::LINK));
                let _ = fs::remove_file(&socket);
                UnixListener::bind(&socket).unwrap().accept().await.unwrap().0
            }
            Kind::Sockets => unreachable!("there is no device"),
        }
    }

    /// A process that has the link's device, in the midst of a frame. The host before it is gone.
    async fn attached_host(&mut self) -> Process {
        self.let_go().await;
        let device = soon("the device", self.device()).await.into_std().unwrap();
        let host = Process::holding(device.try_clone().unwrap().into());

        // What the process would do is done here, with its connection, up to the byte at which it dies.
        let (near, far) = tokio::io::duplex(64 << 10);
        let (handle, driver) = mux::attach_host(near, self.next_nonce());
        let driver = tokio::spawn(driver);
        let carrying = tokio::spawn(carry_half(far, UnixStream::from_std(device).unwrap()));
        let stream = soon("a conversation", conversation(&handle)).await;
        let (mut answers, mut requests) = tokio::io::split(stream);
        let sending = tokio::spawn(async move {
            let message = vec![b'o'; 2 * UNFINISHED_BYTES];
            requests.write_all(&message).await
        });
        soon("half a message", carrying).await.unwrap();
        soon("the end of the link", driver).await.unwrap();
        let sent = soon("the end of the message", sending).await.unwrap();
        assert!(sent.is_err(), "the message got through although the link was cut");
        let mut echo = Vec::new();
        let end = soon("the end of the answer", answers.read_to_end(&mut echo)).await;
        assert!(end.is_err(), "a cut link is no orderly end");
        assert!(echo.iter().all(|&byte| byte == b'o'));
        host
    }

    /// Ends this host's attachment and waits until the device is free.
    async fn let_go(&mut self) {
        let Connector::Mux(handle) = &self.connector else { unreachable!("nothing is attached") };
        handle.give_up();
        if let Some(driver) = self.driver.take() {
            soon("the end of the attachment", driver).await.unwrap();
        }
    }

    /// A host of Unix sockets, in the midst of a message.
    async fn connected_host(&mut self) -> UnixStream {
        let socket = port_socket(&self.link(), port::CONVERSATION);
        loop {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            self.knocks += 1;
            if knock(&mut stream, self.knocks).await {
                let message = vec![b'o'; UNFINISHED_BYTES];
                stream.write_all(&message).await.unwrap();
                return stream;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A new host knows neither the nonce nor the epoch of the last one.
    fn next_nonce(&mut self) -> [u8; 16] {
        self.hosts += 1;
        [self.hosts; 16]
    }

    fn epoch(&self) -> String {
        format!("host {}", self.hosts)
    }

    fn link(&self) -> PathBuf {
        self.home.path().join("link")
    }

    fn configuration(&self) -> Configure {
        let program = match self.kind {
            Kind::Sockets => self.link().join("probe").to_string_lossy().into_owned(),
            Kind::Serial | Kind::Vsock => "/usr/bin/casemate-probe".to_owned(),
        };
        Configure {
            mounts: Vec::new(),
            hold_volumes: false,
            hostname: "links".to_owned(),
            command: [&program, "--misbehave", "mirror"].map(str::to_owned).into(),
            env: Default::default(),
            cwd: "/".to_owned(),
            root: match self.kind {
                Kind::Sockets => Root::Ready,
                Kind::Serial | Kind::Vsock => Root::Device { device: "/dev/vda".to_owned(), overlay: None },
            },
            transport: Transport::Stdio,
            // On the host's kernel all processes of the server's user count.
            limits: Limits { processes: 10_000, ..Limits::default() },
            clock_unix_ns: None,
            entropy: None,
            reseed: None,
            egress: None,
            trust: None,
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if thread::panicking() {
            // A process of this host has none.
            let console = fs::read(self.link().join("console")).unwrap_or_default();
            println!("console: {}", String::from_utf8_lossy(&console));
        }
    }
}

/// Awaits what has to happen.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing happened for {PATIENCE:?}"),
    }
}

async fn exists(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(PAUSE).await;
    }
}

async fn connect(path: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn conversation(handle: &MuxHandle) -> Stream {
    loop {
        match handle.open(port::CONVERSATION).await {
            Ok(stream) => return stream,
            Err(ConnectError::Refused { code: ResetCode::Busy, .. }) => tokio::time::sleep(PAUSE).await,
            Err(error) => panic!("{error}: {error:?}"),
        }
    }
}

/// Whether a server is there and answers. A refusing native link has only its end to say so.
async fn knock(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), number: u32) -> bool {
    let sent = format!("knock {number}\n");
    let mut answer = vec![0; sent.len()];
    let answered = async {
        stream.write_all(sent.as_bytes()).await?;
        stream.read_exact(&mut answer).await
    };
    if answered.await.is_err() {
        return false;
    }
    assert_eq!(String::from_utf8_lossy(&answer), sent, "a conversation began with another's bytes");
    true
}

/// Carries a link's bytes until many have gone out, the last of them within a frame.
async fn carry_half(host: DuplexStream, device: UnixStream) {
    let (mut from_host, mut to_host) = tokio::io::split(host);
    let (mut from_guest, mut to_guest) = device.into_split();
    let out = async {
        let (mut carried, mut buffer) = (0, vec![0; 4096]);
        while carried < UNFINISHED_BYTES {
            let length = from_host.read(&mut buffer).await.unwrap();
            carried += length;
            let mut part = &buffer[..length];
            while carried >= UNFINISHED_BYTES
                && let [rest @ .., 0] = part
            {
                part = rest;
            }
            to_guest.write_all(part).await.unwrap();
        }
    };
    tokio::select! {
        () = out => {}
        back = tokio::io::copy(&mut from_guest, &mut to_host) => panic!("the port's end: {back:?}"),
    }
}
