//! The first message of a TLS client, as far as it says which server it is for (RFC 8446, section 4.1.2;
//! RFC 6066, section 3).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::timeout,
};

/// The longest first message that is read, with the headers of its records: post-quantum keys take 2 KiB.
const HELLO_BYTES: usize = 32 << 10;

/// The first byte of a record that holds a handshake message (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// How long it may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a client's first message does not say which server it is for.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    /// It did not come in time.
    #[error("no TLS handshake came within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// The client ended before.
    #[error("client ended before its TLS handshake")]
    Ended,
    /// It is something else.
    #[error("what was sent is no TLS handshake")]
    NotTls,
    /// It names nobody.
    #[error("TLS handshake names no server")]
    NoName,
    /// It names somebody else.
    #[error("its TLS handshake is for {named}")]
    Other {
        /// Whom.
        named: String,
    },
    /// The stream broke.
    #[error("stream broke")]
    Io(#[source] io::Error),
}

/// Reads the first message; gives back the name in it, in lowercase, and all that was read.
pub(super) async fn read(client: &mut (impl AsyncRead + Unpin)) -> Result<(String, Vec<u8>), HelloError> {
    let reading = async {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match parse(&bytes) {
                Parsed::Name(name) => return Ok((name, bytes)),
                Parsed::NoName => return Err(HelloError::NoName),
                Parsed::NotTls => return Err(HelloError::NotTls),
                Parsed::More if bytes.len() > HELLO_BYTES => return Err(HelloError::NotTls),
                Parsed::More => {}
            }
            match client.read(&mut chunk).await.map_err(HelloError::Io)? {
                0 => return Err(HelloError::Ended),
                read => bytes.extend_from_slice(&chunk[..read]),
            }
        }
    };
    timeout(PATIENCE, reading).await.unwrap_or(Err(HelloError::TimedOut))
}

/// A stream of a guest on a port where TLS may be spoken and need not: if its first byte is that of a TLS
/// handshake, nothing of it is read before it has named the server that is expected. What begins otherwise is
/// read as it comes, and what the server says, be it first, passes at any time.
///
/// An error of a read is a [`HelloError`]. TLS that begins after words in another protocol (`STARTTLS`) is not
/// seen.
#[derive(Debug)]
pub(super) struct Guarded<T> {
    io: T,
    expected: String,
    beginning: Beginning,
}

/// What is known of the beginning of a stream.
#[derive(Debug)]
enum Beginning {
    /// These bytes do not say yet what they are.
    Held(Vec<u8>),
    /// These may pass, from that one on.
    Passing(Vec<u8>, usize),
    /// There is no more of it.
    Over,
}

impl<T> Guarded<T> {
    /// A stream of which nothing was read, for a server of this name, in lowercase.
    pub(super) fn new(io: T, expected: &str) -> Self {
        Self { io, expected: expected.to_owned(), beginning: Beginning::Held(Vec::new()) }
    }
}

