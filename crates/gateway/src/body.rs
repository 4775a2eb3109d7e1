//! Bodies of requests, read within bounds.

use crate::{limits::Limits, refusal::Refusal};
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

/// A body, and its part of what may be held for all requests.
pub type Held = (Vec<u8>, Option<OwnedSemaphorePermit>);

/// Reads a body to its end. `room` has a permit for each [`UNIT`].
pub async fn read<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    limits: &Limits,
    room: &Arc<Semaphore>,
) -> Result<Held, Refusal> {
    let read = async {
        let (mut bytes, mut held) = (Vec::new(), None::<OwnedSemaphorePermit>);
        if body.size_hint().lower() > limits.body_bytes as u64 {
            return Err(Refusal::TooLarge { limit: limits.body_bytes });
        }
        while let Some(frame) = body.frame().await {
            // Trailers say nothing here.
            let Ok(data) = frame.map_err(|_| Refusal::BrokenBody)?.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > limits.body_bytes {
                return Err(Refusal::TooLarge { limit: limits.body_bytes });
            }
            let missing = length.div_ceil(UNIT) - held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let missing = u32::try_from(missing).unwrap_or(u32::MAX);
            let more = Arc::clone(room).try_acquire_many_owned(missing).map_err(|_| Refusal::BodiesFull)?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok((bytes, held))
    };
    let read = timeout(limits.body_time, read).await;
    let read = read.unwrap_or(Err(Refusal::SlowBody(limits.body_time)));
    if matches!(read, Err(Refusal::TooLarge { .. } | Refusal::BodiesFull)) {
        // However it ends, the answer is the same.
        let _ = timeout(REST, async { while let Some(Ok(_)) = body.frame().await {} }).await;
    }
    read
}
