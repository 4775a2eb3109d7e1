//! The small vocabulary of these tests.

use casemate_link::{Connector, Listener, MuxHandle, Stream, handshake, mux};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};

pub const NONCE: [u8; 16] = [7; 16];

/// The ports that the links below listen on.
pub const PORTS: [u32; 2] = [5252, 5253];

/// Far beyond what any step takes; a test that reaches it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Awaits what must happen.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing happened for {PATIENCE:?}"),
    }
}

/// Lets every other task of the thread go on until all of them wait.
pub async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

/// Two ends of one multiplexed link over a Unix socket pair.
pub async fn mux_pair() -> (MuxHandle, MuxHandle) {
    let (near, far) = UnixStream::pair().unwrap();
    mux_pair_over(near, far).await
}

/// Two ends of one multiplexed link over the two ends of a byte stream.
pub async fn mux_pair_over<A, B>(near: A, far: B) -> (MuxHandle, MuxHandle)
where
    A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (host, driver) = mux::attach_host(near, NONCE);
    tokio::spawn(driver);
    let (guest, driver) = mux::attach_guest(far);
    tokio::spawn(driver);
    soon("synchronisation", host.synced()).await.unwrap();
    (host, guest)
}

/// Both ends of a stream that the first side opens.
pub async fn stream_pair(opener: &MuxHandle, taker: &MuxHandle) -> (Stream, Stream) {
    let taking = async { taker.accept().await.unwrap().accept() };
    let (near, far) = soon("open and accept", async { tokio::join!(opener.open(1), taking) }).await;
    (near.unwrap(), far)
}

/// A link of some kind: the way of the host, and the guest's end.
pub struct Link {
    pub connector: Connector,
    pub listener: Listener,
    /// Whether a refusal's reason reaches the host.
    pub tells_reasons: bool,
    /// The sockets' folder, removed at the end of the test.
    pub _dir: tempfile::TempDir,
}

impl Link {
    pub async fn multiplexed() -> Self {
        let (host, guest) = mux_pair().await;
        Self {
            connector: Connector::Mux(host),
            listener: Listener::mux(guest),
            tells_reasons: true,
            _dir: tempfile::tempdir().unwrap(),
        }
    }

    pub async fn unix() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            connector: Connector::Unix { dir: dir.path().to_owned() },
            listener: Listener::unix(dir.path(), &PORTS).unwrap(),
            tells_reasons: false,
            _dir: dir,
        }
    }

    /// A native link behind a socket with the handshake, as Firecracker has.
    pub async fn handshake() -> Self {
        Self::behind_a_socket(Self::unix().await)
    }

    /// A multiplexed link behind a socket with the handshake, as a supervisor has.
    pub async fn supervised() -> Self {
        Self::behind_a_socket(Self::multiplexed().await)
    }

    fn behind_a_socket(inner: Self) -> Self {
        let socket = inner._dir.path().join("v.sock");
        tokio::spawn(relay(UnixListener::bind(&socket).unwrap(), inner.connector));
        Self { connector: Connector::Handshake { socket }, ..inner }
    }
}

/// What a supervisor does with its socket.
async fn relay(listener: UnixListener, connector: Connector) {
    while let Ok((mut client, _)) = listener.accept().await {
        let connector = connector.clone();
        tokio::spawn(async move {
            let port = handshake::read_connect(&mut client).await.unwrap();
            match connector.connect(port).await {
                Ok(mut stream) => {
                    handshake::reply_ok(&mut client, port).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut stream).await;
                }
                Err(casemate_link::ConnectError::Refused { code, reason, .. }) => {
                    handshake::reply_refused(&mut client, code, &reason).await.unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        });
    }
}

/// Bytes that differ from place to place, so that nothing can be lost, doubled or moved unseen.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    (0..length).map(|_| random.next() as u8).collect()
}

/// Reads until the end of the stream.
pub async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Reads up to and with a newline, byte by byte; less than that is the end of the stream.
pub async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stream.read(&mut byte).await? == 1 {
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line).unwrap())
}

/// A small generator (xorshift64*), so that each test's randomness is its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// A number in `1..=most`.
    pub fn up_to(&mut self, most: usize) -> usize {
        1 + self.next() as usize % most
    }
}

/// A byte stream at its worst: it reads and writes a few bytes at once, and is often not ready although it
/// could be.
pub struct Choppy<T> {
    inner: T,
    random: Random,
    most: usize,
}

impl<T> Choppy<T> {
    /// Moves at most `most` bytes at once.
    pub fn new(inner: T, seed: u64, most: usize) -> Self {
        Self { inner, random: Random(seed | 1), most }
    }

    /// How much may be moved now, if anything.
    fn portion(&mut self, cx: &Context<'_>) -> Option<usize> {
        if self.random.next().is_multiple_of(3) {
            cx.waker().wake_by_ref();
            return None;
        }
        Some(self.random.up_to(self.most))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Choppy<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(portion) = self.portion(cx) else { return Poll::Pending };
        let mut part = vec![0; portion.min(buf.remaining())];
        let mut part = ReadBuf::new(&mut part);
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Choppy<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(portion) = self.portion(cx) else { return Poll::Pending };
        Pin::new(&mut self.inner).poll_write(cx, &bytes[..portion.min(bytes.len())])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
