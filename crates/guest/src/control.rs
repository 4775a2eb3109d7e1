//! Port 5253: requests of the host, one after another on each stream.
//!
//! This file frames and dispatches; what a request does is in `agent`, `exec` and `follow`.

use crate::agent::Agent;
use crate::{exec, failure, follow, ingress};
use casemate_link::{Incoming, Stream};
use casemate_proto::control::{Envelope, Failure, FailureCode, Hello, Reply, Request, Started};
use casemate_proto::limits::{CONTROL_MESSAGE_BYTES, CONTROL_TIMEOUT, HANDSHAKE_TIMEOUT, STOP_GRACE};
use casemate_proto::line::LineBuffer;
use serde::Deserialize;
use serde_json::Value;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const READ_BYTES: usize = 16 << 10;

/// The names on the wire, to tell an unknown method from wrong parameters of a known one.
const METHODS: [&str; 15] = [
    "hello",
    "configure",
    "start",
    "listen",
    "ping",
    "stats",
    "signal",
    "exec",
    "inventory",
    "watch",
    "rinse",
    "settle",
    "adopt",
    "park",
    "shutdown",
];

/// What follows a request.
enum Outcome {
    /// An answer, then the next request.
    Answer(Reply),
    /// An answer, then the end of the stream.
    Last(Reply),
    /// An answer, then the frames of a program.
    Exec(Reply, Box<exec::Running>),
    /// An answer, then the frames of the server's journal.
    Watch(Reply),
    /// An answer, then the end of the machine.
    Shutdown(Reply, Duration),
}

/// Serves one control stream to its end.
pub async fn serve(agent: &Arc<Agent>, incoming: Incoming) {
    let generation = incoming.generation;
    let mut control =
        Control { stream: incoming.accept(), lines: LineBuffer::new(CONTROL_MESSAGE_BYTES), greeted: false };
    // An error is the end of the stream; there is nobody left to tell.
    let _ = control.run(agent, generation).await;
}

/// A stream, what was read from it, and whether its host said hello.
struct Control {
    stream: Stream,
    lines: LineBuffer,
    greeted: bool,
}

impl Control {
    async fn run(&mut self, agent: &Arc<Agent>, generation: u64) -> io::Result<()> {
        loop {
            let line = match self.greeted {
                true => self.line().await?,
                false => timeout(HANDSHAKE_TIMEOUT, self.line()).await??,
            };
            let outcome = match line {
                Line::End => return self.stream.shutdown().await,
                Line::TooLong => Outcome::Last(Reply::failed(
                    None,
                    failure::new(
                        FailureCode::Request,
                        format!("the request is longer than {CONTROL_MESSAGE_BYTES} bytes"),
                    ),
                )),
                Line::Whole(line) => self.handle(agent, generation, &line).await,
            };
            match outcome {
                Outcome::Answer(reply) => self.send(&reply).await?,
                Outcome::Last(reply) => {
                    self.send(&reply).await?;
                    return self.finish().await;
                }
                Outcome::Exec(reply, running) => {
                    if let Err(error) = self.send(&reply).await {
                        running.abandon().await;
                        return Err(error);
                    }
                    exec::run(*running, &mut self.stream, self.lines.remainder()).await?;
                    return self.finish().await;
                }
                Outcome::Watch(reply) => {
                    self.send(&reply).await?;
                    return follow::run(&agent.journal, &mut self.stream).await;
                }
                Outcome::Shutdown(reply, grace) => {
                    self.send(&reply).await?;
                    self.stream.shutdown().await?;
                    agent.shut_down(grace);
                    return self.finish().await;
                }
            }
        }
    }

    /// The next line, however long it takes. May be cancelled.
    async fn line(&mut self) -> io::Result<Line> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match self.lines.next_line() {
                Ok(Some(line)) => return Ok(Line::Whole(line.to_vec())),
                Ok(None) => {}
                Err(_) => return Ok(Line::TooLong),
            }
            match self.stream.read(&mut buffer).await? {
                0 => return Ok(Line::End),
                length => self.lines.push(&buffer[..length]),
            }
        }
    }

    /// Ends the stream and lets the host end it too: a socket that is closed with unread bytes looks broken
    /// to a host that has yet to read its end.
    async fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut rest = (&mut self.stream).take(CONTROL_MESSAGE_BYTES as u64);
        timeout(STOP_GRACE, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await??;
        Ok(())
    }

    async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.stream.write_all(&line).await
    }

    async fn handle(&mut self, agent: &Arc<Agent>, generation: u64, line: &[u8]) -> Outcome {
        let envelope = match parse(line) {
            Ok(envelope) => envelope,
            Err(reply) if self.greeted => return Outcome::Answer(reply),
            Err(reply) => return Outcome::Last(reply),
        };
        let id = envelope.id;
        if !self.greeted {
            return match greet(agent, generation, envelope.request) {
                Ok(welcome) => {
                    self.greeted = true;
                    Outcome::Answer(Reply::done(id, &welcome))
                }
                Err(failure) => Outcome::Last(Reply::failed(Some(id), failure)),
            };
        }
        let deadline = envelope.deadline_ms.map_or(CONTROL_TIMEOUT, Duration::from_millis);
        let answer = timeout(deadline, dispatch(agent, id, envelope.request)).await;
        answer
            .unwrap_or_else(|_| Err(failure::new(FailureCode::Deadline, "not done by the deadline")))
            .unwrap_or_else(|failure| Outcome::Answer(Reply::failed(Some(id), failure)))
    }
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}

