//! Writes HTTP/1.1 responses: whole ones, and event streams.

use super::After;
use serde_json::Value;
use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long a client may take to accept bytes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A response that is known as a whole.
#[derive(Debug)]
pub struct Response {
    /// Its status.
    pub status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Response {
    /// A response without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// A refusal in words.
    pub fn text(status: u16, reason: &str) -> Self {
        let body = format!("{reason}\n").into_bytes();
        Self { body, ..Self::empty(status) }.header("Content-Type", "text/plain; charset=utf-8")
    }

    /// A message.
    pub fn json(status: u16, message: &Value) -> Self {
        let body = message.to_string().into_bytes();
        Self { body, ..Self::empty(status) }.header("Content-Type", "application/json")
    }

    /// The same with another header field.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Writes it, and tells whether the connection goes on.
    pub fn write(&self, mut stream: &TcpStream, after: After) -> io::Result<After> {
        let mut bytes = status_line(self.status).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        // 204 has no body and must not tell its length (RFC 9110, section 8.6).
        if self.status != 204 {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        if after == After::Close {
            bytes.extend_from_slice(b"Connection: close\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        stream.write_all(&bytes)?;
        Ok(after)
    }
}

/// An event stream (`text/event-stream`, chunked).
pub struct Stream<'a>(&'a TcpStream);

impl<'a> Stream<'a> {
    /// Writes the head.
    pub fn start(mut stream: &'a TcpStream, headers: &[(&'static str, String)]) -> io::Result<Self> {
        let mut head = status_line(200);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(
            "Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
        );
        stream.write_all(head.as_bytes())?;
        Ok(Self(stream))
    }

    /// Writes one message.
    pub fn event(&mut self, message: &Value) -> io::Result<()> {
        // JSON without line breaks, as serde_json writes it, is one line of data.
        let event = format!("event: message\ndata: {message}\n\n");
        let mut chunk = format!("{:x}\r\n", event.len());
        chunk.push_str(&event);
        chunk.push_str("\r\n");
        self.0.write_all(chunk.as_bytes())
    }

    /// Writes the end.
    pub fn finish(self) -> io::Result<()> {
        let mut stream = self.0;
        stream.write_all(b"0\r\n\r\n")
    }
}

fn status_line(status: u16) -> String {
    let reason = match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        409 => "Conflict",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        // The reason phrase may be empty (RFC 9112, section 4).
        _ => "",
    };
    format!("HTTP/1.1 {status} {reason}\r\n")
}
