//! A machine made of the agent alone, and the host's side of its link.

use casemate_link::{Connector, Stream, mux};
use casemate_proto::control::{
    Configure, Envelope, Event, Exec, Exit, Failure, Hello, Limits, Pong, Reply, Request, Root, ServerState,
    Stats, Transport, VERSION, Welcome,
};
use casemate_proto::frame::{FrameBuffer, Kind, encode};
use casemate_proto::port;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

/// Nothing in these tests takes long; what takes this long never ends.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub async fn patiently<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("still waiting after a minute")
}

/// Which link to test over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Sockets,
    Multiplexer,
}

pub struct Machine {
    pub connector: Connector,
    pub agent: Child,
    pub folder: TempDir,
}

impl Machine {
    pub async fn start(over: Over) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Servers run as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-guest"));
        command.stdin(Stdio::null());
        let (connector, agent) = match over {
            Over::Sockets => {
                let links = folder.path().join("links");
                fs::create_dir(&links).unwrap();
                let agent = command.arg("--unix").arg(&links).spawn().unwrap();
                let last = casemate_link::port_socket(&links, port::INGRESS);
                patiently(async {
                    while !last.exists() {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                })
                .await;
                (Connector::Unix { dir: links }, agent)
            }
            Over::Multiplexer => {
                let path = folder.path().join("serial");
                let listener = UnixListener::bind(&path).unwrap();
                let agent = command.arg("--serial").arg(&path).spawn().unwrap();
                let (stream, _) = patiently(listener.accept()).await.unwrap();
                let (handle, driver) = mux::attach_host(stream, [7; 16]);
                tokio::spawn(driver);
                (Connector::Mux(handle), agent)
            }
        };
        Self { connector, agent, folder }
    }

    /// A machine whose server is `command`.
    pub async fn configured(over: Over, command: &[&str]) -> Self {
        let machine = Self::start(over).await;
        machine.control().await.done::<Value>(Request::Configure(Box::new(configuration(command)))).await;
        machine
    }

    /// A machine whose server is a line of shell.
    pub async fn shell(script: &str) -> Self {
        Self::configured(Over::Sockets, &["sh", "-c", script]).await
    }

    pub async fn connect(&self, port: u32) -> Stream {
        self.connector.connect(port).await.unwrap()
    }

    pub async fn converse(&self) -> BufReader<Stream> {
        BufReader::new(self.connect(port::CONVERSATION).await)
    }

    /// A control stream that said hello.
    pub async fn control(&self) -> Control {
        let mut control = self.silent_control().await;
        let welcome: Welcome =
            control.done(Request::Hello(Hello { protocol: VERSION, epoch: "one".into() })).await;
        assert_eq!(welcome.protocol, VERSION);
        control
    }

    pub async fn silent_control(&self) -> Control {
        Control { stream: BufReader::new(self.connect(port::CONTROL).await), next_id: 0 }
    }

    pub async fn state(&self) -> ServerState {
        self.control().await.done::<Pong>(Request::Ping).await.server
    }

    pub async fn stats(&self) -> Stats {
        self.control().await.done(Request::Stats).await
    }

