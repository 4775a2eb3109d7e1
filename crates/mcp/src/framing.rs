//! Messages on a byte stream: one line of JSON each, as the stdio transport of MCP says.
//!
//! What is no JSON object is handed out as garbage and the stream goes on: servers print things. A line
//! over the limit ends it, because what follows cannot be trusted to be the start of a message.

use std::borrow::Cow;
use std::io;

use casemate_proto::limits::MCP_MESSAGE_BYTES;
use casemate_proto::line::LineBuffer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::envelope::{Invalid, Message};

/// How much of a line that is no message is kept for the log.
pub const PREVIEW_BYTES: usize = 1024;

const READ_BYTES: usize = 64 << 10;

/// One line of the stream.
#[derive(Debug)]
pub enum Incoming {
    /// A message.
    Message(Message),
    /// A line that is none.
    Rejected(Rejected),
}

/// A line that is no message.
#[derive(Debug)]
pub struct Rejected {
    /// Why; [`Invalid::is_garbage`] tells a stray print from a broken message.
    pub reason: Invalid,
    /// The start of the line, at most [`PREVIEW_BYTES`] of it. It may hold control characters.
    pub preview: String,
    /// How long the line is.
    pub bytes: usize,
}

/// Why a stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A line was longer than the limit.
    #[error("message longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The stream broke.
    #[error("cannot read messages")]
    Io(#[source] io::Error),
}

/// Reads messages.
#[derive(Debug)]
pub struct MessageReader<R> {
    stream: R,
    lines: LineBuffer,
    chunk: Box<[u8]>,
    ended: bool,
}

impl<R: AsyncRead + Unpin> MessageReader<R> {
    /// Reads messages of at most [`MCP_MESSAGE_BYTES`].
    pub fn new(stream: R) -> Self {
        Self::with_limit(stream, MCP_MESSAGE_BYTES)
    }

    /// Reads messages of at most `limit` bytes.
    pub fn with_limit(stream: R, limit: usize) -> Self {
        let chunk = vec![0; READ_BYTES].into_boxed_slice();
        Self { stream, lines: LineBuffer::new(limit), chunk, ended: false }
    }

    /// The next line that is not blank; `None` at the end of the stream. A last line without a newline
    /// counts. May be cancelled: nothing that was read is lost.
    pub async fn next(&mut self) -> Result<Option<Incoming>, ReadError> {
        loop {
            while let Some(line) =
                self.lines.next_line().map_err(|error| ReadError::TooLong { limit: error.limit })?
            {
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(Incoming::read(line)));
                }
            }
            if self.ended {
                return Ok(None);
            }
            match self.stream.read(&mut self.chunk).await.map_err(ReadError::Io)? {
                0 => {
                    self.ended = true;
                    self.lines.push(b"\n");
                }
                read => self.lines.push(&self.chunk[..read]),
            }
        }
    }
}

impl Incoming {
    fn read(line: &[u8]) -> Self {
        match Message::parse(line) {
            Ok(message) => Self::Message(message),
            Err(reason) => {
                let preview = &line[..line.len().min(PREVIEW_BYTES)];
                let preview = String::from_utf8_lossy(preview).into_owned();
                Self::Rejected(Rejected { reason, preview, bytes: line.len() })
            }
        }
    }
}

/// Writes one message as one line and flushes it. Not to be cancelled: half a line would corrupt the stream.
///
/// `message` is valid JSON, so line breaks in it stand between tokens; they become spaces.
pub async fn write_message<W: AsyncWrite + Unpin>(stream: &mut W, message: &str) -> io::Result<()> {
    let mut line = one_line(message).into_owned();
    line.push('\n');
    stream.write_all(line.as_bytes()).await?;
    stream.flush().await
}

/// `message` without line breaks. A carriage return is one too: Python's text streams split lines at it.
pub fn one_line(message: &str) -> Cow<'_, str> {
    if message.contains(['\n', '\r']) { message.replace(['\n', '\r'], " ").into() } else { message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8], limit: usize) -> (Vec<String>, Option<ReadError>) {
        let mut reader = MessageReader::with_limit(bytes, limit);
        let mut seen = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(Incoming::Message(message))) => seen.push(message.into_text()),
                Ok(Some(Incoming::Rejected(line))) => seen.push(format!("!{}", line.preview)),
                Ok(None) => return (seen, None),
                Err(error) => return (seen, Some(error)),
            }
        }
    }

    const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

    #[tokio::test]
    async fn garbage_does_not_hide_what_follows() {
        let stream = format!("starting\n\n{PING}\r\n \t\n[1]\n\u{0}\n{PING}");
        let (seen, error) = read_all(stream.as_bytes(), 1000).await;
        assert_eq!(seen, ["!starting", &format!("{PING}\r"), "![1]", "!\0", PING]);
        assert!(error.is_none());
        let (seen, _) = read_all(b"\xff\xfe{}\n", 1000).await;
        assert_eq!(seen, ["!\u{fffd}\u{fffd}{}"]);
    }

    #[tokio::test]
    async fn an_unfinished_message_is_no_message() {
        let (seen, error) = read_all(&PING.as_bytes()[..20], 1000).await;
        assert_eq!(seen, [format!("!{}", &PING[..20])]);
        assert!(error.is_none());
    }

    #[tokio::test]
    async fn a_line_over_the_limit_ends_the_stream() {
        let stream = format!("{PING}\n{}", "x".repeat(PING.len() + 1));
        let (seen, error) = read_all(stream.as_bytes(), PING.len()).await;
        assert_eq!(seen, [PING]);
        assert!(matches!(error, Some(ReadError::TooLong { .. })));
    }

    #[tokio::test]
    async fn previews_are_bounded() {
        let line = "é".repeat(PREVIEW_BYTES);
        let mut reader = MessageReader::new(line.as_bytes());
        let Ok(Some(Incoming::Rejected(rejected))) = reader.next().await else { panic!("no garbage") };
        assert_eq!(rejected.bytes, 2 * PREVIEW_BYTES);
        assert_eq!(rejected.preview, "é".repeat(PREVIEW_BYTES / 2));
        assert!(rejected.reason.is_garbage());
    }

    #[tokio::test]
    async fn line_breaks_between_tokens_become_spaces() {
        let mut written = Vec::new();
        write_message(&mut written, "{\n\"a\":\r\n\"\\n\"}").await.unwrap();
        assert_eq!(written, b"{ \"a\":  \"\\n\"}\n");
    }
}
