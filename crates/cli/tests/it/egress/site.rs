//! A site of one name: HTTP on port 80 and HTTPS on port 443 of an address of the host's loopback.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring, pki_types::PrivatePkcs8KeyDer};
use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// The most that a request's head takes.
const HEAD_BYTES: usize = 16 << 10;

const TEXT: &str = "Content-Type: text/plain\r\n";
const JSON: &str = "Content-Type: application/json\r\n";

/// What a search for repositories finds.
const FOUND: &str = r#"{"total_count": 1, "incomplete_results": false, "items": [{"id": 1, "node_id": "n",
    "name": "x", "full_name": "o/x", "private": false, "owner": {"login": "o", "id": 2, "node_id": "m",
    "avatar_url": "https://a.example/", "url": "https://a.example/", "html_url": "https://a.example/",
    "type": "User"}, "html_url": "https://a.example/", "description": "a repository of a test", "fork": false,
    "url": "https://a.example/", "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
    "pushed_at": "2026-01-01T00:00:00Z", "git_url": "g", "ssh_url": "s", "clone_url": "c",
    "default_branch": "main"}]}"#;

/// What vouches for sites, and what nobody knows who was not told.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate, as programs are given it.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    fn vouch_for(&self, name: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Python's checks are strict.
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(builder.with_single_cert(vec![certificate.der().clone()], key.into()).unwrap())
    }
}

/// A site that counts who connects. It goes on until the tests end.
pub struct Site {
    pub name: &'static str,
    pub address: Ipv4Addr,
    accepted: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Site {
    pub fn new(name: &'static str, authority: &Authority) -> Self {
        let (address, plain, secure) = listen();
        let site = Self { name, address, accepted: Arc::default(), heads: Arc::default() };
        let config = authority.vouch_for(name);
        let (heads, heard) = (Arc::clone(&site.heads), Arc::clone(&site.heads));
        site.serve(plain, move |stream| answer(stream, "http", &heads));
        site.serve(secure, move |stream| {
            let connection = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(connection, stream);
            answer(&mut stream, "https", &heard)?;
            stream.conn.send_close_notify();
            stream.flush()
        });
        site
    }

    fn serve(
        &self,
        listener: TcpListener,
        answer: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
    ) {
        let accepted = Arc::clone(&self.accepted);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accepted.fetch_add(1, SeqCst);
                let answer = answer.clone();
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                // A client that goes, or does not trust this site, is no failure of it.
                thread::spawn(move || drop(answer(stream)));
            }
        });
    }

    /// How many connections there were, on either port.
    pub fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    /// What it was sent before bodies, on either port.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Its line of `/etc/hosts`.
    pub fn line(&self) -> String {
        format!("{} {}\n", self.address, self.name)
    }

    /// What lets a machine reach it: by its name, and at an address that is not public.
    pub fn allowed(&self) -> Vec<String> {
        let entries =
            [80, 443].map(|port| [format!("{}:{port}", self.name), format!("{}:{port}", self.address)]);
        entries.concat().into_iter().flat_map(|entry| ["--allow".to_owned(), entry]).collect()
    }
}

/// Takes an address of loopback that no other test has.
fn listen() -> (Ipv4Addr, TcpListener, TcpListener) {
    for number in 1..=u8::MAX {
        let address = Ipv4Addr::new(127, 80, 0, number);
        let listen = |port| TcpListener::bind((address, port));
        match listen(80).and_then(|plain| Ok((plain, listen(443)?))) {
            Ok((plain, secure)) => return (address, plain, secure),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => panic!(
                "this test needs ports 80 and 443 of {address}, as root has them, and others with \
                 net.ipv4.ip_unprivileged_port_start=80: {error}"
            ),
        }
    }
    panic!("something listens on ports 80 or 443 of all addresses of 127.80.0.0/24");
}

/// Answers one request.
fn answer(mut stream: impl Read + Write, scheme: &str, heads: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 || head.len() == HEAD_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    heads.lock().unwrap().push(head.to_string());
    let path = head.split(' ').nth(1).unwrap_or_default();
    let (status, fields, body) = match path {
        "/robots.txt" => ("200 OK", TEXT, "User-agent: *\nDisallow: /closed\n".to_owned()),
        "/moved" => ("302 Found", "Location: http://other.example.test/\r\n", String::new()),
        // As GitHub's interface answers.
        path if path.starts_with("/search/repositories?") => ("200 OK", JSON, FOUND.to_owned()),
        path => ("200 OK", TEXT, format!("{path} by {scheme}, from outside")),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{fields}\
         Connection: close\r\n\r\n{body}"
    )?;
    stream.flush()
}
