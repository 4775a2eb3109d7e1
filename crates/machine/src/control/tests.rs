//! Agents that lie. They are fakes: the other end of a real multiplexed link over a socket pair.

use super::*;
use casemate_link::{MuxHandle, mux};
use casemate_proto::{
    control::{Envelope, Failure, FailureCode, Pong, Started},
    frame,
    limits::FRAME_BYTES,
};
use proptest::prelude::*;
use std::time::Instant;
use tokio::net::UnixStream;

const EPOCH: &str = "epoch";

/// How long the host waits for a lie; long enough for a busy host to hear an honest answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Far beyond `PATIENCE`; a test that reaches it hangs.
const HANG: Duration = Duration::from_secs(60);

/// What a fake agent says instead of an honest answer.
#[derive(Debug, Clone)]
enum Says {
    /// These bytes, and nothing after them.
    Bytes(Vec<u8>),
    /// The same byte for ever, as fast as it is taken.
    Flood(u8),
    /// A space now and then, for ever.
    Drip,
    /// Nothing, and ends the stream.
    Close,
}

impl Says {
    fn line(text: &str) -> Self {
        Self::Bytes(format!("{text}\n").into_bytes())
    }

    async fn speak(self, stream: &mut Stream) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
                std::future::pending().await
            }
            Self::Flood(byte) => loop {
                stream.write_all(&[byte; 4096]).await?;
            },
            Self::Drip => loop {
                stream.write_all(b" ").await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            },
            Self::Close => stream.shutdown().await,
        }
    }
}

/// A link to a fake agent that answers so many requests of each stream as it should, and then says
/// something else.
async fn link_to_fake(honest: usize, says: Says) -> (Connector, MuxHandle) {
    let (near, far) = UnixStream::pair().unwrap();
    let (host, driver) = mux::attach_host(near, [7; 16]);
    tokio::spawn(driver);
    let (guest, driver) = mux::attach_guest(far);
    tokio::spawn(driver);
    let agent = guest.clone();
    tokio::spawn(async move {
        while let Ok(incoming) = agent.accept().await {
            assert_eq!(incoming.port, port::CONTROL);
            tokio::spawn(fake(incoming.accept(), honest, says.clone()));
        }
    });
    (Connector::Mux(host), guest)
}

