//! The two tasks of a conversation.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::CloseReason;
use super::exchange::Outgoing;
use super::shared::{Call, Shared};
use crate::framing::{self, MessageReader, ReadError};

/// How long a server whose input broke may go on answering: usually it has exited, and its last answers
/// are still in the pipe.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Reads until the stream ends, then ends the conversation.
pub(super) async fn read<R: AsyncRead + Unpin>(shared: Arc<Shared>, mut reader: MessageReader<R>) {
    let mut broken = pin!(async {
        let reason = shared.input_broke().await;
        tokio::time::sleep(LAST_WORDS).await;
        reason
    });
    let mut over = pin!(shared.closed());
    let reason = loop {
        tokio::select! {
            next = reader.next() => match next {
                Ok(Some(incoming)) => {
                    shared.receive(incoming);
                    // Lines that are read already are no reason for a task to yield, and a chunk holds
                    // thousands.
                    tokio::task::consume_budget().await;
                }
                Ok(None) => break CloseReason::ServerClosed,
                Err(ReadError::TooLong { limit }) => break CloseReason::TooLong { limit },
                Err(ReadError::Io(error)) => break CloseReason::ReadFailed(Arc::new(error)),
            },
            reason = &mut broken => break reason,
            reason = &mut over => break reason,
        }
    };
    shared.close(reason);
}

/// Writes until it is told to finish, the stream breaks or the conversation is over, then closes the
/// server's input.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    shared: Arc<Shared>,
    mut stream: W,
    mut queued: mpsc::Receiver<Outgoing>,
    mut replies: mpsc::Receiver<String>,
) {
    let (reason, unfinished) = tokio::select! {
        reason = shared.closed() => (reason, None),
        ended = write_queued(&shared, &mut stream, &mut queued, &mut replies) => ended,
    };
    // In this order nobody can queue something that is neither written nor failed.
    drop(queued);
    shared.close_input(reason, unfinished);
    // Dropping the stream closes it too; that it was closed before is no failure.
    let _ = stream.shutdown().await;
}

/// Why it stopped, and the request in which it stopped.
async fn write_queued<W: AsyncWrite + Unpin>(
    shared: &Shared,
    stream: &mut W,
    queued: &mut mpsc::Receiver<Outgoing>,
    replies: &mut mpsc::Receiver<String>,
) -> (CloseReason, Option<Call>) {
    loop {
        let mut writing = None;
        let text = tokio::select! {
            // Picked at random where both are ready: neither side's flood keeps the other waiting.
            Some(reply) = replies.recv() => reply,
            next = queued.recv() => match next {
                Some(Outgoing::Request { call, text }) if shared.begin(call) => {
                    writing = Some(call);
                    text
                }
                Some(Outgoing::Request { .. }) => continue,
                Some(Outgoing::Notification(text)) => text,
                Some(Outgoing::Finish) | None => return (CloseReason::Closed, None),
            },
        };
        if let Err(error) = framing::write_message(stream, &text).await {
            return (CloseReason::WriteFailed(Arc::new(error)), writing);
        }
    }
}
