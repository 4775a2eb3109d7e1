//! The handshake that asks a Unix socket for a port, as Firecracker's vsock device defined it
//! (`docs/vsock.md`, "Host-initiated connections").
//!
//! ```text
//! client                      server
//!  CONNECT 5252\n        ──>
//!                        <──  OK 5252\n              the stream begins with the next byte
//!                        <──  ERR busy held by …\n   casemate's own; Firecracker just closes
//! ```
//!
//! The number after `OK` is the server's affair: Firecracker answers with a port number of the host's side.

use casemate_proto::limits::HANDSHAKE_TIMEOUT;
use casemate_proto::mux::{REASON_BYTES, ResetCode};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The longest `CONNECT` line in bytes, with its newline.
pub const REQUEST_BYTES: usize = 64;

/// The longest answer in bytes, with its newline.
const REPLY_BYTES: usize = REASON_BYTES + 32;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection ended before the line did.
    #[error("connection was closed within the handshake")]
    Closed,
    /// The line did not come within [`HANDSHAKE_TIMEOUT`].
    #[error("no line within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut,
    /// The line is longer than any line of the handshake.
    #[error("line of more than {limit} bytes")]
    TooLong {
        /// The bound in bytes.
        limit: usize,
    },
    /// The line says something else.
    #[error("line {0:?} is no part of the handshake")]
    Malformed(String),
    /// The server does not take the stream.
    #[error("refused ({code:?}): {reason}")]
    Refused {
        /// Why, for programs.
        code: ResetCode,
        /// Why, for people; foreign text without control characters.
        reason: String,
    },
    /// The socket failed.
    #[error("socket failed within the handshake")]
    Io(#[from] io::Error),
}

/// Asks for a port; afterwards the stream belongs to that port.
///
/// The stream is of no use after an error or a cancellation.
pub async fn request(stream: &mut UnixStream, port: u32) -> Result<(), HandshakeError> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let line = read_line(stream, REPLY_BYTES).await?;
    if line.strip_prefix("OK ").and_then(parse_port).is_some() {
        return Ok(());
    }
    let refused = line.strip_prefix("ERR ").and_then(|rest| {
        let (word, reason) = rest.split_once(' ')?;
        Some((parse_code(word)?, printable(reason)))
    });
    match refused {
        Some((code, reason)) => Err(HandshakeError::Refused { code, reason }),
        None => Err(HandshakeError::Malformed(line)),
    }
}

/// Reads a client's `CONNECT` line and returns the port; not one byte after the line is read.
///
/// The stream is of no use after an error or a cancellation.
pub async fn read_connect(stream: &mut UnixStream) -> Result<u32, HandshakeError> {
    let line = read_line(stream, REQUEST_BYTES).await?;
    match line.strip_prefix("CONNECT ").and_then(parse_port) {
        Some(port) => Ok(port),
        None => Err(HandshakeError::Malformed(line)),
    }
}

/// Tells a client that the stream belongs to the port now.
pub async fn reply_ok(stream: &mut UnixStream, port: u32) -> io::Result<()> {
    stream.write_all(format!("OK {port}\n").as_bytes()).await
}

/// Tells a client why it does not get the stream. The reason is cut at [`REASON_BYTES`].
pub async fn reply_refused(stream: &mut UnixStream, code: ResetCode, reason: &str) -> io::Result<()> {
    let reason = printable(&reason[..reason.floor_char_boundary(REASON_BYTES)]);
    // A replaced control character grows from one byte to three.
    let reason = &reason[..reason.floor_char_boundary(REASON_BYTES)];
    stream.write_all(format!("ERR {} {reason}\n", code_word(code)).as_bytes()).await
}

/// Reads byte by byte, because whatever follows the newline is the stream's and a socket takes nothing back.
async fn read_line(stream: &mut UnixStream, limit: usize) -> Result<String, HandshakeError> {
    let reading = async {
        let mut line = Vec::with_capacity(limit);
        loop {
            let mut byte = [0];
            if stream.read(&mut byte).await? == 0 {
                return Err(HandshakeError::Closed);
            }
            if byte[0] == b'\n' {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte[0]);
            if line.len() >= limit {
                return Err(HandshakeError::TooLong { limit });
            }
        }
    };
    timeout(HANDSHAKE_TIMEOUT, reading).await.unwrap_or(Err(HandshakeError::TimedOut))
}

/// Digits and nothing else; `u32::from_str` alone would take a sign.
fn parse_port(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn code_word(code: ResetCode) -> &'static str {
    match code {
        ResetCode::Refused => "refused",
        ResetCode::Busy => "busy",
        ResetCode::Gone => "gone",
        ResetCode::Protocol => "protocol",
        ResetCode::Internal => "internal",
    }
}

fn parse_code(word: &str) -> Option<ResetCode> {
    use ResetCode::{Busy, Gone, Internal, Protocol, Refused};
    [Refused, Busy, Gone, Protocol, Internal].into_iter().find(|&code| code_word(code) == word)
}

/// Foreign text goes to terminals and logs: no control characters, and so no newline and no escape.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
