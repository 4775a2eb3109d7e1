//! Secrets put into requests, with real TLS on both sides: a server outside with an authority of its own, and a
//! guest that trusts its machine's.

use super::*;
use crate::secret::SecretText;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

const NAME: &str = "api.example";
const WORD: &str = "casemate-placeholder-00";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// An authority of the world outside.
fn world() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn acceptor(world: &CertifiedIssuer<'static, KeyPair>, name: &str) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, world).unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// A server that answers each request with what it was sent, in the body of its answer.
async fn mirror(world: &CertifiedIssuer<'static, KeyPair>, name: &str) -> SocketAddr {
    let (acceptor, listener) = (acceptor(world, name), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                while let Some(head) = head_of(&mut stream).await {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The head of the next request or answer, and nothing behind it.
async fn head_of(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// What comes until the stream ends, or breaks.
async fn rest_of(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut rest = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        rest.push(byte);
    }
    String::from_utf8(rest).unwrap()
}

fn metered(stream: TcpStream) -> Metered {
    Metered::new(stream, Meter::new(u64::MAX))
}

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

fn swap(world: &CertifiedIssuer<'static, KeyPair>, to: &str) -> Swap {
    let secret = Swapped {
        name: "TOKEN".into(),
        placeholder: WORD.into(),
        value: SecretText::new("hunter2".into()).unwrap(),
        to: vec![to.parse().unwrap()],
    };
    Swap::trusting(vec![secret], vec![world.der().clone()]).unwrap()
}

/// A guest's TLS, that trusts its machine's authority, or the one of another.
async fn guest(
    trust: &Trust,
    name: &str,
    stream: DuplexStream,
) -> io::Result<tokio_rustls::client::TlsStream<DuplexStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trust.authority.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// What a guest is answered to these bytes, and which secrets went out.
async fn exchange(swap: &Swap, to: &Target, at: SocketAddr, sent: &str) -> (String, Vec<String>) {
    let (answer, used, _) = exchanged(swap, to, at, sent).await;
    (answer, used)
}

/// The same, and what is written down of its end.
async fn exchanged(
    swap: &Swap,
    to: &Target,
    at: SocketAddr,
    sent: &str,
) -> (String, Vec<String>, Option<String>) {
    let outside = TcpStream::connect(at).await.unwrap();
    let bounds = Bounds::default();
    let verified = swap.verify(to, metered(outside)).await.unwrap();
    let (near, far) = tokio::io::duplex(64 << 10);
    let inside = async {
        let mut stream = guest(swap.trust(), NAME, near).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        rest_of(&mut stream).await
    };
    let carried = async {
        let accepted = swap.accept(to, far).await.unwrap();
        let used = Used::default();
        let reason = swap.carry(to, accepted, verified, &bounds, &used).await;
        (used.into_inner().unwrap().into_iter().collect(), reason)
    };
    let (answer, (used, reason)) = tokio::join!(inside, carried);
    (answer, used, reason)
}

#[tokio::test]
async fn a_secret_goes_out_in_the_place_of_its_word_and_the_guest_never_has_it() {
    let world = world();
    let (swap, to) = (swap(&world, "api.example:443"), target("api.example:443"));
    let at = mirror(&world, NAME).await;
    let request = |more: &str| format!("GET /{WORD}?q HTTP/1.1\r\nhost: evil.example\r\n{more}\r\n");
    let first = request(&format!("authorization: Bearer {WORD}\r\nconnection: x-mine\r\nx-mine: 1\r\n"));
    let second = request("connection: close\r\n");
    // Both in one go, as a client that does not wait may send them.
    let (answer, used) = exchange(&swap, &to, at, &format!("{first}{second}")).await;
    let answers: Vec<&str> = answer.split("HTTP/1.1 200 OK").collect();
    assert_eq!(answers.len(), 3, "{answer}");
    // The mirror is the server that tells: it was sent the secret, in a header field alone.
    assert!(answers[1].contains("authorization: Bearer hunter2"), "{answer}");
    assert!(answers[1].contains(&format!("GET /{WORD}?q HTTP/1.1")), "{answer}");
    assert!(answers[1].contains("host: api.example\r\n") && !answer.contains("evil"), "{answer}");
    assert!(!answer.contains("x-mine"), "{answer}");
    assert!(!answers[2].contains("hunter2"), "{answer}");
    assert_eq!(used, ["TOKEN"]);
}

#[tokio::test]
async fn the_word_of_one_targets_secret_is_a_word_to_another_target() {
    let world = world();
    let secret = |name: &str, to: &str| Swapped {
        name: name.into(),
        placeholder: format!("{WORD}-{name}"),
        value: SecretText::new(format!("hunter-{name}")).unwrap(),
        to: vec![to.parse().unwrap()],
    };
    let both = vec![secret("OURS", "api.example:443"), secret("OTHERS", "b.example:443")];
    let swap = Swap::trusting(both, vec![world.der().clone()]).unwrap();
    let request =
        format!("GET / HTTP/1.1\r\nx-a: {WORD}-OURS\r\nx-b: {WORD}-OTHERS\r\nconnection: close\r\n\r\n");
    let (at, to) = (mirror(&world, NAME).await, target("api.example:443"));
    let (answer, used) = exchange(&swap, &to, at, &request).await;
    assert!(answer.contains("x-a: hunter-OURS\r\n"), "{answer}");
    assert!(answer.contains(&format!("x-b: {WORD}-OTHERS\r\n")), "{answer}");
    assert_eq!(used, ["OURS"]);
}

#[tokio::test]
async fn a_body_is_passed_on_whatever_the_method() {
    let world = world();
    let (swap, to) = (swap(&world, "api.example:443"), target("api.example:443"));
    for method in ["GET", "POST"] {
        let at = mirror(&world, NAME).await;
        let request = format!(
            "{method} / HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        );
        let (answer, _) = exchange(&swap, &to, at, &request).await;
        assert!(answer.contains("transfer-encoding: chunked\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_secret_goes_to_no_other_target() {
    let world = world();
    let swap = swap(&world, "api.example:443");
    for other in ["b.example:443", "api.example:8443", "x.api.example:443", "127.0.0.1:443"] {
        assert!(!swap.concerns(&target(other)), "{other}");
    }
    assert!(swap.concerns(&target("api.example:443")));
}

#[tokio::test]
async fn a_server_that_is_not_who_it_should_be_hears_nothing() {
    let (trusted, other) = (world(), world());
    let (swap, to) = (swap(&trusted, "api.example:443"), target("api.example:443"));
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await
    });
    for (at, why) in [
        (mirror(&other, NAME).await, "of no authority that this host trusts"),
        (mirror(&trusted, "b.example").await, "for other names"),
        (address, "not TLS"),
    ] {
        let outside = TcpStream::connect(at).await.unwrap();
        let error = swap.verify(&to, metered(outside)).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_guest_that_wants_another_server_or_speaks_no_tls_is_refused() {
    let world = world();
    let (swap, to) = (swap(&world, "api.example:443"), target("api.example:443"));
    let (near, far) = tokio::io::duplex(64 << 10);
    let (inside, accepted) = tokio::join!(guest(swap.trust(), "b.example", near), swap.accept(&to, far));
    assert_eq!(accepted.unwrap_err().to_string(), "its TLS handshake is for b.example");
    assert!(inside.is_err());

    let (mut near, far) = tokio::io::duplex(64 << 10);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(swap.accept(&to, far).await.unwrap_err().to_string().contains("not TLS"));
}

/// A server that answers and is gone, without the words with which TLS ends.
async fn abrupt(world: &CertifiedIssuer<'static, KeyPair>, answer: &'static str) -> SocketAddr {
    let (acceptor, listener) = (acceptor(world, NAME), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        head_of(&mut stream).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    });
    address
}

#[tokio::test]
async fn an_answer_is_passed_on_though_its_server_is_gone() {
    let world = world();
    let (swap, to) = (swap(&world, "api.example:443"), target("api.example:443"));
    for (said, reason) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", None),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello", Some("did not tell")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello", Some("in the middle")),
    ] {
        let at = abrupt(&world, said).await;
        let (answer, _, ended) = exchanged(&swap, &to, at, "GET / HTTP/1.1\r\n\r\n").await;
        assert!(answer.contains("hello"), "{answer:?}");
        match (reason, &ended) {
            (None, None) => {}
            (Some(reason), Some(ended)) if ended.contains(reason) => {}
            _ => panic!("{said:?}: {ended:?}"),
        }
    }
}

/// A program that asked, and did not wait, holds nobody's place.
#[tokio::test]
async fn a_program_that_has_gone_ends_its_request() {
    let world = world();
    let (swap, to) = (swap(&world, "api.example:443"), target("api.example:443"));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, acceptor) = (silent.local_addr().unwrap(), acceptor(&world, NAME));
    let asked = tokio::spawn(async move {
        let (stream, _) = silent.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        head_of(&mut stream).await.unwrap();
        stream
    });
    let verified = swap.verify(&to, metered(TcpStream::connect(at).await.unwrap())).await.unwrap();
    let (near, far) = tokio::io::duplex(64 << 10);
    let inside = async {
        let mut stream = guest(swap.trust(), NAME, near).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let _held = asked.await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        // The server outside goes on.
        std::future::pending::<()>().await
    };
    let carried = async {
        let accepted = swap.accept(&to, far).await.unwrap();
        swap.carry(&to, accepted, verified, &Bounds::default(), &Used::default()).await
    };
    tokio::select! {
        () = inside => {}
        ended = timeout(Duration::from_secs(20), carried) => drop(ended.expect("it is waited for")),
    }
}

#[tokio::test]
async fn nonsense_from_the_guest_reaches_nobody() {
    let world = world();
    let (swap, to) = (swap(&world, "api.example:443"), target("api.example:443"));
    let at = mirror(&world, NAME).await;
    for (sent, status) in [
        ("CONNECT b.example:443 HTTP/1.1\r\nhost: b.example\r\nconnection: close\r\n\r\n", "400"),
        (
            "TRACE / HTTP/1.1\r\nauthorization: Bearer casemate-placeholder-00\r\nconnection: close\r\n\r\n",
            "405",
        ),
        ("GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "400"),
        ("\x16\x03\r\n\r\n", "400"),
    ] {
        let outside = TcpStream::connect(at).await.unwrap();
        let verified = swap.verify(&to, metered(outside)).await.unwrap();
        let (near, far) = tokio::io::duplex(64 << 10);
        let inside = async {
            let mut stream = guest(swap.trust(), NAME, near).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            rest_of(&mut stream).await
        };
        let carried = async {
            let accepted = swap.accept(&to, far).await.unwrap();
            let used = Used::default();
            swap.carry(&to, accepted, verified, &Bounds::default(), &used).await;
            used.into_inner().unwrap()
        };
        let (answer, used) = tokio::join!(inside, carried);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{sent:?}: {answer:?}");
        assert!(used.is_empty());
    }
}

#[test]
fn a_host_that_trusts_nobody_keeps_no_secrets() {
    assert!(matches!(Swap::trusting(Vec::new(), Vec::new()), Err(SwapError::NoRoots)));
}
