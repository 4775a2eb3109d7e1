//! Hosts come and go; the guest's byte stream stays, as a virtio serial port's does.

use crate::support::{Random, pattern, read_all, settle, soon};
use casemate_link::{ConnectError, MuxHandle, Stream, StreamLost, mux};
use std::io::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// A serial port: the guest's end never closes, the host's end may be taken again and again.
struct Port {
    attach: mpsc::UnboundedSender<UnixStream>,
}

impl Port {
    fn new() -> (Self, UnixStream) {
        let (guest, device) = UnixStream::pair().unwrap();
        let (attach, mut hosts) = mpsc::unbounded_channel::<UnixStream>();
        tokio::spawn(async move {
            let (mut from_guest, mut to_guest) = device.into_split();
            while let Some(mut host) = hosts.recv().await {
                let (mut from_host, mut to_host) = host.split();
                // Either direction's end is the host's: the next one may come.
                tokio::select! {
                    _ = tokio::io::copy(&mut from_guest, &mut to_host) => {}
                    _ = tokio::io::copy(&mut from_host, &mut to_guest) => {}
                }
            }
        });
        (Self { attach }, guest)
    }

    /// Attaches a host; the task is its process.
    fn attach(&self, nonce: u8) -> (MuxHandle, tokio::task::JoinHandle<casemate_link::LinkDown>) {
        let (near, far) = UnixStream::pair().unwrap();
        self.attach.send(far).unwrap();
        let (host, driver) = mux::attach_host(near, [nonce; 16]);
        (host, tokio::spawn(driver))
    }
}

/// An agent that sends back whatever it gets, and says of each stream how it ended.
fn echo(io: UnixStream) -> (MuxHandle, mpsc::UnboundedReceiver<(u64, std::io::Result<()>)>) {
    let (guest, driver) = mux::attach_guest(io);
    tokio::spawn(driver);
    let (ended, ends) = mpsc::unbounded_channel();
    let accepting = guest.clone();
    tokio::spawn(async move {
        while let Ok(incoming) = accepting.accept().await {
            let (generation, ended) = (incoming.generation, ended.clone());
            let mut stream = incoming.accept();
            tokio::spawn(async move {
                let mut buf = vec![0; 10_000];
                let result = loop {
                    match stream.read(&mut buf).await {
                        Ok(0) => break stream.shutdown().await,
                        Err(error) => break Err(error),
                        Ok(count) => match stream.write_all(&buf[..count]).await {
                            Ok(()) => {}
                            Err(error) => break Err(error),
                        },
                    }
                };
                let _ = ended.send((generation, result));
            });
        }
    });
    (guest, ends)
}

async fn ask(stream: Stream, question: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let asking = async {
        writer.write_all(question).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    soon("answer", async { tokio::join!(asking, read_all(&mut reader)) }).await.1.unwrap()
}

#[tokio::test]
async fn a_host_that_is_killed_leaves_nothing_for_the_next() {
    let (port, io) = Port::new();
    let (guest, mut ends) = echo(io);
    let mut resyncs = guest.resyncs();
    let mut random = Random(11);
    for nonce in 1..=30u8 {
        let (host, process) = port.attach(nonce);
        soon("synchronisation", host.synced()).await.unwrap();
        // A stream of the new host works, whatever was under way for the last one.
        let question = pattern(u64::from(nonce), 100_000);
        assert!(ask(host.open(1).await.unwrap(), &question).await == question, "host {nonce}");
        assert_eq!(guest.generation(), u64::from(nonce));
        // Two more are in the middle of something when the process dies, at an arbitrary moment.
        let busy: Vec<_> = (0..2)
            .map(|_| {
                let host = host.clone();
                tokio::spawn(async move {
                    let mut stream = host.open(2).await.unwrap();
                    let _ = stream.write_all(&vec![9; 10 << 20]).await;
                })
            })
            .collect();
        for _ in 0..random.up_to(200) {
            tokio::task::yield_now().await;
        }
        process.abort();
        for task in busy {
            // An opener may have been told that its link is down.
            let _ = soon("end of a client", task).await;
        }
    }
    // A last host shows that the streams of all before have ended as they should.
    let (host, _process) = port.attach(99);
    soon("synchronisation", host.synced()).await.unwrap();
    settle().await;
    let mut cut = 0;
    while let Ok((generation, result)) = ends.try_recv() {
        assert!(generation <= 30);
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(matches!(error.downcast().unwrap(), StreamLost::Resynced));
            cut += 1;
        }
    }
    assert!(cut > 0, "no stream was ever cut; the test shows nothing");
    soon("the agent hears of hosts", resyncs.wait_for(|&generation| generation == 31)).await.unwrap();
}

#[tokio::test]
async fn bytes_that_an_old_host_left_unread_are_not_delivered() {
    let (port, io) = Port::new();
    let (guest, driver) = mux::attach_guest(io);
    tokio::spawn(driver);
    let (host, process) = port.attach(1);
    let taking = async { guest.accept().await.unwrap() };
    let (near, incoming) = soon("open", async {
        let accepting = async {
            let incoming = taking.await;
            (incoming.generation, incoming.accept())
        };
        tokio::join!(host.open(1), accepting)
    })
    .await;
    let (mut near, (generation, mut far)) = (near.unwrap(), incoming);
    assert_eq!(generation, 1);
    near.write_all(b"{\"half\":").await.unwrap();
    near.shutdown().await.unwrap();
    // An offer that nobody has asked about yet is void as well.
    let offered = tokio::spawn(async move { host.open(2).await.map(drop) });
    settle().await;
    process.abort();
    assert!(matches!(soon("offer", offered).await.unwrap(), Err(ConnectError::LinkDown(_))));

    let (next, _process) = port.attach(2);
    soon("synchronisation", next.synced()).await.unwrap();
    let error = read_all(&mut far).await.unwrap_err();
    assert!(matches!(error.downcast().unwrap(), StreamLost::Resynced));
    assert!(far.write_all(b"late").await.is_err());
    drop(far);
    let accepting = async {
        let incoming = guest.accept().await.unwrap();
        assert_eq!((incoming.port, incoming.generation), (3, 2));
        incoming.accept()
    };
    let (near, mut far) = soon("open", async { tokio::join!(next.open(3), accepting) }).await;
    // Its number is the old stream's; its bytes are its own.
    near.unwrap().write_all(b"new\n").await.unwrap();
    let mut bytes = [0; 4];
    soon("bytes", far.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"new\n");
}
