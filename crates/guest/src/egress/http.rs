//! The HTTP proxy: `CONNECT`, and plain requests, one on each connection.

use super::head::{self, BadHead, Body, HEAD_BYTES, Head};
use super::way::{Refused, Way};
use super::{BUFFER_BYTES, PATIENCE, join};
use casemate_link::Stream;
use casemate_proto::egress::{Refusal, Request};
use std::io;
use std::time::Duration;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy_buf,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest line of a chunked body that is no data, in bytes.
const CHUNK_LINE_BYTES: u64 = 1024;

/// How long a client that is refused may go on sending.
const LINGER: Duration = Duration::from_secs(1);

/// The most lines after the last chunk.
const TRAILERS: usize = 64;

/// Serves one client to its end.
pub async fn serve(mut client: TcpStream, way: &Way) -> io::Result<()> {
    let (head, rest) = match timeout(PATIENCE, read_head(&mut client)).await?? {
        Some(read) => read,
        None => {
            return answer(&mut client, "431 Request Header Fields Too Large", "the head is too long").await;
        }
    };
    let (target, plain) = match head::parse(&head) {
        Ok(Head::Tunnel(target)) => (target, None),
        Ok(Head::Forward { target, head, body }) => (target, Some((head, body))),
        Err(BadHead(reason)) => return answer(&mut client, "400 Bad Request", reason).await,
    };
    let mut outside = match way.open(&Request::Connect(target)).await {
        Ok(outside) => outside,
        Err(Refused { code, reason }) => return answer(&mut client, status(code), &reason).await,
    };
    match plain {
        None => {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            outside.write_all(&rest).await?;
            join(&mut client, &mut outside).await
        }
        Some((head, body)) => {
            outside.write_all(&head).await?;
            exchange(client, outside, &rest, body).await
        }
    }
}

fn status(code: Refusal) -> &'static str {
    match code {
        Refusal::Denied => "403 Forbidden",
        Refusal::Unreachable => "502 Bad Gateway",
        Refusal::Busy => "503 Service Unavailable",
        Refusal::Malformed => "400 Bad Request",
    }
}

/// Reads up to the end of a head; with it comes what was read beyond. Nothing if it is too long.
async fn read_head(client: &mut TcpStream) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = head::end(&bytes) {
            let rest = bytes.split_off(end);
            return Ok(Some((bytes, rest)));
        }
        if bytes.len() > HEAD_BYTES {
            return Ok(None);
        }
        match client.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

/// One request's body and one answer. What a client sends beyond the body is no part of either, and goes
/// nowhere: a second request would otherwise reach this server, whomever it is for.
async fn exchange(mut client: TcpStream, outside: Stream, rest: &[u8], body: Body) -> io::Result<()> {
    let (from_client, mut to_client) = client.split();
    let (mut from_outside, mut to_outside) = tokio::io::split(outside);
    let mut sent = BufReader::with_capacity(BUFFER_BYTES, rest.chain(from_client));
    let asking = async {
        pass_body(&mut sent, &mut to_outside, body).await?;
        // A client that has gone and one that only says no more look the same from here. Both may be told to
        // the host, which then waits no longer than that deserves.
        copy_buf(&mut sent, &mut tokio::io::sink()).await?;
        to_outside.shutdown().await?;
        // The answer tells how it ended.
        std::future::pending().await
    };
    let answering = async {
        tokio::io::copy(&mut from_outside, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::select! {
        asked = asking => asked,
        answered = answering => answered,
    }
}

/// Passes one body and nothing after it.
async fn pass_body(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    body: Body,
) -> io::Result<()> {
    match body {
        Body::Length(length) => pass(from, to, length).await,
        Body::Chunked => pass_chunks(from, to).await,
    }
}

async fn pass(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    length: u64,
) -> io::Result<()> {
    let passed = copy_buf(&mut AsyncReadExt::take(from, length), to).await?;
    if passed == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// RFC 9112, section 7.1.
async fn pass_chunks(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    loop {
        let line = chunk_line(from).await?;
        let size = line.split(';').next().unwrap_or_default().trim_end_matches([' ', '\t']);
        let is_size = (1..=15).contains(&size.len()) && size.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size =
            u64::from_str_radix(size, 16).ok().filter(|_| is_size).ok_or(io::ErrorKind::InvalidData)?;
        // Extensions are between a client and its proxy.
        to.write_all(format!("{size:x}\r\n").as_bytes()).await?;
        if size == 0 {
            break;
        }
        pass(from, to, size).await?;
        if !chunk_line(from).await?.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        to.write_all(b"\r\n").await?;
    }
    for _ in 0..TRAILERS {
        // Trailers may be dropped, and servers differ in which they take for fields.
        if chunk_line(from).await?.is_empty() {
            return to.write_all(b"\r\n").await;
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// A line that ends with `\r\n`, without that.
async fn chunk_line(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    AsyncReadExt::take(from, CHUNK_LINE_BYTES).read_until(b'\n', &mut line).await?;
    let text = line.strip_suffix(b"\r\n").filter(|text| !text.contains(&b'\r'));
    let text = text.and_then(|text| String::from_utf8(text.to_vec()).ok());
    text.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Says why there is no connection: in the body for people, and in a field because clients that wanted a
/// tunnel show no body.
async fn answer(client: &mut TcpStream, status: &str, reason: &str) -> io::Result<()> {
    let body = format!("casemate: {reason}\n");
    let head = format!(
        "HTTP/1.1 {status}\r\nX-Casemate-Refused: {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(format!("{head}{body}").as_bytes()).await?;
    client.shutdown().await?;
    // A socket that is closed with unread bytes takes back what was said.
    let mut rest = client.take(HEAD_BYTES as u64);
    timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await?.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn passed(text: &[u8], body: Body) -> (io::Result<()>, Vec<u8>) {
        let mut to = Vec::new();
        let result = pass_body(&mut &*text, &mut to, body).await;
        (result, to)
    }

    #[tokio::test]
    async fn a_body_is_passed_and_nothing_after_it() {
        let (result, to) = passed(b"abcGET http://other/ HTTP/1.1\r\n\r\n", Body::Length(3)).await;
        assert_eq!((result.is_ok(), &to[..]), (true, &b"abc"[..]));
        let chunks =
            b"3;x=y\r\nabc\r\nA \r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nGET http://other/ HTTP/1.1\r\n\r\n";
        let (result, to) = passed(chunks, Body::Chunked).await;
        let expected = b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!((result.is_ok(), &to[..]), (true, &expected[..]));
    }

    #[tokio::test]
    async fn chunks_that_could_be_read_otherwise_are_refused() {
        for text in [
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "0x3\r\nabc\r\n0\r\n\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "\r\n",
            "10000000000000000\r\n",
            "3\r\nab",
            "0\r\nTrailer: 1\n\r\n",
            "-1\r\n",
            "3\r\r\nabc\r\n0\r\n\r\n",
        ] {
            assert!(passed(text.as_bytes(), Body::Chunked).await.0.is_err(), "{text:?} was accepted");
        }
        assert!(passed(b"ab", Body::Length(3)).await.0.is_err());
    }
}
