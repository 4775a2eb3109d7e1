//! The `CONNECT` handshake, against servers and clients that do not follow it.

use crate::support::{PORTS, read_all, soon};
use casemate_link::handshake::{self, HandshakeError, REQUEST_BYTES};
use casemate_link::{ConnectError, Connector};
use casemate_proto::mux::{REASON_BYTES, ResetCode};
use std::future::Future;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Connects to a server that does as it is told with its only connection.
async fn connect_to<F>(server: impl FnOnce(UnixStream) -> F) -> Result<casemate_link::Stream, ConnectError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("v.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let connector = Connector::Handshake { socket };
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(server(stream));
    };
    soon("connect", async { tokio::join!(connector.connect(PORTS[0]), serving) }).await.0
}

async fn answer_with(answer: &'static [u8]) -> Result<casemate_link::Stream, ConnectError> {
    connect_to(move |mut stream| async move {
        let mut request = [0; 13];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"CONNECT 5252\n");
        // The client may leave before all of it is written.
        let _ = stream.write_all(answer).await;
    })
    .await
}

#[tokio::test]
async fn bytes_after_the_answer_belong_to_the_stream() {
    // Firecracker answers with a port of the host's side, not with the one that was asked for.
    let mut stream = answer_with(b"OK 1073741824\n{\"early\":1}\n").await.unwrap();
    assert_eq!(read_all(&mut stream).await.unwrap(), b"{\"early\":1}\n");
}

#[tokio::test]
async fn an_end_instead_of_an_answer_is_a_refusal() {
    for answer in [&b""[..], b"OK", b"OK 52"] {
        let result = answer_with(answer).await;
        assert!(
            matches!(result, Err(ConnectError::Refused { port: 5252, code: ResetCode::Refused, .. })),
            "{answer:?}: {result:?}"
        );
    }
}

#[tokio::test]
async fn a_refusal_carries_its_reason() {
    let result = answer_with(b"ERR busy held by run, pid 7\n").await;
    match result {
        Err(ConnectError::Refused { code: ResetCode::Busy, reason, .. }) => {
            assert_eq!(reason, "held by run, pid 7")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nonsense_is_an_error() {
    let nonsense = [
        &b"OK\n"[..],
        b"OK \n",
        b"OK +1\n",
        b"OK 5252\r\n",
        b"OK  5252\n",
        b"OK 4294967296\n",
        b"ok 5252\n",
        b"\n",
        b"ERR\n",
        b"ERR unknown reason\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\xff\xfe\n",
    ];
    for answer in nonsense {
        let result = answer_with(answer).await;
        assert!(
            matches!(result, Err(ConnectError::Handshake { source: HandshakeError::Malformed(_), .. })),
            "{:?}: {result:?}",
            String::from_utf8_lossy(answer)
        );
    }
}

#[tokio::test]
async fn an_answer_without_end_is_given_up() {
    let result =
        connect_to(|mut stream| async move { while stream.write_all(&[b'x'; 1 << 20]).await.is_ok() {} })
            .await;
    assert!(
        matches!(result, Err(ConnectError::Handshake { source: HandshakeError::TooLong { .. }, .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_silent_server_is_given_up_in_time() {
    let result = connect_to(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let timed_out = matches!(
        result,
        Err(ConnectError::TimedOut { port: 5252 }
            | ConnectError::Handshake { source: HandshakeError::TimedOut, .. })
    );
    assert!(timed_out, "{result:?}");
}

#[tokio::test]
async fn a_socket_that_is_not_there_or_not_served_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("v.sock");
    let connector = Connector::Handshake { socket: socket.clone() };
    let result = connector.connect(1).await;
    assert!(matches!(result, Err(ConnectError::Socket { .. })), "{result:?}");
    // The socket of a process that was killed.
    drop(UnixListener::bind(&socket).unwrap());
    let result = connector.connect(1).await;
    assert!(matches!(result, Err(ConnectError::Refused { port: 1, .. })), "{result:?}");
    // A native link has a socket for each port that somebody listens on.
    let native = Connector::Unix { dir: dir.path().to_owned() };
    let result = native.connect(1).await;
    assert!(matches!(result, Err(ConnectError::Refused { port: 1, .. })), "{result:?}");
}

async fn requested(request: &[u8]) -> Result<u32, HandshakeError> {
    let (mut client, mut server) = UnixStream::pair().unwrap();
    client.write_all(request).await.unwrap();
    drop(client);
    soon("request", handshake::read_connect(&mut server)).await
}

#[tokio::test]
async fn the_servers_side_takes_exactly_the_line() {
    let (mut client, mut server) = UnixStream::pair().unwrap();
    client.write_all(b"CONNECT 5253\n{\"id\":0}\n").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(handshake::read_connect(&mut server).await.unwrap(), 5253);
    assert_eq!(read_all(&mut server).await.unwrap(), b"{\"id\":0}\n");
    handshake::reply_ok(&mut server, 5253).await.unwrap();
    drop(server);
    assert_eq!(read_all(&mut client).await.unwrap(), b"OK 5253\n");
}

#[tokio::test]
async fn the_servers_side_takes_nothing_else() {
    assert_eq!(requested(b"CONNECT 0\n").await.unwrap(), 0);
    assert_eq!(requested(b"CONNECT 4294967295\n").await.unwrap(), u32::MAX);
    for bad in [
        &b"CONNECT\n"[..],
        b"CONNECT \n",
        b"CONNECT -1\n",
        b"CONNECT +1\n",
        b"CONNECT 0x10\n",
        b"CONNECT 1 \n",
        b"CONNECT 1\r\n",
        b" CONNECT 1\n",
        b"connect 1\n",
        b"CONNECT 4294967296\n",
        b"GET / HTTP/1.1\r\n",
        b"\n",
    ] {
        let result = requested(bad).await;
        assert!(matches!(result, Err(HandshakeError::Malformed(_))), "{bad:?}: {result:?}");
    }
    assert!(matches!(requested(b"").await, Err(HandshakeError::Closed)));
    assert!(matches!(requested(b"CONNECT 52").await, Err(HandshakeError::Closed)));
    let long = [&b"CONNECT "[..], &[b'0'; 1000], b"1\n"].concat();
    assert!(matches!(requested(&long).await, Err(HandshakeError::TooLong { limit: REQUEST_BYTES })));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_given_up() {
    let (mut client, mut server) = UnixStream::pair().unwrap();
    client.write_all(b"CONN").await.unwrap();
    let result = handshake::read_connect(&mut server).await;
    assert!(matches!(result, Err(HandshakeError::TimedOut)), "{result:?}");
}

#[tokio::test]
async fn any_reason_fits_the_clients_bound() {
    for reason in ["", "\n\n\n", &"\u{7}".repeat(10_000), &"ä".repeat(10_000), &"x".repeat(REASON_BYTES)] {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        handshake::reply_refused(&mut server, ResetCode::Internal, reason).await.unwrap();
        let result = handshake::request(&mut client, 1).await;
        assert!(
            matches!(result, Err(HandshakeError::Refused { code: ResetCode::Internal, .. })),
            "{result:?}"
        );
    }
}