    /// Waits until the server is what `wanted` says.
    pub async fn until(&self, wanted: impl Fn(&ServerState) -> bool) -> ServerState {
        patiently(async {
            loop {
                let state = self.state().await;
                if wanted(&state) {
                    return state;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// Runs a program beside the server to its end.
    pub async fn exec(&self, argv: &[&str]) -> Output {
        self.exec_with(argv, b"").await
    }

    pub async fn exec_with(&self, argv: &[&str], stdin: &[u8]) -> Output {
        self.run(program(argv), stdin).await
    }

    pub async fn run(&self, exec: Exec, stdin: &[u8]) -> Output {
        let mut control = self.control().await;
        control.done::<Value>(Request::Exec(exec)).await;
        let mut wire = Vec::new();
        if !stdin.is_empty() {
            encode(Kind::Stdin, stdin, &mut wire);
        }
        encode(Kind::Stdin, b"", &mut wire);
        let (mut input, mut output) = tokio::io::split(control.stream);
        let (output, _) = tokio::join!(Output::read(&mut input), output.write_all(&wire));
        output
    }

    /// What a line of shell prints inside.
    pub async fn prints(&self, script: &str) -> String {
        let output = self.exec(&["sh", "-c", script]).await;
        assert_eq!(output.exit.code, Some(0), "{script}: {}", output.exit.stderr_tail);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let pid = self.agent.id().to_string();
        // It ends its server; it may be gone already.
        let _ = Command::new("kill").args(["-TERM", &pid]).stderr(Stdio::null()).status();
        for _ in 0..1000 {
            if !matches!(self.agent.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

pub fn configuration(command: &[&str]) -> Configure {
    Configure {
        mounts: Vec::new(),
        hold_volumes: false,
        hostname: "machine".into(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        env: [("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"), ("GREETING", "hello")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        cwd: "/".into(),
        root: Root::Ready,
        transport: Transport::Stdio,
        // The whole host may have processes of this user.
        limits: Limits { processes: 10_000, ..Limits::default() },
        clock_unix_ns: None,
        entropy: None,
        reseed: None,
        egress: None,
        trust: None,
    }
}

pub fn program(argv: &[&str]) -> Exec {
    let argv = argv.iter().map(|&word| word.to_owned()).collect();
    Exec { argv, env: Default::default(), cwd: None }
}

/// The host's end of a control stream.
pub struct Control {
    pub stream: BufReader<Stream>,
    next_id: u64,
}

impl Control {
    pub async fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, Failure> {
        self.ask_within(request, PATIENCE).await
    }

    pub async fn ask_within<T: DeserializeOwned>(
        &mut self,
        request: Request,
        deadline: Duration,
    ) -> Result<T, Failure> {
        let id = self.next_id;
        self.next_id += 1;
        let mut envelope = Envelope::new(id, request);
        envelope.deadline_ms = Some(deadline.as_millis() as u64);
        self.send(&serde_json::to_string(&envelope).unwrap()).await;
        match self.reply().await.expect("the stream ended instead of an answer").into_result(id) {
            Ok(result) => Ok(result),
            Err(casemate_proto::control::ReplyError::Failed(failure)) => Err(failure),
            Err(error) => panic!("{error}"),
        }
    }

    /// Asks for what has to succeed.
    pub async fn done<T: DeserializeOwned>(&mut self, request: Request) -> T {
        self.ask(request).await.unwrap()
    }

    pub async fn send(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// The next answer; `None` at the end of the stream.
    pub async fn reply(&mut self) -> Option<Reply> {
        let mut line = String::new();
        match patiently(self.stream.read_line(&mut line)).await.unwrap() {
            0 => None,
            _ => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    /// Follows the server.
    pub async fn watch(mut self) -> Frames {
        self.done::<Value>(Request::Watch).await;
        Frames { stream: self.stream, buffer: FrameBuffer::default() }
    }
}

/// Frames of the guest.
pub struct Frames {
    pub stream: BufReader<Stream>,
    buffer: FrameBuffer,
}

impl Frames {
    pub async fn next(&mut self) -> Option<(Kind, Vec<u8>)> {
        next_frame(&mut self.stream, &mut self.buffer).await
    }

    pub async fn next_event(&mut self) -> Event {
        loop {
            let (kind, payload) = self.next().await.unwrap();
            if kind == Kind::Event {
                return serde_json::from_slice(&payload).unwrap();
            }
        }
    }
}

async fn next_frame(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    buffer: &mut FrameBuffer,
) -> Option<(Kind, Vec<u8>)> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        if let Some((kind, payload)) = buffer.next_frame().unwrap() {
            return Some((kind, payload.to_vec()));
        }
        match patiently(stream.read(&mut chunk)).await.unwrap() {
            0 => return None,
            length => buffer.push(&chunk[..length]),
        }
    }
}

/// What a program beside the server left.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Exit,
    /// The kinds of the empty frames, in their order.
    pub closed: Vec<Kind>,
}

impl Output {
    async fn read(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Self {
        let mut buffer = FrameBuffer::default();
        let (mut stdout, mut stderr, mut closed) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let (kind, payload) =
                next_frame(stream, &mut buffer).await.expect("the stream ended without an exit");
            match kind {
                Kind::Stdout | Kind::Stderr if payload.is_empty() => closed.push(kind),
                Kind::Stdout => stdout.extend(payload),
                Kind::Stderr => stderr.extend(payload),
                Kind::Event => {
                    let Event::Exited(exit) = serde_json::from_slice(&payload).unwrap() else {
                        panic!("no exit")
                    };
                    assert!(next_frame(stream, &mut buffer).await.is_none(), "more after the exit");
                    return Self { stdout, stderr, exit, closed };
                }
                Kind::Stdin => panic!("stdin from the guest"),
            }
        }
    }
}

/// The next line of a conversation; empty at its end.
pub async fn line(stream: &mut BufReader<Stream>) -> String {
    let mut line = String::new();
    patiently(stream.read_line(&mut line)).await.unwrap();
    line.trim_end().to_owned()
}

pub fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}

/// Waits until a process is gone.
pub async fn dead(pid: u32) {
    patiently(async {
        while alive(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

pub fn root() -> bool {
    rustix::process::geteuid().is_root()
}
