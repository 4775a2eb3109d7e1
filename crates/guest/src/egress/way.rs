//! Asks the host for a connection.

use casemate_link::{ConnectError, Connector, Stream};
use casemate_proto::egress::{ANSWER_BYTES, Answer, Refusal, Request};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Longer than the host takes to look a name up and try its addresses.
const PATIENCE: Duration = Duration::from_secs(60);

/// The way to the host.
#[derive(Debug, Clone)]
pub struct Way(Connector);

/// There is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why, for programs.
    pub code: Refusal,
    /// Why, for people; one line.
    pub reason: String,
}

impl Way {
    /// Over this link.
    pub fn new(link: Connector) -> Self {
        Self(link)
    }

    /// A stream that is the connection that was asked for.
    pub async fn open(&self, request: &Request) -> Result<Stream, Refused> {
        let busy = |reason: String| Refused { code: Refusal::Busy, reason };
        let mut stream = self.0.connect(casemate_proto::port::EGRESS).await.map_err(|error| match error {
            ConnectError::Refused { reason, .. } => busy(reason),
            error => busy(error.to_string()),
        })?;
        let asking = async {
            stream.write_all(format!("{request}\n").as_bytes()).await?;
            read_answer(&mut stream).await
        };
        match timeout(PATIENCE, asking).await {
            Ok(Ok(Answer::Open)) => Ok(stream),
            Ok(Ok(Answer::Refused { code, reason })) => Err(Refused { code, reason }),
            Ok(Err(error)) => Err(busy(format!("link to the host broke: {error}"))),
            Err(_) => Err(busy("host did not answer".to_owned())),
        }
    }
}

/// Reads the answer's line and not one byte more: what follows is the connection's.
async fn read_answer(stream: &mut Stream) -> io::Result<Answer> {
    let mut line = Vec::with_capacity(ANSWER_BYTES);
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            _ if line.len() >= ANSWER_BYTES => return Err(io::ErrorKind::InvalidData.into()),
            byte => line.push(byte),
        }
    }
    let line = std::str::from_utf8(&line).ok().and_then(Answer::parse);
    line.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
