//! Clients that go, and clients that only say no more, at a supervisor whose machine is played by the test.

use super::{handle, is_object};
use crate::{
    backend::Capabilities,
    home::Home,
    log::CappedLog,
    record::Record,
    spec::{BackendKind, Spec},
    supervise::{self, Answer, Asked, Request},
    supervisor::shared::{Link, Recorder, Shared, Use},
};
use casemate_link::{Connector, handshake, port_socket};
use casemate_proto::{
    control::{Envelope, Reply, Request as Control, Stats, VERSION, Welcome},
    ids::Cid,
    port,
};
use serde_json::value::to_raw_value;
use std::{
    cell::{Cell, RefCell},
    future::Future,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::{JoinHandle, LocalSet, spawn_local},
};

#[test]
fn only_whole_objects_are_messages() {
    for good in ["{}", " {\"a\": [1, {\"b\": null}]}\r"] {
        assert!(is_object(good.as_bytes()), "{good:?}");
    }
    for bad in ["", "[]", "{", "{}{}", "listening on 3000", "1", "{\"a\":\u{1}}"] {
        assert!(!is_object(bad.as_bytes()), "{bad:?}");
    }
}

/// A machine that is one Unix socket for each port.
struct Machine {
    dir: tempfile::TempDir,
    shared: Rc<Shared>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        let nowhere = PathBuf::new;
        let spec = Spec::bare("m".parse().unwrap(), BackendKind::Qemu, nowhere(), nowhere());
        let shared = Shared {
            recorder: Rc::new(Recorder::new(home, Record::planned("1".to_owned(), Cid(100), &spec))),
            link: RefCell::new(Some(Link {
                connector: Connector::Unix { dir: dir.path().to_owned() },
                epoch: "one".to_owned(),
            })),
            usage: Use::default(),
            may_be_suspended: false,
            paused: Cell::new(false),
            carrier: RefCell::default(),
            capabilities: Capabilities {
                snapshot: false,
                pause: false,
                resume: false,
                kill: false,
                cut_link: false,
                set_clock: false,
                writable_overlay: false,
                conversations: false,
            },
            wishes: mpsc::channel(1).0,
            conversation: RefCell::default(),
            holder: RefCell::default(),
            server_exit: watch::Sender::new(None),
            broken: watch::Sender::new(None),
            server_log: RefCell::new(CappedLog::open(&dir.path().join("log")).unwrap()),
            garbage_lines: Cell::new(0),
        };
        Self { dir, shared: Rc::new(shared) }
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(port_socket(self.dir.path(), port)).unwrap()
    }

    /// A client that asks for a port, and the task that serves it.
    async fn client(&self, port: u32) -> (UnixStream, JoinHandle<()>) {
        let (mut client, served) = UnixStream::pair().unwrap();
        let serving = spawn_local(handle(served, Rc::clone(&self.shared)));
        handshake::request(&mut client, port).await.unwrap();
        (client, serving)
    }
}

fn within_a_minute(what: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(60), what).await };
    LocalSet::new().block_on(&runtime, bounded).expect("still waiting after a minute");
}

/// A client says no more, is answered all the same, and goes while the machine is silent.
async fn half_closes_and_goes(port: u32) {
    let machine = Machine::new();
    let agent = machine.listen(port);
    let (mut client, serving) = machine.client(port).await;
    let (mut stream, _) = agent.accept().await.unwrap();

    client.write_all(b"{}\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = String::new();
    stream.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "{}\n");
    stream.write_all(b"{\"late\": 1}\n").await.unwrap();
    let mut answer = String::new();
    BufReader::new(&mut client).read_line(&mut answer).await.unwrap();
    assert_eq!(answer, "{\"late\": 1}\n");
    assert!(!serving.is_finished());

    drop(client);
    serving.await.unwrap();
    assert_eq!(*machine.shared.holder.borrow(), None);
}

#[test]
fn a_client_that_is_gone_ends_its_conversation_and_one_that_says_no_more_does_not() {
    within_a_minute(half_closes_and_goes(port::CONVERSATION));
}

#[test]
fn a_client_that_is_gone_ends_its_stream_and_one_that_says_no_more_does_not() {
    within_a_minute(half_closes_and_goes(port::CONTROL));
}

#[test]
fn a_client_that_goes_while_its_input_is_not_taken_ends_its_conversation() {
    within_a_minute(async {
        let machine = Machine::new();
        let agent = machine.listen(port::CONVERSATION);
        let (mut client, serving) = machine.client(port::CONVERSATION).await;
        let (stream, _) = agent.accept().await.unwrap();
        let chunk = vec![b' '; 64 << 10];
        let stopped = Duration::from_millis(200);
        while tokio::time::timeout(stopped, client.write_all(&chunk)).await.is_ok() {}
        drop(client);
        serving.await.unwrap();
        drop(stream);
    });
}

#[test]
fn what_a_client_said_before_it_went_gets_through() {
    within_a_minute(async {
        let machine = Machine::new();
        let agent = machine.listen(port::CONVERSATION);
        let (mut client, serving) = machine.client(port::CONVERSATION).await;
        client.write_all(b"{\"last\": 1}\n").await.unwrap();
        drop(client);
        let (mut stream, _) = agent.accept().await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "{\"last\": 1}\n");
        serving.await.unwrap();
    });
}

/// Sends a request that the agent has to answer.
async fn ask_for_stats(client: &mut UnixStream) {
    let request = to_raw_value(&Request::Stats).unwrap();
    let mut line = serde_json::to_vec(&Asked { version: supervise::VERSION, request }).unwrap();
    line.push(b'\n');
    client.write_all(&line).await.unwrap();
}

/// Plays an agent up to the request for its statistics.
async fn agent_is_asked(agent: &UnixListener) -> (BufReader<UnixStream>, u64) {
    let mut stream = BufReader::new(agent.accept().await.unwrap().0);
    let hello = read_request(&mut stream).await;
    let welcome = Welcome { protocol: VERSION, agent: "test".to_owned() };
    reply(&mut stream, &Reply::done(hello.id, &welcome)).await;
    let asked = read_request(&mut stream).await;
    assert!(matches!(asked.request, Control::Stats));
    (stream, asked.id)
}

async fn read_request(stream: &mut BufReader<UnixStream>) -> Envelope {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    serde_json::from_str(&line).unwrap()
}

async fn reply(stream: &mut BufReader<UnixStream>, reply: &Reply) {
    stream.write_all(format!("{}\n", serde_json::to_string(reply).unwrap()).as_bytes()).await.unwrap();
}

#[test]
fn a_request_is_answered_to_a_client_that_says_no_more() {
    within_a_minute(async {
        let machine = Machine::new();
        let agent = machine.listen(port::CONTROL);
        let (mut client, serving) = machine.client(supervise::PORT).await;
        ask_for_stats(&mut client).await;
        client.shutdown().await.unwrap();
        let (mut stream, id) = agent_is_asked(&agent).await;
        reply(&mut stream, &Reply::done(id, &Stats::default())).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(matches!(serde_json::from_str(&answer), Ok(Answer::Stats(_))), "{answer}");
        serving.await.unwrap();
    });
}

#[test]
fn a_request_is_cancelled_with_the_client_that_is_gone() {
    within_a_minute(async {
        let machine = Machine::new();
        let agent = machine.listen(port::CONTROL);
        let (mut client, serving) = machine.client(supervise::PORT).await;
        ask_for_stats(&mut client).await;
        let (mut stream, _) = agent_is_asked(&agent).await;
        drop(client);
        // Long before the request's own deadline.
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        serving.await.unwrap();
    });
}
