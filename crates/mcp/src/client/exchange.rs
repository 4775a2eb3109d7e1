//! One request and its answer.

use std::sync::Arc;
use std::time::Duration;

use casemate_proto::limits::MCP_MESSAGE_BYTES;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::shared::{Call, Shared};
use super::{Answer, RequestError};
use crate::compose;
use crate::envelope::Message;

/// Where requests are put and answers come from.
#[derive(Debug)]
pub(super) struct Link {
    pub shared: Arc<Shared>,
    pub outbox: mpsc::Sender<Outgoing>,
}

/// What the writer does next.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// Write the request, unless it was abandoned meanwhile.
    Request { call: Call, text: String },
    /// Write the notification.
    Notification(String),
    /// Close the server's input.
    Finish,
}

impl Link {
    pub async fn exchange(
        &self,
        method: &str,
        params: Option<String>,
        progress: Option<mpsc::Sender<Box<RawValue>>>,
        timeout: Duration,
    ) -> Result<Answer, RequestError> {
        let message = valid(method, compose::request(0, method, params.as_deref()))?;
        let opened = self.shared.open(method, &message, progress)?;
        drop((message, params));
        let _abandon = Abandon { shared: &self.shared, call: opened.call };
        let queued = Outgoing::Request { call: opened.call, text: opened.text };
        let answered = async {
            if self.outbox.send(queued).await.is_err() {
                return Err(self.shared.over(method));
            }
            // The sender is dropped unused only with the whole state.
            opened.answer.await.unwrap_or_else(|_| Err(self.shared.over(method)))
        };
        tokio::time::timeout(timeout, answered)
            .await
            .unwrap_or_else(|_| Err(RequestError::Timeout { method: method.to_owned(), timeout }))
    }

    pub async fn notify(&self, method: &str, params: Option<&str>) -> Result<(), RequestError> {
        let text = valid(method, compose::notification(method, params))?.into_text();
        self.shared.check_open(method)?;
        self.outbox.send(Outgoing::Notification(text)).await.map_err(|_| self.shared.over(method))
    }
}

fn valid(method: &str, text: String) -> Result<Message, RequestError> {
    let method = method.to_owned();
    if text.len() > MCP_MESSAGE_BYTES {
        return Err(RequestError::TooLong { method, bytes: text.len() });
    }
    Message::parse(text).map_err(|reason| RequestError::Invalid { method, reason })
}

/// Abandons a request when its future ends, however it does; one that was answered is gone already.
struct Abandon<'a> {
    shared: &'a Shared,
    call: Call,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.shared.abandon(self.call);
    }
}
