//! The host's end of a control stream.

use super::guest::soon;
use casemate_link::Stream;
use casemate_proto::control::{Envelope, Hello, Reply, Request, VERSION, Welcome};
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// A control stream that said hello.
pub struct Control {
    stream: BufReader<Stream>,
    next_id: u64,
}

impl Control {
    /// Says hello; `None` where nobody answers.
    pub async fn greet(stream: Stream, epoch: &str) -> Option<Self> {
        let mut control = Self { stream: BufReader::new(stream), next_id: 0 };
        let hello = Request::Hello(Hello { protocol: VERSION, epoch: epoch.to_owned() });
        let id = control.ask(hello).await.ok()?;
        let welcome: Welcome = control.reply().await.ok()?.into_result(id).unwrap();
        assert_eq!(welcome.protocol, VERSION);
        Some(control)
    }

    /// Asks for what has to succeed.
    pub async fn done<T: DeserializeOwned>(&mut self, request: Request) -> T {
        let id = self.ask(request).await.unwrap();
        self.reply().await.unwrap().into_result(id).unwrap()
    }

    /// Asks, and leaves the answer to whoever waits for it.
    pub async fn ask(&mut self, request: Request) -> io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&Envelope::new(id, request)).unwrap();
        line.push(b'\n');
        self.stream.write_all(&line).await?;
        Ok(id)
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        match soon("an answer", self.stream.read_line(&mut line)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line).unwrap()),
        }
    }
}
