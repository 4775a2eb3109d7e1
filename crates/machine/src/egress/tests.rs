//! The gate with real servers on loopback, reached over a multiplexed link by a guest that does as it likes.

use super::{hello::tests::client_hello, *};
use casemate_link::{Connector, MuxHandle, Stream, mux};
use casemate_proto::limits::{GUEST_STREAMS, STREAMS};
use serde_json::Value;
use std::{
    collections::VecDeque,
    net::{IpAddr, TcpListener},
    sync::Mutex,
};
use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream};

/// Nothing here takes long; what takes this long never ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// A resolver that answers what it was told to, in this order.
#[derive(Debug, Default)]
struct Answers(Mutex<VecDeque<io::Result<Vec<IpAddr>>>>);

impl Resolve for Answers {
    fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        budget::lock(&self.0).pop_front().expect("looked up once more than told")
    }
}

fn resolver(answers: &[&[&str]]) -> Arc<Answers> {
    let parsed = answers.iter().map(|list| Ok(list.iter().map(|text| text.parse().unwrap()).collect()));
    Arc::new(Answers(Mutex::new(parsed.collect())))
}

/// A server that counts nothing and takes nobody unless asked to.
struct Server(TcpListener);

impl Server {
    fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Takes the next connection and echoes what comes.
    fn echo(&self) -> tokio::task::JoinHandle<()> {
        let listener = tokio::net::TcpListener::from_std(self.0.try_clone().unwrap()).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        })
    }

    /// Whether nobody has connected.
    fn is_untouched(&self) -> bool {
        matches!(self.0.accept(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A guest and the gate that it stands before.
struct Machine {
    guest: Connector,
    logs: tempfile::TempDir,
    notes: mpsc::Receiver<String>,
    host: MuxHandle,
}

impl Machine {
    fn new(allow: &[&str], resolver: Arc<Answers>) -> Self {
        Self::bounded(allow, resolver, Bounds::default())
    }

    fn bounded(allow: &[&str], resolver: Arc<Answers>, bounds: Bounds) -> Self {
        let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        let egress = Egress { allow, forward: vec!["7=127.0.0.1:9".parse().unwrap()] };
        let logs = tempfile::tempdir().unwrap();
        let (gate, notes) = Gate::with(egress, None, logs.path(), Arc::default(), bounds, resolver).unwrap();
        let (guest, host) = link();
        tokio::spawn(WayOut::Open(Arc::new(gate)).serve(Listener::mux(host.clone())));
        Self { guest: Connector::Mux(guest), logs, notes, host }
    }

    async fn ask(&self, line: &str) -> (BufReader<Stream>, String) {
        let mut stream = BufReader::new(self.guest.connect(port::EGRESS).await.unwrap());
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_line(&mut answer)).await.unwrap().unwrap();
        (stream, answer.trim_end().to_owned())
    }

    /// What a request that is refused is told.
    async fn refusal(&self, line: &str) -> String {
        let (_, answer) = self.ask(line).await;
        answer.strip_prefix("ERR ").unwrap_or_else(|| panic!("{line}: {answer}")).to_owned()
    }

    fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.logs.path().join(FILE)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn link() -> (MuxHandle, MuxHandle) {
    let (near, far): (DuplexStream, DuplexStream) = tokio::io::duplex(64 << 10);
    let (host, host_driver) = mux::attach_host(near, [7; 16]);
    let (guest, guest_driver) = mux::attach_guest(far);
    tokio::spawn(host_driver);
    tokio::spawn(guest_driver);
    (guest, host)
}

async fn says(stream: &mut BufReader<Stream>, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    timeout(PATIENCE, stream.read_exact(&mut back)).await.unwrap().unwrap();
    back
}

/// What is left of a stream, which ends.
async fn rest(stream: &mut BufReader<Stream>) -> Vec<u8> {
    let mut rest = Vec::new();
    // A stream that is cut ends with an error.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the stream goes on");
    rest
}

#[tokio::test]
async fn the_server_that_is_allowed_is_reached_and_another_is_not() {
    let (allowed, other) = (Server::at("127.0.0.1:0"), Server::at("127.0.0.1:0"));
    let target = format!("127.0.0.1:{}", allowed.port());
    let mut machine = Machine::new(&[&target], resolver(&[]));
    let echo = allowed.echo();
    let (mut stream, answer) = machine.ask(&format!("CONNECT {target}")).await;
    assert_eq!(answer, "OK");
    assert_eq!(says(&mut stream, b"hello").await, b"hello");
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, b"");
    echo.await.unwrap();

    let other_target = format!("127.0.0.1:{}", other.port());
    for line in [format!("CONNECT {other_target}"), format!("CONNECT localhost:{}", other.port())] {
        let refusal = machine.refusal(&line).await;
        assert!(refusal.starts_with("denied it is not on the allow list"), "{refusal}");
    }
    assert!(other.is_untouched());
    let log = machine.log();
    let verdicts: Vec<&str> = log.iter().map(|line| line["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["allowed", "ended", "refused", "refused"], "{log:?}");
    assert_eq!(
        (&log[0]["address"], &log[0]["request"]),
        (&target.clone().into(), &format!("CONNECT {target}").into())
    );
    assert_eq!((&log[1]["sent"], &log[1]["received"]), (&5.into(), &5.into()));
    let note = machine.notes.recv().await.unwrap();
    assert!(note.contains(&format!("--allow {other_target}")), "{note}");
}

#[tokio::test]
async fn a_name_that_is_bound_to_another_address_later_leads_nowhere() {
    let first = Server::at("127.0.0.1:0");
    let second = Server::at(&format!("127.0.0.2:{}", first.port()));
    let name = format!("a.example:{}", first.port());
    let literal = format!("127.0.0.1:{}", first.port());
    // A connection that looked the name up a second time would get the second answer.
    let machine = Machine::new(&[&name, &literal], resolver(&[&["127.0.0.1"], &["127.0.0.2"]]));
    let echo = first.echo();
    let (mut stream, answer) = machine.ask(&format!("CONNECT {name}")).await;
    assert_eq!(answer, "OK");
    assert_eq!(says(&mut stream, b"hello").await, b"hello");
    let refusal = machine.refusal(&format!("CONNECT {name}")).await;
    assert!(refusal.contains("127.0.0.2") && refusal.contains("loopback"), "{refusal}");
    assert!(second.is_untouched());
    drop(stream);
    echo.await.unwrap();
}

#[tokio::test]
async fn of_many_addresses_those_that_may_not_be_reached_are_passed_over() {
    let (server, other) = (Server::at("127.0.0.1:0"), "10.255.255.1");
    let (name, literal) = (format!("a.example:{}", server.port()), format!("127.0.0.1:{}", server.port()));
    let answers: [&[&str]; 4] =
        [&[other, "::ffff:127.0.0.1"], &[], &[other, "fd00::1"], &["169.254.169.254"]];
    let machine = Machine::new(&[&name, &literal], resolver(&answers));
    let echo = server.echo();
    let (mut stream, _) = machine.ask(&format!("CONNECT {name}")).await;
    assert_eq!(says(&mut stream, b"hello").await, b"hello");
    drop(stream);
    echo.await.unwrap();
    let asked = format!("CONNECT {name}");
    assert_eq!(machine.refusal(&asked).await, "unreachable the name has no address");
    assert!(machine.refusal(&asked).await.starts_with("denied it is 10.255.255.1"));
    assert!(machine.refusal(&asked).await.contains("link-local"));
}

#[tokio::test]
async fn a_tls_client_that_wants_another_server_than_it_asked_for_reaches_none() {
    let server = Server::at("127.0.0.1:0");
    let (name, literal) = (format!("a.example:{}", server.port()), format!("127.0.0.1:{}", server.port()));
    let bounds = Bounds { tls_port: server.port(), ..Bounds::default() };
    let machine = Machine::bounded(&[&name, &literal], resolver(&[&["127.0.0.1"][..]; 4]), bounds);
    for first in
        [client_hello("b.example"), client_hello("a.example.b.example"), b"GET / HTTP/1.1\r\n".to_vec()]
    {
        let (mut stream, answer) = machine.ask(&format!("CONNECT {name}")).await;
        assert_eq!(answer, "OK");
        stream.write_all(&first).await.unwrap();
        assert_eq!(rest(&mut stream).await, b"");
        let (mut outside, _) = server.0.accept().unwrap();
        outside.set_nonblocking(false).unwrap();
        assert_eq!(io::Read::read(&mut outside, &mut [0; 8]).unwrap(), 0, "something went out");
    }
    let log = machine.log();
    assert!(log.iter().all(|line| line["verdict"] == "refused"), "{log:?}");
    assert!(log[0]["reason"].as_str().unwrap().contains("b.example"), "{log:?}");

    let echo = server.echo();
    let (mut stream, _) = machine.ask(&format!("CONNECT {name}")).await;
    let hello = client_hello("a.example");
    assert_eq!(says(&mut stream, &hello).await, hello);
    drop(stream);
    echo.await.unwrap();
}

#[tokio::test]
async fn tls_for_another_server_on_any_other_port_is_refused_and_said_so() {
    let server = Server::at("127.0.0.1:0");
    let name = format!("a.example:{}", server.port());
    let literal = format!("127.0.0.1:{}", server.port());
    let mut machine = Machine::new(&[&name, &literal], resolver(&[&["127.0.0.1"][..]]));
    let (mut stream, _) = machine.ask(&format!("CONNECT {name}")).await;
    stream.write_all(&client_hello("b.example")).await.unwrap();
    assert!(matches!(stream.read(&mut [0; 8]).await, Ok(0) | Err(_)));
    assert!(machine.notes.recv().await.unwrap().contains("its TLS handshake is for b.example"));
    let verdicts: Vec<Value> = machine.log().iter().map(|line| line["verdict"].clone()).collect();
    assert_eq!(verdicts, ["allowed", "refused"]);
}

#[tokio::test]
async fn connections_are_bounded_in_number_and_the_host_still_reaches_the_guest() {
    let server = Server::at("127.0.0.1:0");
    let target = format!("127.0.0.1:{}", server.port());
    let bounds = Bounds { streams: 2, ..Bounds::default() };
    let mut machine = Machine::bounded(&[&target], resolver(&[]), bounds);
    let line = format!("CONNECT {target}");
    let (one, _) = machine.ask(&line).await;
    let _two = machine.ask(&line).await;
    let refused = machine.guest.connect(port::EGRESS).await.unwrap_err();
    assert!(refused.to_string().contains("2 connections at once are too many"), "{refused}");
    assert!(machine.notes.recv().await.unwrap().contains("too many"));
    // What the guest has taken is not the host's: it opens a stream, and is understood.
    let Connector::Mux(guest) = machine.guest.clone() else { panic!("another link") };
    let taking = tokio::spawn(async move { guest.accept().await.unwrap().accept() });
    let mut control = timeout(PATIENCE, machine.host.open(port::CONTROL)).await.unwrap().unwrap();
    control.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    let mut taken = taking.await.unwrap();
    timeout(PATIENCE, taken.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"hello");
    drop(one);
    timeout(PATIENCE, async {
        while machine.guest.connect(port::EGRESS).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the room is not given back");
}

#[tokio::test]
async fn a_guest_that_opens_all_streams_leaves_the_host_some() {
    let (guest, host) = link();
    host.synced().await.unwrap();
    // It also takes what it is offered, or the host would wait for that.
    let taking = guest.clone();
    let served = tokio::spawn(async move {
        let mut streams = Vec::new();
        while let Ok(incoming) = taking.accept().await {
            streams.push(incoming.accept());
        }
    });
    let opening = (0..STREAMS).map(|_| {
        let guest = guest.clone();
        tokio::spawn(async move { guest.open(port::EGRESS).await.map(drop) })
    });
    let opening: Vec<_> = opening.collect();
    let mut offered = Vec::new();
    for _ in 0..GUEST_STREAMS {
        offered.push(timeout(PATIENCE, host.accept()).await.unwrap().unwrap());
    }
    timeout(PATIENCE, host.open(port::CONTROL)).await.unwrap().expect("no stream left for the host");
    served.abort();
    opening.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn attempts_are_bounded_in_a_minute() {
    let machine = Machine::bounded(&[], resolver(&[]), Bounds { attempts: 3, ..Bounds::default() });
    for _ in 0..3 {
        machine.refusal("CONNECT a.example:1").await;
    }
    for _ in 0..3 {
        let refused = machine.guest.connect(port::EGRESS).await.unwrap_err();
        assert!(refused.to_string().contains("3 attempts within a minute"), "{refused}");
    }
    assert_eq!(machine.log().len(), 4, "each refusal has a line, and the flood one");
}

#[tokio::test]
async fn a_connection_is_bounded_in_bytes_and_in_idleness() {
    let server = Server::at("127.0.0.1:0");
    let target = format!("127.0.0.1:{}", server.port());
    let bounds = Bounds { bytes: 100, idle: Duration::from_millis(200), ..Bounds::default() };
    let machine = Machine::bounded(&[&target], resolver(&[]), bounds);
    for (text, reason) in [(vec![b'x'; 1000], "100 bytes"), (vec![b'x'; 10], "nothing passed")] {
        let _echo = server.echo();
        let (mut stream, answer) = machine.ask(&format!("CONNECT {target}")).await;
        assert_eq!(answer, "OK");
        stream.write_all(&text).await.unwrap();
        rest(&mut stream).await;
        let ended = timeout(PATIENCE, async {
            loop {
                let last = machine.log().pop().unwrap();
                if last["verdict"] == "ended" {
                    return last;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let ended = ended.await.unwrap();
        assert!(ended["reason"].as_str().unwrap().contains(reason), "{ended}");
    }
}

#[tokio::test]
async fn a_program_that_has_gone_leaves_its_place_to_others_soon() {
    let server = Server::at("127.0.0.1:0");
    let target = format!("127.0.0.1:{}", server.port());
    let bounds = Bounds { streams: 1, idle_after_end: Duration::from_millis(200), ..Bounds::default() };
    let machine = Machine::bounded(&[&target], resolver(&[]), bounds);
    let connect = format!("CONNECT {target}");
    // A server that is silent keeps its connection, and this one is of nobody any more.
    let (mut stream, answer) = machine.ask(&connect).await;
    assert_eq!(answer, "OK");
    stream.shutdown().await.unwrap();
    rest(&mut stream).await;
    let (_, answer) = machine.ask(&connect).await;
    assert_eq!(answer, "OK");
}

#[tokio::test]
async fn nonsense_is_refused_and_does_not_reach_the_log_as_it_is() {
    let machine = Machine::new(&["a.example:1"], resolver(&[]));
    for line in ["", "GET / HTTP/1.1", "CONNECT a.example", "CONNECT \u{1b}[2J:1", "FORWARD 0", "FORWARD x"] {
        let refusal = machine.refusal(line).await;
        assert!(refusal.starts_with("malformed"), "{line:?}: {refusal}");
    }
    assert!(machine.refusal("FORWARD 8").await.starts_with("denied port 8"));
    assert!(machine.refusal(&"x".repeat(5000)).await.starts_with("malformed"));
    assert!(machine.log().iter().all(|line| line["request"].as_str().unwrap().len() < 50));
}

#[tokio::test]
async fn without_a_way_out_every_stream_is_refused_and_a_builder_is_told() {
    for (way, told) in [(WayOut::None, false), (WayOut::Watched(Arc::default()), true)] {
        let tried = match &way {
            WayOut::Watched(tried) => Arc::clone(tried),
            _ => Arc::default(),
        };
        let (guest, host) = link();
        tokio::spawn(way.serve(Listener::mux(host)));
        guest.open(port::CONTROL).await.unwrap_err();
        assert!(timeout(Duration::from_millis(20), tried.notified()).await.is_err());
        guest.open(port::EGRESS).await.unwrap_err();
        assert_eq!(timeout(Duration::from_millis(100), tried.notified()).await.is_ok(), told);
    }
}
