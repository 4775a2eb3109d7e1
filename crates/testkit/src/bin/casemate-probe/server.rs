//! The process: what all its conversations share.

use crate::args::Eras;
use crate::call::Call;
use crate::signal::lock;
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What all conversations of this process share.
pub struct Server {
    /// The revisions it speaks.
    pub eras: Eras,
    started: Instant,
    requests: AtomicU64,
    counter: AtomicU64,
    subscriptions: Mutex<Vec<Subscription>>,
}

#[derive(Clone)]
struct Subscription {
    call: Arc<Call>,
    hears_of_tools: bool,
}

impl Server {
    /// A server that has just started.
    pub fn new(eras: Eras) -> Arc<Self> {
        Arc::new(Self {
            eras,
            started: Instant::now(),
            requests: AtomicU64::new(0),
            counter: AtomicU64::new(0),
            subscriptions: Mutex::new(Vec::new()),
        })
    }

    /// How long it has run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts a request.
    pub fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests counted so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Increments the counter of the tool `counter`, and gives its new value.
    pub fn increment(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Keeps a `subscriptions/listen` request until it is cancelled.
    pub fn subscribe(&self, call: Arc<Call>, hears_of_tools: bool) {
        lock(&self.subscriptions).push(Subscription { call, hears_of_tools });
        // The cancellation may have come before the subscription was in the list.
        self.end_cancelled_subscriptions();
    }

    /// Ends the subscriptions whose requests were cancelled.
    pub fn end_cancelled_subscriptions(&self) {
        let cancelled: Vec<_> = lock(&self.subscriptions)
            .extract_if(.., |subscription| subscription.call.signal.is_cancelled())
            .collect();
        for subscription in cancelled {
            subscription.call.abandon();
        }
    }

    /// Ends all subscriptions, because their client has gone.
    pub fn end_subscriptions(&self) {
        for subscription in lock(&self.subscriptions).iter() {
            subscription.call.signal.cancel();
        }
        self.end_cancelled_subscriptions();
    }

    /// Tells every modern listener that the tools changed; gives their number.
    pub fn announce(&self) -> usize {
        let mut listeners = lock(&self.subscriptions).clone();
        listeners.retain(|subscription| subscription.hears_of_tools);
        for Subscription { call, .. } in &listeners {
            let id = serde_json::Value::from(&call.id);
            let params = json!({ "_meta": { "io.modelcontextprotocol/subscriptionId": id } });
            call.notify("notifications/tools/list_changed", params);
        }
        listeners.len()
    }
}
