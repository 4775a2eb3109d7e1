//! Many streams at once over byte streams at their worst: whatever is written arrives, whole and in order,
//! on its own stream, until somebody ends it.

use crate::support::{Choppy, Random, mux_pair_over, pattern, soon};
use casemate_link::{MuxHandle, Stream};
use proptest::prelude::*;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Barrier;

/// What one end of a stream does.
#[derive(Debug, Clone)]
struct Plan {
    /// How many bytes it sends, in chunks of at most so many.
    send: usize,
    chunk: usize,
    /// The most that it reads at once.
    read: usize,
    /// After how many bytes received it drops the stream; never, if `None`.
    drop_after: Option<usize>,
}

/// What one end of a stream saw.
struct Seen {
    received: Vec<u8>,
    orderly: bool,
    sent_all: bool,
}

async fn play(stream: Stream, plan: Plan, seed: u64) -> Seen {
    let message = pattern(seed, plan.send);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut random = Random(seed | 1);
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = async {
        let mut rest = &message[..];
        while !rest.is_empty() {
            let chunk = rest.len().min(random.up_to(plan.chunk));
            tokio::select! {
                written = writer.write(&rest[..chunk]) => match written {
                    Ok(count) => rest = &rest[count..],
                    Err(_) => return false,
                },
                _ = &mut stopped => return false,
            }
        }
        writer.shutdown().await.is_ok()
    };
    let reading = async {
        let mut received = Vec::new();
        let mut buf = vec![0; plan.read];
        loop {
            if plan.drop_after.is_some_and(|most| received.len() >= most) {
                drop(stop);
                return (received, false);
            }
            match reader.read(&mut buf).await {
                Ok(0) => {
                    // Not dropped, so that the writer goes on.
                    std::mem::forget(stop);
                    return (received, true);
                }
                Ok(count) => received.extend_from_slice(&buf[..count]),
                Err(_) => return (received, false),
            }
        }
    };
    let (sent_all, (received, orderly)) = tokio::join!(writing, reading);
    Seen { received, orderly, sent_all }
}

async fn exchange(opener: MuxHandle, plans: Vec<(Plan, Plan)>, taker: MuxHandle, seed: u64) {
    let everyone = Arc::new(Barrier::new(2 * plans.len()));
    let mut tasks = Vec::new();
    for (index, (near_plan, far_plan)) in plans.into_iter().enumerate() {
        let taking = async { taker.accept().await.unwrap().accept() };
        let (near, far) = soon("open", async { tokio::join!(opener.open(index as u32), taking) }).await;
        let seeds = (seed ^ (index as u64) << 32 | 2, seed ^ (index as u64) << 32 | 4);
        let play = |stream, plan, seed| {
            let everyone = Arc::clone(&everyone);
            tokio::spawn(async move {
                everyone.wait().await;
                play(stream, plan, seed).await
            })
        };
        let near_task = play(near.unwrap(), near_plan.clone(), seeds.0);
        let far_task = play(far, far_plan.clone(), seeds.1);
        tasks.push((near_plan, far_plan, seeds, near_task, far_task));
    }
    for (near_plan, far_plan, seeds, near_task, far_task) in tasks {
        let (near, far) = soon("stream", async { tokio::join!(near_task, far_task) }).await;
        let (near, far) = (near.unwrap(), far.unwrap());
        let cut = near_plan.drop_after.is_some() || far_plan.drop_after.is_some();
        for (seen, other_plan, other_seed) in [(&near, &far_plan, seeds.1), (&far, &near_plan, seeds.0)] {
            let expected = pattern(other_seed, other_plan.send);
            assert!(expected.starts_with(&seen.received), "bytes of another stream, or out of order");
            if !cut {
                assert!(seen.orderly && seen.sent_all && seen.received.len() == expected.len());
            } else if seen.orderly {
                assert_eq!(seen.received.len(), expected.len(), "an orderly end before the last byte");
            }
        }
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let send = prop_oneof![3 => 0usize..3000, 1 => 100_000usize..700_000];
    let drop_after = prop_oneof![3 => Just(None), 1 => (0usize..5000).prop_map(Some)];
    (send, 1usize..70_000, 1usize..9000, drop_after).prop_map(|(send, chunk, read, drop_after)| Plan {
        send,
        chunk,
        read,
        drop_after,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn every_stream_gets_its_own_bytes(
        from_host in proptest::collection::vec((plan(), plan()), 1..6),
        from_guest in proptest::collection::vec((plan(), plan()), 1..3),
        capacity in prop_oneof![1usize..100, 1000usize..100_000],
        most in prop_oneof![1 => 50usize..300, 2 => 1000usize..20_000],
        seed in any::<u64>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (near, far) = tokio::io::duplex(capacity.max(most / 4));
            let (near, far) = (Choppy::new(near, seed, most), Choppy::new(far, !seed, most));
            let (host, guest) = mux_pair_over(near, far).await;
            soon("synchronisation", guest.synced()).await.unwrap();
            tokio::join!(
                exchange(host.clone(), from_host, guest.clone(), seed),
                exchange(guest, from_guest, host, !seed),
            );
        });
    }
}
