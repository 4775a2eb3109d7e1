//! What the multiplexer costs: bulk in one direction, bulk in both, and the round trip of a short message,
//! over a Unix socket pair with each end on a thread of its own (`cargo bench -p casemate-link`).

use casemate_link::{Listener, MuxHandle, Stream, mux};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const BULK_BYTES: u64 = 1 << 30;
const ROUND_TRIPS: u32 = 50_000;

const SINK: u32 = 1;
const ECHO: u32 = 2;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    between_threads(measure, |io| async {
        let (handle, driver) = mux::attach_guest(UnixStream::from_std(io)?);
        tokio::spawn(driver);
        serve(Listener::mux(handle)).await
    })?;
    between_threads(measure_bare, |io| async {
        Ok(answer(ECHO, Stream::from_unix(UnixStream::from_std(io)?)).await?)
    })?;
    run(measure_in_memory())
}

fn between_threads<H, G>(
    host: impl FnOnce(std::os::unix::net::UnixStream) -> H,
    guest: impl FnOnce(std::os::unix::net::UnixStream) -> G + Send + 'static,
) -> Result<()>
where
    H: Future<Output = Result<()>>,
    G: Future<Output = Result<()>>,
{
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    let guest = std::thread::spawn(move || run(guest(far)).map_err(|error| error.to_string()));
    run(host(near))?;
    guest.join().map_err(|_| "the guest's thread panicked")??;
    Ok(())
}

fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

async fn serve(mut listener: Listener) -> Result<()> {
    while let Ok(incoming) = listener.accept().await {
        let port = incoming.port;
        tokio::spawn(answer(port, incoming.accept()));
    }
    Ok(())
}

async fn answer(port: u32, mut stream: Stream) -> std::io::Result<()> {
    let mut buf = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buf).await?;
        if count == 0 {
            return stream.shutdown().await;
        }
        if port == ECHO {
            stream.write_all(&buf[..count]).await?;
        }
    }
}

async fn measure(io: std::os::unix::net::UnixStream) -> Result<()> {
    let (handle, driver) = mux::attach_host(UnixStream::from_std(io)?, [7; 16]);
    tokio::spawn(driver);
    report("one way", BULK_BYTES, bulk(&handle, SINK).await?);
    report("there and back, each way", BULK_BYTES, bulk(&handle, ECHO).await?);

    round_trips("round trip", handle.open(ECHO).await?).await?;
    Ok(())
}

/// The kernel's share of a round trip: the same over the bare socket pair.
async fn measure_bare(io: std::os::unix::net::UnixStream) -> Result<()> {
    round_trips("without the multiplexer", Stream::from_unix(UnixStream::from_std(io)?)).await
}

/// The multiplexer's share: both ends on one thread, with no kernel between them.
async fn measure_in_memory() -> Result<()> {
    let (host, guest) = tokio::io::duplex(64 << 10);
    let ((handle, driver), (other, other_driver)) =
        (mux::attach_host(host, [7; 16]), mux::attach_guest(guest));
    tokio::spawn(driver);
    tokio::spawn(other_driver);
    tokio::spawn(async move { serve(Listener::mux(other)).await.map_err(|error| error.to_string()) });
    round_trips("within one thread", handle.open(ECHO).await?).await
}

async fn round_trips(what: &str, mut stream: Stream) -> Result<()> {
    let started = Instant::now();
    let mut message = [1; 100];
    for _ in 0..ROUND_TRIPS {
        stream.write_all(&message).await?;
        stream.read_exact(&mut message).await?;
    }
    println!("{what:>26}: {:.1} us", started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS));
    Ok(())
}

async fn bulk(handle: &MuxHandle, port: u32) -> Result<Duration> {
    let stream = handle.open(port).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let started = Instant::now();
    let reading = tokio::spawn(async move {
        let mut buf = vec![0; 64 << 10];
        while reader.read(&mut buf).await? > 0 {}
        std::io::Result::Ok(())
    });
    let chunk: Vec<u8> = (0..64u32 << 10).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for _ in 0..BULK_BYTES / chunk.len() as u64 {
        writer.write_all(&chunk).await?;
    }
    writer.shutdown().await?;
    reading.await??;
    Ok(started.elapsed())
}

fn report(what: &str, bytes: u64, took: Duration) {
    println!("{what:>26}: {:.0} MB/s", bytes as f64 / 1e6 / took.as_secs_f64());
}