async fn fake(mut stream: Stream, honest: usize, says: Says) -> io::Result<()> {
    let mut lines = LineBuffer::new(CONTROL_MESSAGE_BYTES);
    let mut answered = 0;
    loop {
        if let Some(line) = lines.next_line().map_err(io::Error::other)? {
            if answered == honest {
                return says.speak(&mut stream).await;
            }
            let asked: Envelope = serde_json::from_slice(line)?;
            let reply = match asked.request {
                Request::Hello(_) => {
                    Reply::done(asked.id, &Welcome { protocol: VERSION, agent: "fake".to_owned() })
                }
                _ => Reply::done(asked.id, &Started { pid: 7 }),
            };
            stream.write_all(format!("{}\n", serde_json::to_string(&reply)?).as_bytes()).await?;
            stream.flush().await?;
            answered += 1;
            continue;
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await? {
            0 => return Ok(()),
            read => lines.push(&chunk[..read]),
        }
    }
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// What an honest `hello` and then this answer come to.
async fn answered_with(says: Says) -> Result<Started, ControlError> {
    let (connector, _agent) = link_to_fake(1, says.clone()).await;
    in_time(&format!("{says:?}"), async {
        let mut control = Control::open(&connector, EPOCH, HANG).await.unwrap();
        let since = Instant::now();
        let answer = control.request("start", Request::Start, PATIENCE).await;
        assert!(since.elapsed() < PATIENCE * 2, "{says:?} took {:?}", since.elapsed());
        answer
    })
    .await
}

#[tokio::test]
async fn an_honest_fake_is_understood() {
    let (connector, _agent) = link_to_fake(9, Says::Close).await;
    let mut control = Control::open(&connector, EPOCH, HANG).await.unwrap();
    for _ in 0..3 {
        let started: Started = control.request("start", Request::Start, HANG).await.unwrap();
        assert_eq!(started.pid, 7);
    }
}

#[tokio::test]
async fn nonsense_is_an_error_that_says_what_was_asked() {
    use ControlError as E;
    type Expected = fn(&ControlError) -> bool;
    let refusal = Failure { code: FailureCode::State, message: "start: not configured".to_owned() };
    let refusal = serde_json::to_string(&Reply::failed(Some(1), refusal)).unwrap();
    let deep = "[".repeat(100_000);
    let cases: [(Says, Expected); 12] = [
        (Says::line("nonsense"), |e| matches!(e, E::Syntax { .. })),
        (Says::line(""), |e| matches!(e, E::Syntax { .. })),
        (Says::Bytes(b"\xff\xfe\x00\n".to_vec()), |e| matches!(e, E::Syntax { .. })),
        (Says::line(&deep), |e| matches!(e, E::Syntax { .. })),
        (Says::line("[]"), |e| matches!(e, E::Syntax { .. })),
        (Says::line(r#"{"jsonrpc":"2.0","id":"1","result":{"pid":7}}"#), |e| matches!(e, E::Syntax { .. })),
        // The answer to a request that was not asked, or not asked any more.
        (Says::line(r#"{"jsonrpc":"2.0","id":0,"result":{"pid":7}}"#), |e| matches!(e, E::Refused { .. })),
        (Says::line(r#"{"jsonrpc":"2.0","id":null,"result":{"pid":7}}"#), |e| matches!(e, E::Refused { .. })),
        (Says::line(r#"{"jsonrpc":"2.0","id":1}"#), |e| matches!(e, E::Refused { .. })),
        (Says::line(r#"{"jsonrpc":"2.0","id":1,"result":{"pid":-7}}"#), |e| matches!(e, E::Refused { .. })),
        (Says::line(&refusal), |e| matches!(e, E::Refused { source: ReplyError::Failed(_), .. })),
        (Says::Close, |e| matches!(e, E::Closed { method: "start" })),
    ];
    for (says, expected) in cases {
        let error = answered_with(says.clone()).await.unwrap_err();
        assert!(expected(&error), "{says:?}: {error:?}");
        assert!(error.to_string().contains("start"), "{error}");
    }
}

#[tokio::test]
async fn silence_and_drips_end_in_time() {
    for says in [Says::Bytes(Vec::new()), Says::Bytes(b"{\"jsonrpc\":".to_vec()), Says::Drip] {
        let error = answered_with(says.clone()).await.unwrap_err();
        assert!(matches!(error, ControlError::Timeout { method: "start", .. }), "{says:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_flood_is_cut_off_at_the_longest_message() {
    let error = answered_with(Says::Flood(b'x')).await.unwrap_err();
    assert!(matches!(error, ControlError::Length { method: "start", .. }), "{error:?}");
    // Lines that are answers to nothing.
    let error = answered_with(Says::Flood(b'\n')).await.unwrap_err();
    assert!(matches!(error, ControlError::Syntax { method: "start", .. }), "{error:?}");
}

#[tokio::test]
async fn a_hello_that_is_none_is_an_error_in_time() {
    let welcome = |protocol| {
        let welcome = Welcome { protocol, agent: "fake".to_owned() };
        Says::line(&serde_json::to_string(&Reply::done(0, &welcome)).unwrap())
    };
    for says in [welcome(VERSION + 1), Says::line("hello"), Says::Flood(b'x'), Says::Close, Says::Drip] {
        let (connector, _agent) = link_to_fake(0, says.clone()).await;
        let opened = in_time(&format!("{says:?}"), Control::open(&connector, EPOCH, PATIENCE)).await;
        let error = opened.err().unwrap_or_else(|| panic!("{says:?} was believed"));
        assert!(!matches!(error, ControlError::Io(_)), "{says:?}: {error:?}");
    }
    let (connector, _agent) = link_to_fake(0, welcome(VERSION + 1)).await;
    let error = Control::open(&connector, EPOCH, PATIENCE).await.err().unwrap();
    assert_eq!(error.to_string(), format!("agent speaks control version {}, this program 1", VERSION + 1));
}

#[tokio::test]
async fn a_liar_on_one_stream_disturbs_no_other() {
    let (connector, _agent) = link_to_fake(1, Says::Flood(b'x')).await;
    let (mut one, mut two) = (
        Control::open(&connector, EPOCH, HANG).await.unwrap(),
        Control::open(&connector, EPOCH, HANG).await.unwrap(),
    );
    let (first, second) = tokio::join!(
        one.request::<Pong>("ping", Request::Ping, PATIENCE),
        two.request::<Pong>("ping", Request::Ping, PATIENCE),
    );
    for error in [first.unwrap_err(), second.unwrap_err()] {
        assert!(matches!(error, ControlError::Length { .. }), "{error:?}");
    }
    drop((one, two));
    in_time("a third stream", Control::open(&connector, EPOCH, HANG)).await.unwrap();
}

/// The notices of a `watch` whose stream carries these bytes after its answer.
async fn watched(bytes: Vec<u8>) -> (Vec<Notice>, Option<ControlError>) {
    let answer = Reply::done(1, &serde_json::json!({}));
    let says = [format!("{}\n", serde_json::to_string(&answer).unwrap()).into_bytes(), bytes].concat();
    let (connector, _agent) = link_to_fake(1, Says::Bytes(says)).await;
    let control = Control::open(&connector, EPOCH, HANG).await.unwrap();
    let mut watch = in_time("watch", control.watch()).await.unwrap();
    let mut notices = Vec::new();
    loop {
        // A fake that has said everything stays silent.
        match tokio::time::timeout(Duration::from_millis(500), watch.next()).await {
            Ok(Ok(Some(notice))) => notices.push(notice),
            Ok(Err(error)) => return (notices, Some(error)),
            Ok(Ok(None)) | Err(_) => return (notices, None),
        }
    }
}

#[tokio::test]
async fn frames_that_are_none_end_the_watching() {
    let mut good = Vec::new();
    frame::encode(Kind::Stderr, b"words", &mut good);
    let mut no_event = Vec::new();
    frame::encode(Kind::Event, b"{\"event\":\"surprise\"}", &mut no_event);
    let too_long = [&[Kind::Stderr as u8][..], &(FRAME_BYTES as u32 + 1).to_be_bytes()].concat();
    for (bad, expected) in [
        (b"nonsense\n".to_vec(), "agent sent no frames"),
        (too_long, "agent sent no frames"),
        (no_event, "agent answered watch with nonsense"),
    ] {
        let (notices, error) = watched([good.clone(), bad].concat()).await;
        assert_eq!(notices, [Notice::Stderr(b"words".to_vec())]);
        assert_eq!(error.map(|error| error.to_string()).as_deref(), Some(expected));
    }
    // Kinds that have no meaning here, and empty ones, are passed over.
    let mut odd = Vec::new();
    frame::encode(Kind::Stdin, b"?", &mut odd);
    frame::encode(Kind::Stderr, b"", &mut odd);
    let (notices, error) = watched([odd, good].concat()).await;
    assert_eq!((notices.len(), error.is_none()), (1, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_of_an_agent_do_more_than_fail(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // Ended by a newline, so that silence is not waited for.
            let line = [bytes.clone(), b"\n".to_vec()].concat();
            answered_with(Says::Bytes(line)).await.unwrap_err();
            watched(bytes).await;
        });
    }
}
