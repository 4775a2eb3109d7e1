//! Bodies of requests, read within bounds.

use crate::refusal::Refusal;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Of how many bytes a permit is.
pub const UNIT: usize = 1024;

/// How long the rest of a body that is too long is read: a client that is still sending would not see why it
/// was refused.
const REST: Duration = Duration::from_secs(2);

/// What bodies may take, a permit for each [`UNIT`]: those of all requests together, and those of one session.
pub struct Rooms<'a> {
    /// Of all.
    pub all: &'a Arc<Semaphore>,
    /// Of the session that the request belongs to.
    pub session: Option<&'a Arc<Semaphore>>,
}

/// A body's part of what may be held, until it is dropped.
#[derive(Debug, Default)]
pub struct Room {
    all: Option<OwnedSemaphorePermit>,
    session: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Takes what a body of that length needs.
    fn grow(&mut self, rooms: &Rooms<'_>, bytes: usize) -> Result<(), Refusal> {
        if let Some(session) = rooms.session {
            grow(&mut self.session, session, bytes).ok_or(Refusal::SessionFull)?;
        }
        grow(&mut self.all, rooms.all, bytes).ok_or(Refusal::BodiesFull)
    }
}

fn grow(held: &mut Option<OwnedSemaphorePermit>, room: &Arc<Semaphore>, bytes: usize) -> Option<()> {
    let missing = bytes.div_ceil(UNIT) - held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let more = Arc::clone(room).try_acquire_many_owned(u32::try_from(missing).ok()?).ok()?;
    match held {
        Some(held) => held.merge(more),
        None => *held = Some(more),
    }
    Some(())
}

/// Reads a body of at most `limit` bytes to its end.
pub async fn read<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    limit: usize,
    time: Duration,
    rooms: Rooms<'_>,
) -> Result<(Vec<u8>, Room), Refusal> {
    let read = async {
        let (mut bytes, mut room) = (Vec::new(), Room::default());
        if body.size_hint().lower() > limit as u64 {
            return Err(Refusal::TooLarge { limit });
        }
        while let Some(frame) = body.frame().await {
            // Trailers say nothing here.
            let Ok(data) = frame.map_err(|_| Refusal::BrokenBody)?.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > limit {
                return Err(Refusal::TooLarge { limit });
            }
            room.grow(&rooms, length)?;
            bytes.extend_from_slice(&data);
        }
        Ok((bytes, room))
    };
    let read = timeout(time, read).await.unwrap_or(Err(Refusal::SlowBody(time)));
    if matches!(read, Err(Refusal::TooLarge { .. } | Refusal::BodiesFull | Refusal::SessionFull)) {
        // However it ends, the answer is the same.
        let _ = timeout(REST, async { while let Some(Ok(_)) = body.frame().await {} }).await;
    }
    read
}