/// Whether a stream that begins so may pass, if that can be told.
fn judge(bytes: &[u8], expected: &str) -> Result<bool, HelloError> {
    match parse(bytes) {
        // Servers differ in how much else of a record they look at.
        _ if bytes.first().is_some_and(|&first| first != HANDSHAKE) => Ok(true),
        Parsed::Name(named) if named == expected => Ok(true),
        Parsed::Name(named) => Err(HelloError::Other { named }),
        Parsed::NoName => Err(HelloError::NoName),
        Parsed::NotTls => Err(HelloError::NotTls),
        Parsed::More if bytes.len() > HELLO_BYTES => Err(HelloError::NotTls),
        Parsed::More => Ok(false),
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.beginning {
                Beginning::Over => return Pin::new(&mut this.io).poll_read(cx, buf),
                Beginning::Passing(bytes, at) => {
                    let passed = buf.remaining().min(bytes.len() - *at);
                    buf.put_slice(&bytes[*at..*at + passed]);
                    *at += passed;
                    if *at == bytes.len() {
                        this.beginning = Beginning::Over;
                    }
                    return Poll::Ready(Ok(()));
                }
                Beginning::Held(bytes) => {
                    let mut chunk = [0; 4096];
                    let mut chunk = ReadBuf::new(&mut chunk);
                    ready!(Pin::new(&mut this.io).poll_read(cx, &mut chunk))?;
                    if chunk.filled().is_empty() {
                        let at_end = if bytes.is_empty() { Ok(()) } else { Err(HelloError::Ended) };
                        return Poll::Ready(at_end.map_err(io::Error::other));
                    }
                    bytes.extend_from_slice(chunk.filled());
                    if judge(bytes, &this.expected).map_err(io::Error::other)? {
                        this.beginning = Beginning::Passing(std::mem::take(bytes), 0);
                    }
                }
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// What bytes say about the server they are for.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// More of them are needed.
    More,
    Name(String),
    NoName,
    NotTls,
}

fn parse(bytes: &[u8]) -> Parsed {
    let message = match handshake(bytes) {
        Ok(message) => message,
        Err(parsed) => return parsed,
    };
    match server_name(&message) {
        Some(Some(name)) => Parsed::Name(name),
        Some(None) => Parsed::NoName,
        None => Parsed::NotTls,
    }
}

/// The first handshake message, put together from records (RFC 8446, section 5.1).
fn handshake(mut bytes: &[u8]) -> Result<Vec<u8>, Parsed> {
    const CLIENT_HELLO: u8 = 1;
    const RECORD_BYTES: usize = 1 << 14;
    let mut message = Vec::new();
    loop {
        if let [kind, high, middle, low, ..] = message[..] {
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if kind != CLIENT_HELLO || length > HELLO_BYTES {
                return Err(Parsed::NotTls);
            }
            if message.len() >= 4 + length {
                return Ok(message[4..4 + length].to_vec());
            }
        }
        match *bytes {
            [] => return Err(Parsed::More),
            [kind, ..] if kind != HANDSHAKE => return Err(Parsed::NotTls),
            [_, major, ..] if major != 3 => return Err(Parsed::NotTls),
            [_, _, _, high, low, ref rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                if length == 0 || length > RECORD_BYTES {
                    return Err(Parsed::NotTls);
                }
                let Some((fragment, after)) = rest.split_at_checked(length) else { return Err(Parsed::More) };
                message.extend_from_slice(fragment);
                bytes = after;
            }
            _ => return Err(Parsed::More),
        }
    }
}

/// The name in a `ClientHello`; the outer `None` is for what is none.
fn server_name(hello: &[u8]) -> Option<Option<String>> {
    const SERVER_NAME: u16 = 0;
    let mut hello = Reader(hello);
    // Version and random numbers.
    hello.take(2 + 32)?;
    hello.vector8()?; // session
    hello.vector16()?; // cipher suites
    hello.vector8()?; // compression methods
    if hello.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(hello.vector16()?);
    let mut names = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.vector16()?;
        // Two of one kind are forbidden, and would be two answers to one question.
        if kind == SERVER_NAME && names.replace(content).is_some() {
            return None;
        }
    }
    let Some(names) = names else { return Some(None) };
    let mut list = Reader(Reader(names).vector16().filter(|list| list.len() + 2 == names.len())?);
    let kind = list.take(1)?[0];
    let name = list.vector16()?;
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    // One name of the one kind that there is.
    if kind != 0 || !list.0.is_empty() || name.is_empty() || !name.iter().copied().all(known) {
        return None;
    }
    String::from_utf8(name.to_ascii_lowercase()).ok().map(Some)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    fn vector16(content: &[u8]) -> Vec<u8> {
        [&(content.len() as u16).to_be_bytes()[..], content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector16(content)].concat()
    }

    fn name(name: &str) -> Vec<u8> {
        let entry = [&[0][..], &vector16(name.as_bytes())].concat();
        extension(0, &vector16(&entry))
    }

    fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut hello = vec![3, 3];
        hello.extend([7; 32]);
        hello.push(0);
        hello.extend(vector16(&[0x13, 0x01]));
        hello.extend([1, 0]);
        hello.extend(vector16(&extensions.concat()));
        let length = (hello.len() as u32).to_be_bytes();
        [&[1], &length[1..], &hello].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &vector16(part)].concat()).collect()
    }

    /// What a client sends first that wants to speak with that server.
    pub fn client_hello(server: &str) -> Vec<u8> {
        records(&message(&[extension(43, &[2, 3, 4]), name(server)]), 1 << 14)
    }

    #[test]
    fn a_name_is_found_however_the_message_is_cut() {
        let whole = message(&[extension(10, &[0, 0]), name("API.Example"), extension(51, &[0; 1500])]);
        for size in [1, 7, 600, 1 << 14] {
            let bytes = records(&whole, size);
            assert_eq!(parse(&bytes), Parsed::Name("api.example".to_owned()), "{size}");
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Parsed::More, "{size}, {end}");
            }
        }
    }

    #[test]
    fn what_names_nobody_or_two_is_told_apart() {
        let parsed = |extensions: &[Vec<u8>]| parse(&records(&message(extensions), 1 << 14));
        assert_eq!(parsed(&[extension(10, &[0, 0])]), Parsed::NoName);
        assert_eq!(parsed(&[name("a.example"), name("b.example")]), Parsed::NotTls);
        assert_eq!(parsed(&[name("")]), Parsed::NotTls);
        assert_eq!(parsed(&[name("a.example\0b")]), Parsed::NotTls);
        assert_eq!(parsed(&[extension(0, &[0, 9, 0, 0, 1, b'a'])]), Parsed::NotTls);
        assert_eq!(parse(b"GET / HTTP/1.1\r\n\r\n"), Parsed::NotTls);
        assert_eq!(parse(b"\x16\x02"), Parsed::NotTls);
        assert_eq!(parse(&[22, 3, 1, 0, 0]), Parsed::NotTls);
        assert_eq!(parse(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Parsed::NotTls);
        assert_eq!(parse(&[22, 3, 1, 0, 4, 1, 255, 255, 255]), Parsed::NotTls);
    }

    #[tokio::test]
    async fn all_that_was_read_is_given_back() {
        let bytes = [&client_hello("a.example")[..], b"more"].concat();
        let (name, read) = read(&mut &bytes[..]).await.unwrap();
        assert_eq!((name.as_str(), read), ("a.example", bytes));
        assert!(matches!(super::read(&mut &b"\x16\x03"[..]).await, Err(HelloError::Ended)));
    }

    /// What a guarded stream lets through of these bytes, which come one piece at a time; and why it ends.
    async fn passed(pieces: &[&[u8]]) -> (Vec<u8>, Option<String>) {
        let (mut guest, guarded) = tokio::io::duplex(1 << 16);
        let mut guarded = Guarded::new(guarded, "a.example");
        let saying = async {
            for piece in pieces {
                guest.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(guest);
        };
        let mut through = Vec::new();
        let ((), read) = tokio::join!(saying, guarded.read_to_end(&mut through));
        (through, read.err().map(|error| error.to_string()))
    }

    #[tokio::test]
    async fn tls_with_another_server_is_stopped_on_a_port_where_others_speak_something_else() {
        let (right, wrong) = (client_hello("a.example"), client_hello("b.example"));
        for cut in [1, 5, right.len() - 1, right.len()] {
            let (begin, end) = right.split_at(cut);
            let (through, ended) = passed(&[begin, end, b"\x16more"]).await;
            assert_eq!((through, ended), ([&right[..], b"\x16more"].concat(), None), "{cut}");
            let (begin, end) = wrong.split_at(cut);
            let (through, ended) = passed(&[begin, end, b"more"]).await;
            assert_eq!(
                (&through[..], ended.as_deref()),
                (&b""[..], Some("its TLS handshake is for b.example"))
            );
        }
        for text in [&b"SSH-2.0-x\r\n"[..], b"x", b"\x17\x03", b"", &[b"x", &wrong[..]].concat()] {
            assert_eq!(passed(&[text]).await, (text.to_vec(), None));
        }
        // Go's servers take any low version of a record.
        let odd = [&[22, 2], &wrong[2..]].concat();
        for nonsense in [&odd[..], &right[..9], b"\x16x"] {
            let (through, ended) = passed(&[nonsense]).await;
            assert!(through.is_empty() && ended.is_some(), "{nonsense:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_speaks_first_is_heard_and_answered() {
        let (mut guest, guarded) = tokio::io::duplex(1 << 16);
        let (mut outside, mut server) = tokio::io::duplex(1 << 16);
        let mut guarded = Guarded::new(guarded, "a.example");
        let carrying = tokio::io::copy_bidirectional(&mut guarded, &mut outside);
        let speaking = async {
            let mut line = [0; 5];
            server.write_all(b"hello").await.unwrap();
            guest.read_exact(&mut line).await.unwrap();
            guest.write_all(&line).await.unwrap();
            server.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"hello");
            drop((guest, server));
        };
        let (carried, ()) = tokio::join!(carrying, speaking);
        carried.unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..120, with in any::<u8>()) {
            let _ = parse(&bytes);
            let _ = server_name(&bytes);
            let mut hello = client_hello("a.example");
            let at = at.min(hello.len() - 1);
            hello[at] = with;
            let _ = parse(&hello);
        }
    }
}
