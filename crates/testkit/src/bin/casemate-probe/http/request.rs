//! Reads HTTP/1.1 requests: bounded in size and time, and refused where two readers could disagree.

use super::After;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// The longest head, in bytes.
const HEAD_BYTES: usize = 16 << 10;

/// The most header fields.
const HEADERS: usize = 64;

/// The longest body, in bytes: the longest message.
const BODY_BYTES: usize = casemate_proto::limits::MCP_MESSAGE_BYTES;

/// How long a whole request may take to arrive, or its first byte to follow an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long, and how much, is read after a refusal, so that the client sees it before the connection resets.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 32 << 20;

/// Fields that must not be repeated: what is believed would depend on the reader.
const SINGLE: [&str; 11] = [
    "host",
    "origin",
    "accept",
    "content-type",
    "content-length",
    "transfer-encoding",
    "expect",
    "mcp-session-id",
    "mcp-protocol-version",
    "mcp-method",
    "mcp-name",
];

/// A request.
#[derive(Debug)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its body.
    pub body: Vec<u8>,
    /// Whether the client wants to go on after it.
    pub after: After,
    target: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The field of that name, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Why a request was not taken; the connection ends with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status to answer with.
    pub status: u16,
    /// Why.
    pub reason: &'static str,
}

impl Refusal {
    fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }
}

/// Either the connection failed, or what came is refused.
enum Trouble {
    Io(io::Error),
    Refused(Refusal),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn refuse<T>(status: u16, reason: &'static str) -> Result<T, Trouble> {
    Err(Trouble::Refused(Refusal::new(status, reason)))
}

/// Reads one request after the other from a connection.
pub struct Reader<'a> {
    stream: &'a TcpStream,
    /// What was received and not used yet.
    held: Vec<u8>,
    deadline: Instant,
}

impl<'a> Reader<'a> {
    /// A reader of a fresh connection.
    pub fn new(stream: &'a TcpStream) -> Self {
        Self { stream, held: Vec::new(), deadline: Instant::now() }
    }

    /// The next request; `None` when the client has closed the connection between two of them.
    pub fn next(&mut self) -> io::Result<Option<Result<Request, Refusal>>> {
        self.deadline = Instant::now() + PATIENCE;
        match self.read_request() {
            Ok(request) => Ok(request.map(Ok)),
            Err(Trouble::Refused(refusal)) => Ok(Some(Err(refusal))),
            Err(Trouble::Io(error)) => Err(error),
        }
    }

