//! A `watch` stream: the journal as frames.

use crate::journal::{Entry, Journal};
use casemate_link::Stream;
use casemate_proto::control::Event;
use casemate_proto::frame::{Kind, encode};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Writes what happens until the host closes the stream.
pub async fn run(journal: &Journal, stream: &mut Stream) -> io::Result<()> {
    let (mut input, mut output) = tokio::io::split(stream);
    let writing = async {
        let mut cursor = journal.cursor();
        loop {
            let entry = journal.next(&mut cursor).await;
            output.write_all(&frame(&entry)?).await?;
        }
    };
    let mut byte = [0];
    tokio::select! {
        result = writing => result,
        // A host has nothing to say here but that it goes.
        read = input.read(&mut byte) => read.map(|_| ()),
    }
}

/// One entry on the wire.
fn frame(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut wire = Vec::new();
    match entry {
        Entry::Stderr(bytes) => encode(Kind::Stderr, bytes, &mut wire),
        Entry::Event(event) => wire = event_frame(event)?,
    }
    Ok(wire)
}

/// An event on the wire.
pub fn event_frame(event: &Event) -> io::Result<Vec<u8>> {
    let mut wire = Vec::new();
    encode(Kind::Event, &serde_json::to_vec(event)?, &mut wire);
    Ok(wire)
}
