//! The host's end of a control stream (port 5253).
//!
//! What comes from the guest is bounded: a line in length, an answer in time, a frame in size. A stream on
//! which anything went wrong is not used again.

use crate::registry::ClaimError;
use casemate_link::{ConnectError, Connector, Stream};
use casemate_proto::{
    control::{Envelope, Event, Hello, Reply, ReplyError, Request, VERSION, Welcome},
    frame::{FrameBuffer, FrameError, Kind},
    limits::{CONTROL_MESSAGE_BYTES, CONTROL_TIMEOUT},
    line::{LineBuffer, LineTooLong},
    port,
};
use serde::de::DeserializeOwned;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// Why the agent did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No stream to the agent.
    #[error("cannot reach the agent")]
    Connect(#[from] ConnectError),
    /// The stream broke.
    #[error("control stream broke")]
    Io(#[from] io::Error),
    /// The agent closed the stream instead of answering.
    #[error("agent closed the control stream instead of answering {method}")]
    Closed {
        /// What was asked.
        method: &'static str,
    },
    /// The agent did not answer in time.
    #[error("agent did not answer {method} within {} ms", patience.as_millis())]
    Timeout {
        /// What was asked.
        method: &'static str,
        /// How long was waited.
        patience: Duration,
    },
    /// The agent's answer is longer than allowed.
    #[error("agent answered {method} with nonsense")]
    Length {
        /// What was asked.
        method: &'static str,
        /// How long it may be.
        #[source]
        source: LineTooLong,
    },
    /// The agent's answer is no JSON of the right form.
    #[error("agent answered {method} with nonsense")]
    Syntax {
        /// What was asked.
        method: &'static str,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The agent refused, or its answer has the wrong shape.
    #[error("agent refused {method}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// Its words.
        #[source]
        source: ReplyError,
    },
    /// The agent speaks another version.
    #[error("agent speaks control version {found}, this program {VERSION}")]
    Version {
        /// The agent's.
        found: u32,
    },
    /// The machine is suspended and could not go on.
    #[error("cannot resume the machine: {0}")]
    Resume(String),
    /// The machine is suspended and stays so: it was not admitted.
    #[error("cannot resume the machine now")]
    NotAdmitted(#[source] ClaimError),
    /// The server does not end, whatever it is told.
    #[error("server did not end")]
    Unended,
    /// What follows `watch` or `exec` are no frames.
    #[error("agent sent no frames")]
    Frame(#[from] FrameError),
}

/// A control stream after its `hello`.
pub(crate) struct Control {
    stream: Stream,
    lines: LineBuffer,
    next_id: u64,
}

impl Control {
    /// Opens a stream and says hello, all within `patience`.
    pub(crate) async fn open(
        connector: &Connector,
        epoch: &str,
        patience: Duration,
    ) -> Result<Self, ControlError> {
        let opened = timeout(patience, async {
            let stream = connector.connect(port::CONTROL).await?;
            let mut control = Self { stream, lines: LineBuffer::new(CONTROL_MESSAGE_BYTES), next_id: 0 };
            let hello = Request::Hello(Hello { protocol: VERSION, epoch: epoch.to_owned() });
            let welcome: Welcome = control.request("hello", hello, patience).await?;
            if welcome.protocol != VERSION {
                return Err(ControlError::Version { found: welcome.protocol });
            }
            Ok(control)
        });
        opened.await.unwrap_or(Err(ControlError::Timeout { method: "hello", patience }))
    }

    /// Asks and waits for the answer. After an error, or when cancelled, the stream must not be used again.
    pub(crate) async fn request<T: DeserializeOwned>(
        &mut self,
        method: &'static str,
        request: Request,
        patience: Duration,
    ) -> Result<T, ControlError> {
        let id = self.next_id;
        self.next_id += 1;
        let deadline_ms = Some(patience.as_millis() as u64);
        let mut line = serde_json::to_vec(&Envelope { deadline_ms, ..Envelope::new(id, request) })
            .map_err(|source| ControlError::Syntax { method, source })?;
        line.push(b'\n');
        let reply = timeout(patience, async {
            self.stream.write_all(&line).await?;
            self.stream.flush().await?;
            self.next_reply(method).await
        });
        let reply = reply.await.map_err(|_| ControlError::Timeout { method, patience })??;
        reply.into_result(id).map_err(|source| ControlError::Refused { method, source })
    }

    async fn next_reply(&mut self, method: &'static str) -> Result<Reply, ControlError> {
        loop {
            let line = self.lines.next_line().map_err(|source| ControlError::Length { method, source })?;
            if let Some(line) = line {
                return serde_json::from_slice(line)
                    .map_err(|source| ControlError::Syntax { method, source });
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).await? {
                0 => return Err(ControlError::Closed { method }),
                read => self.lines.push(&chunk[..read]),
            }
        }
    }

    /// Turns the stream over to frames: follows the server from its beginning.
    pub(crate) async fn watch(mut self) -> Result<Watch, ControlError> {
        let _: serde_json::Value = self.request("watch", Request::Watch, CONTROL_TIMEOUT).await?;
        let mut frames = FrameBuffer::default();
        frames.push(self.lines.remainder());
        Ok(Watch { stream: self.stream, frames })
    }
}

/// What the agent tells about the server while it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Bytes of the server's stderr.
    Stderr(Vec<u8>),
    /// A start or an end.
    Event(Event),
}

/// A control stream that carries the frames of `watch`.
pub(crate) struct Watch {
    stream: Stream,
    frames: FrameBuffer,
}

impl Watch {
    /// The next notice; `None` when the stream ends. Frames of other kinds are passed over.
    pub(crate) async fn next(&mut self) -> Result<Option<Notice>, ControlError> {
        loop {
            match self.frames.next_frame()? {
                Some((Kind::Stderr, bytes)) if !bytes.is_empty() => {
                    return Ok(Some(Notice::Stderr(bytes.to_vec())));
                }
                Some((Kind::Event, json)) => {
                    let event = serde_json::from_slice(json)
                        .map_err(|source| ControlError::Syntax { method: "watch", source })?;
                    return Ok(Some(Notice::Event(event)));
                }
                Some(_) => continue,
                None => {}
            }
            let mut chunk = vec![0; 16 << 10];
            match self.stream.read(&mut chunk).await? {
                0 => return Ok(None),
                read => self.frames.push(&chunk[..read]),
            }
        }
    }
}

#[cfg(test)]
mod tests;