    /// Lets the client read the last answer although it may still be sending.
    pub fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.deadline = Instant::now() + LINGER;
        let mut read = 0;
        while read < LINGER_BYTES {
            self.held.clear();
            match self.fill()? {
                0 => break,
                more => read += more,
            }
        }
        Ok(())
    }

    fn read_request(&mut self) -> Result<Option<Request>, Trouble> {
        let mut request = loop {
            match parse_head(&self.held)? {
                Some((request, length)) => {
                    self.held.drain(..length);
                    break request;
                }
                None if self.held.len() > HEAD_BYTES => return refuse(431, "the head is too long"),
                None => {
                    if self.fill()? == 0 {
                        return if self.held.is_empty() { Ok(None) } else { refuse(400, "half a request") };
                    }
                }
            }
        };
        let length = body_length(&request)?;
        if length != Length::Known(0)
            && request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            let mut stream = self.stream;
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        request.body = match length {
            Length::Known(length) => self.take(length)?,
            Length::Chunked => self.read_chunks()?,
        };
        Ok(Some(request))
    }

    fn read_chunks(&mut self) -> Result<Vec<u8>, Trouble> {
        let mut body = Vec::new();
        loop {
            let line = self.read_line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            if size.is_empty() || size.len() > 8 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return refuse(400, "a malformed chunk");
            }
            let Ok(size) = usize::from_str_radix(size, 16) else { return refuse(400, "a malformed chunk") };
            if size == 0 {
                break;
            }
            if body.len() + size > BODY_BYTES {
                return refuse(413, "the body is too long");
            }
            body.append(&mut self.take(size)?);
            if !self.read_line()?.is_empty() {
                return refuse(400, "a malformed chunk");
            }
        }
        for _ in 0..HEADERS {
            if self.read_line()?.is_empty() {
                return Ok(body);
            }
        }
        refuse(431, "the trailer is too long")
    }

    fn read_line(&mut self) -> Result<String, Trouble> {
        loop {
            if let Some(end) = self.held.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.held.drain(..=end).collect();
                let Some(line) = line.strip_suffix(b"\r\n") else { return refuse(400, "a malformed chunk") };
                return Ok(String::from_utf8_lossy(line).into_owned());
            }
            if self.held.len() > HEAD_BYTES {
                return refuse(431, "a line is too long");
            }
            self.fill_more()?;
        }
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, Trouble> {
        while self.held.len() < length {
            self.fill_more()?;
        }
        let rest = self.held.split_off(length);
        Ok(std::mem::replace(&mut self.held, rest))
    }

    fn fill_more(&mut self) -> Result<(), Trouble> {
        if self.fill()? == 0 { refuse(400, "half a request") } else { Ok(()) }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let before = self.held.len();
        self.held.resize(before + (64 << 10), 0);
        let mut stream = self.stream;
        let read = loop {
            match stream.read(&mut self.held[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.held.truncate(before + *read.as_ref().unwrap_or(&0));
        read
    }
}

/// Reads a head and tells its length; `None` if more bytes are needed.
fn parse_head(bytes: &[u8]) -> Result<Option<(Request, usize)>, Trouble> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES => length,
        Ok(httparse::Status::Complete(_)) => return refuse(431, "the head is too long"),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return refuse(431, "too many header fields"),
        Err(httparse::Error::Version) => return refuse(505, "only HTTP/1.1 is spoken here"),
        Err(_) => return refuse(400, "a malformed head"),
    };
    if head.version != Some(1) {
        return refuse(505, "only HTTP/1.1 is spoken here");
    }
    let headers: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned()))
        .collect();
    let repeated = |name: &&str| headers.iter().filter(|(known, _)| known == name).count() > 1;
    if SINGLE.iter().any(repeated) {
        return refuse(400, "a header field is repeated");
    }
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        target: head.path.unwrap_or_default().to_owned(),
        body: Vec::new(),
        after: After::Keep,
        headers,
    };
    let closes = request
        .header("connection")
        .is_some_and(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")));
    let after = if closes { After::Close } else { After::Keep };
    Ok(Some((Request { after, ..request }, length)))
}

/// How the length of a body is told.
#[derive(Debug, PartialEq, Eq)]
enum Length {
    Known(usize),
    Chunked,
}

fn body_length(request: &Request) -> Result<Length, Trouble> {
    match (request.header("transfer-encoding"), request.header("content-length")) {
        (Some(_), Some(_)) => refuse(400, "two lengths of the body"),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(Length::Chunked),
        (Some(_), None) => refuse(501, "only the transfer coding chunked is known here"),
        (None, None) => Ok(Length::Known(0)),
        (None, Some(length)) if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) => {
            refuse(400, "a malformed Content-Length")
        }
        // What does not fit the type is too long as well.
        (None, Some(length)) => match length.parse() {
            Ok(length) if length <= BODY_BYTES => Ok(Length::Known(length)),
            _ => refuse(413, "the body is too long"),
        },
    }
}

