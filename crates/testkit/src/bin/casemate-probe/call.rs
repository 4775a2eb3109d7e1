//! One running request: on which terms, for whom, and how it reaches its client.

use crate::conversation::{Conversation, Outlet, Reply};
use crate::lifecycle::Terms;
use crate::rpc::{self, Id, NoId, RpcError};
use crate::signal::{Signal, Waited};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// One running request.
pub struct Call {
    /// Where it came from.
    pub conversation: Arc<Conversation>,
    /// Its id.
    pub id: Id,
    /// Its revision and client.
    pub terms: Terms,
    /// Interrupts it.
    pub signal: Arc<Signal<Reply>>,
    /// The client's answers to an earlier `input_required` (modern era).
    pub round: Round,
    outlet: Arc<dyn Outlet>,
    progress_token: Option<Value>,
}

/// What a retry after `input_required` brings (2026-07-28, multi round-trip requests).
#[derive(Debug, Default)]
pub struct Round {
    /// Answers by the key under which they were asked for.
    pub responses: Option<Value>,
    /// The state that the server gave.
    pub state: Option<Value>,
}

impl Call {
    /// A request that was just admitted.
    pub fn new(
        conversation: &Arc<Conversation>,
        id: Id,
        terms: Terms,
        params: &Map<String, Value>,
        outlet: &Arc<dyn Outlet>,
        signal: Arc<Signal<Reply>>,
    ) -> Self {
        let progress_token = params
            .get("_meta")
            .and_then(|meta| meta.get("progressToken"))
            .filter(|token| Id::read(token).is_some())
            .cloned();
        let round = Round {
            responses: params.get("inputResponses").cloned(),
            state: params.get("requestState").cloned(),
        };
        let (conversation, outlet) = (conversation.clone(), outlet.clone());
        Self { conversation, id, terms, signal, round, outlet, progress_token }
    }

    /// Answers the request, unless it was cancelled meanwhile.
    pub fn finish(&self, outcome: Result<Value, RpcError>) {
        if self.conversation.ended(&self.id) {
            let outcome = outcome.map(|result| self.terms.revision.complete(result));
            self.outlet.answer(rpc::answer(Some(&self.id), NoId::Null, outcome));
        } else {
            self.outlet.abandon();
        }
    }

    /// Ends the request without an answer.
    pub fn abandon(&self) {
        self.conversation.ended(&self.id);
        self.outlet.abandon();
    }

    /// Sends a notification on the way of this request's answer.
    pub fn notify(&self, method: &str, params: Value) {
        if !self.signal.is_cancelled() {
            self.outlet.send(rpc::notification(method, params));
        }
    }

    /// Whether the client wants to hear about progress.
    pub fn wants_progress(&self) -> bool {
        self.progress_token.is_some()
    }

    /// Reports progress, if the client asked for it.
    pub fn progress(&self, done: u64, total: u64) {
        if let Some(token) = &self.progress_token {
            let params = json!({ "progressToken": token, "progress": done, "total": total });
            self.notify("notifications/progress", params);
        }
    }

    /// Sends a request of the server's own and waits for the client's answer. Legacy only: a modern server
    /// answers `input_required` instead.
    pub fn ask(&self, method: &str, params: Value, patience: Duration) -> Waited<Reply> {
        let question = self.conversation.question(&self.signal);
        let mut request = json!({ "jsonrpc": "2.0", "id": Value::from(&question), "method": method });
        if params.as_object().is_some_and(|params| !params.is_empty()) {
            request["params"] = params;
        }
        self.outlet.send(request);
        let waited = self.signal.wait(patience);
        if self.conversation.forget(&question) {
            let params = json!({ "requestId": Value::from(&question), "reason": "no longer waited for" });
            self.outlet.send(rpc::notification("notifications/cancelled", params));
        }
        waited
    }
}