async fn dispatch(agent: &Arc<Agent>, id: u64, request: Request) -> Result<Outcome, Failure> {
    let reply = match request {
        Request::Hello(_) => return Err(failure::new(FailureCode::Hello, "hello was said already")),
        Request::Configure(configure) => {
            agent.configure(*configure).await?;
            Reply::done(id, &Value::Object(Default::default()))
        }
        Request::Start => Reply::done(id, &agent.start().await?),
        Request::Listen { patience_ms } => {
            ingress::listen(agent, Duration::from_millis(patience_ms)).await?;
            Reply::done(id, &Value::Object(Default::default()))
        }
        Request::Ping => Reply::done(id, &agent.ping()),
        Request::Stats => Reply::done(id, &agent.stats()),
        Request::Signal { signal } => {
            agent.signal(signal)?;
            Reply::done(id, &Value::Object(Default::default()))
        }
        Request::Exec(exec) => {
            let running = exec::start(agent, exec)?;
            let started = Started { pid: running.pid() };
            return Ok(Outcome::Exec(Reply::done(id, &started), Box::new(running)));
        }
        Request::Inventory => Reply::done(id, &agent.inventory()),
        Request::Rinse => {
            agent.rinse().await?;
            Reply::done(id, &Value::Object(Default::default()))
        }
        Request::Settle => Reply::done(id, &agent.settle().await?),
        Request::Adopt(adopt) => {
            agent.adopt(&adopt)?;
            Reply::done(id, &Value::Object(Default::default()))
        }
        Request::Park => {
            agent.park().await;
            Reply::done(id, &Value::Object(Default::default()))
        }
        Request::Watch => return Ok(Outcome::Watch(Reply::done(id, &Value::Object(Default::default())))),
        Request::Shutdown { grace_ms } => {
            let reply = Reply::done(id, &Value::Object(Default::default()));
            return Ok(Outcome::Shutdown(reply, Duration::from_millis(grace_ms)));
        }
    };
    Ok(Outcome::Answer(reply))
}

fn greet(
    agent: &Agent,
    generation: u64,
    request: Request,
) -> Result<casemate_proto::control::Welcome, Failure> {
    match request {
        Request::Hello(Hello { protocol, epoch }) => agent.greet(generation, protocol, epoch),
        _ => Err(failure::new(FailureCode::Hello, "the first request is no hello")),
    }
}

/// Reads a request as far as it can be read, so that the refusal says what is wrong with it.
fn parse(line: &[u8]) -> Result<Envelope, Reply> {
    #[derive(Deserialize)]
    struct Outline {
        #[serde(default)]
        jsonrpc: Option<String>,
        #[serde(default)]
        id: Option<u64>,
        #[serde(default)]
        method: Option<String>,
    }
    let refuse = |id, code, message: String| Err(Reply::failed(id, failure::new(code, message)));
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => return refuse(None, FailureCode::Parse, format!("the request is no UTF-8: {error}")),
    };
    let outline: Outline = match serde_json::from_str(text) {
        Ok(outline) => outline,
        Err(error) if error.is_data() => {
            return refuse(None, FailureCode::Request, format!("the request has not its shape: {error}"));
        }
        Err(error) => return refuse(None, FailureCode::Parse, format!("the request is no JSON: {error}")),
    };
    let (Some("2.0"), Some(id), Some(method)) = (outline.jsonrpc.as_deref(), outline.id, &outline.method)
    else {
        return refuse(outline.id, FailureCode::Request, "jsonrpc, id or method is missing".to_owned());
    };
    if !METHODS.contains(&method.as_str()) {
        let shown: String = method.chars().take(40).collect();
        return refuse(Some(id), FailureCode::Method, format!("there is no method {shown:?}"));
    }
    serde_json::from_str(text).map_err(|error| {
        Reply::failed(Some(id), failure::new(FailureCode::Params, format!("parameters of {method}: {error}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(line: &str) -> (Option<u64>, FailureCode) {
        let reply = parse(line.as_bytes()).unwrap_err();
        (reply.id, reply.error.unwrap().code)
    }

    #[test]
    fn each_kind_of_nonsense_has_its_code() {
        assert_eq!(refusal("{"), (None, FailureCode::Parse));
        assert_eq!(refusal("[]"), (None, FailureCode::Request));
        assert_eq!(refusal(r#"{"jsonrpc":"2.0","id":"x","method":"ping"}"#), (None, FailureCode::Request));
        assert_eq!(refusal(r#"{"jsonrpc":"1.0","id":4,"method":"ping"}"#), (Some(4), FailureCode::Request));
        assert_eq!(refusal(r#"{"jsonrpc":"2.0","id":4,"method":"fly"}"#), (Some(4), FailureCode::Method));
        assert_eq!(refusal(r#"{"jsonrpc":"2.0","id":4,"method":"signal"}"#), (Some(4), FailureCode::Params));
        assert_eq!(refusal(&r#"{"a":"#.repeat(100_000)), (None, FailureCode::Parse));
    }

    #[test]
    fn every_listed_method_exists() {
        for method in METHODS {
            let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"}}"#);
            if let Err(reply) = parse(line.as_bytes()) {
                assert_eq!(reply.error.unwrap().code, FailureCode::Params, "{method}");
            }
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
