//! One JSON document a line, over a Unix stream between casemate's own processes.

use crate::hangup::hung_up;
use casemate_proto::line::{LineBuffer, LineTooLong};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use zeroize::Zeroizing;

/// Why a document could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JsonlError {
    /// The stream broke.
    #[error("connection broke")]
    Io(#[from] io::Error),
    /// A line longer than allowed.
    #[error("message too long")]
    Length(#[from] LineTooLong),
    /// No document of the expected form.
    #[error("message of the wrong form")]
    Syntax(#[from] serde_json::Error),
}

/// Reads and writes documents.
#[derive(Debug)]
pub(crate) struct Jsonl {
    stream: UnixStream,
    lines: LineBuffer,
}

impl Jsonl {
    /// Speaks over a stream in documents of at most `limit` bytes.
    pub(crate) fn new(stream: UnixStream, limit: usize) -> Self {
        Self { stream, lines: LineBuffer::new(limit) }
    }

    /// Writes a document. Not to be cancelled: half a line would be left.
    pub(crate) async fn send(&mut self, document: &impl Serialize) -> Result<(), JsonlError> {
        // It may hold a secret.
        let mut line = Zeroizing::new(serde_json::to_vec(document)?);
        line.push(b'\n');
        Ok(self.stream.write_all(&line).await?)
    }

    /// Reads the next document; `None` at the end. May be cancelled: what was read is kept.
    pub(crate) async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, JsonlError> {
        loop {
            if let Some(line) = self.lines.next_line()? {
                return Ok(Some(serde_json::from_slice(line)?));
            }
            let mut chunk = [0; 8192];
            match self.stream.read(&mut chunk).await? {
                0 => return Ok(None),
                read => self.lines.push(&chunk[..read]),
            }
        }
    }

    /// Resolves when the other side is gone, which one that only says no more is not. May be cancelled.
    pub(crate) fn hung_up(&self) -> impl Future<Output = ()> + use<> {
        hung_up(&self.stream)
    }

    /// Resolves when the other side is gone or says no more; it sends nothing before that. May be cancelled.
    pub(crate) async fn closed(&mut self) {
        let mut byte = [0; 1];
        // Anything but the end is against the protocol and ends it too.
        let _ = self.stream.read(&mut byte).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_arrive_one_by_one_and_a_long_one_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Jsonl::new(a, 100), Jsonl::new(b, 100));
        a.send(&1).await.unwrap();
        a.send(&"two").await.unwrap();
        assert_eq!(b.receive::<u32>().await.unwrap(), Some(1));
        assert_eq!(b.receive::<String>().await.unwrap(), Some("two".to_owned()));
        a.send(&"x".repeat(200)).await.unwrap();
        assert!(matches!(b.receive::<String>().await, Err(JsonlError::Length(_))));
        drop(a);
        assert!(b.receive::<u32>().await.is_err());
    }
}