/// A request with these header fields, for the tests of what looks at them.
#[cfg(test)]
pub fn request_with(headers: &[(&str, &str)]) -> Request {
    let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    let (method, target) = ("POST".to_owned(), "/mcp".to_owned());
    Request { method, target, headers, body: Vec::new(), after: After::Keep }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;
    use std::thread;

    /// What a reader makes of these bytes, which come in two pieces and are then followed by the end.
    fn read(bytes: &[u8], cut: usize) -> Vec<Result<Request, Refusal>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut client = TcpStream::connect(address).unwrap();
                let (first, second) = bytes.split_at(cut.min(bytes.len()));
                client.write_all(first).unwrap();
                // A reset for what was refused early is as good as an end.
                let _ = client.write_all(second);
                let _ = client.shutdown(Shutdown::Write);
                let _ = client.read_to_end(&mut Vec::new());
            });
            let (stream, _) = listener.accept().unwrap();
            let mut reader = Reader::new(&stream);
            let mut requests = Vec::new();
            while let Ok(Some(request)) = reader.next() {
                let refused = request.is_err();
                requests.push(request);
                if refused {
                    break;
                }
            }
            requests
        })
    }

    fn refused(bytes: &str) -> u16 {
        match &read(bytes.as_bytes(), 10)[..] {
            [Err(refusal)] => refusal.status,
            other => panic!("{bytes:?} was taken as {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn any_head_is_read_or_refused(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                "(GET|POST|X) [ -~]{0,20} HTTP/1\\.[01]\r\n([A-Za-z-]{0,18}: ?[ -~]{0,20}\r\n){0,6}\r\n[a-z]{0,4}"
                    .prop_map(String::into_bytes),
            ],
        ) {
            if let Ok(Some((request, length))) = parse_head(&bytes) {
                prop_assert!(length <= bytes.len() && bytes[..length].ends_with(b"\n"));
                prop_assert!(!request.method.is_empty());
                // The length is decided or refused, never guessed.
                let _ = body_length(&request);
            }
        }
    }

    #[test]
    fn requests_follow_each_other_however_they_are_cut() {
        let bytes = b"POST /mcp?x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab\
            POST /mcp HTTP/1.1\r\nhost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\ncde\r\n1\r\nf\r\n0\r\nT: t\r\n\r\n\
            GET / HTTP/1.1\r\nConnection: keep-alive, Close\r\n\r\n";
        for cut in (1..bytes.len()).step_by(7) {
            let requests: Vec<Request> = read(bytes, cut).into_iter().map(Result::unwrap).collect();
            let bodies: Vec<&[u8]> = requests.iter().map(|request| &request.body[..]).collect();
            assert_eq!(bodies, [&b"ab"[..], b"cdef", b""], "cut at {cut}");
            assert_eq!(requests[0].path(), "/mcp");
            assert_eq!(requests[0].header("host"), Some("h"));
            assert_eq!(requests[2].after, After::Close);
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let head = "POST /mcp HTTP/1.1\r\nHost: h\r\n";
        assert_eq!(refused(&format!("{head}Content-Length: 2\r\nContent-Length: 2\r\n\r\nab")), 400);
        assert_eq!(refused(&format!("{head}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nab")), 400);
        assert_eq!(refused(&format!("{head}Content-Length: +2\r\n\r\nab")), 400);
        assert_eq!(refused(&format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n")), 501);
        assert_eq!(refused(&format!("{head}Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n")), 400);
        assert_eq!(refused(&format!("{head}Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n")), 400);
        assert_eq!(refused(&format!("{head}Host: i\r\n\r\n")), 400);
        assert_eq!(refused("GET / HTTP/1.0\r\n\r\n"), 505);
        assert_eq!(refused("nonsense\r\n\r\n"), 400);
        assert_eq!(refused(&format!("{head}Content-Length: 5\r\n\r\nab")), 400);
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let head = "POST /mcp HTTP/1.1\r\nHost: h\r\n";
        assert_eq!(refused(&format!("{head}Content-Length: {}\r\n\r\n", BODY_BYTES + 1)), 413);
        assert_eq!(refused(&format!("{head}Content-Length: {}\r\n\r\n", "9".repeat(40))), 413);
        assert_eq!(refused(&format!("{head}Transfer-Encoding: chunked\r\n\r\nffffffff\r\n")), 413);
        assert_eq!(refused(&format!("{head}X: {}\r\n\r\n", "x".repeat(HEAD_BYTES))), 431);
        let fields: String = (0..=HEADERS).map(|number| format!("X{number}: x\r\n")).collect();
        assert_eq!(refused(&format!("{head}{fields}\r\n")), 431);
    }
}
