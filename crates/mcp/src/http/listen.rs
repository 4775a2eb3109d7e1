//! What a legacy server says by itself: the stream of a session (2025-11-25, transports, listening for
//! messages from the server).

use hyper::StatusCode;

use super::connections::{Kind, SendError};
use super::exchange::{Cursor, Lost, Talk, chain};
use super::{Purpose, Reach};

/// How often in a row the stream is asked for where it brings nothing: servers close streams that rest, and
/// those who never say anything are many.
const TIMES: u32 = 1000;

/// Keeps the stream open for as long as the server offers it. May be cancelled.
pub(super) async fn listen<R: Reach>(talk: &Talk<R>) -> Result<(), Lost> {
    let mut cursor = Cursor::default();
    loop {
        let fields = talk.agreed.borrow().legacy_fields();
        match talk.connections.get(cursor.after(), fields, Purpose::Listen).await {
            Ok(reply) if reply.kind() == Kind::Stream => {
                talk.follow(reply, None, &mut cursor).await?;
            }
            // The server has not noticed yet that the stream before is over.
            Ok(reply) if reply.status() == StatusCode::CONFLICT => {}
            Ok(reply) => {
                // Most servers that offer none say so in this way.
                if reply.status() != StatusCode::METHOD_NOT_ALLOWED {
                    talk.reach.note(&format!("no stream of the session: HTTP {}", reply.status()));
                }
                return Ok(());
            }
            // A server that cannot be reached is noticed by whoever asks it something.
            Err(error @ SendError::Unreachable(_)) => {
                talk.reach.note(&format!("no stream of the session: {}", chain(&error)));
            }
            Err(SendError::Broken(_)) => {}
        }
        if !cursor.pause(TIMES).await {
            return Ok(());
        }
    }
}
