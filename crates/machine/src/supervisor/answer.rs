//! Requests to the supervisor itself.

use super::{
    ending::{chain, describe_exit, is_to_blame},
    shared::{Shared, Wish},
};
use crate::{
    backend::BackendError,
    control::ControlError,
    jsonl::Jsonl,
    supervise::{Answer, Asked, FailureKind, MESSAGE_BYTES, Request, VERSION},
};
use casemate_mcp::client::{Answer as McpAnswer, RequestError};
use casemate_proto::{
    control::{Pong, Request as Control, Stats},
    limits::CONTROL_TIMEOUT,
};
use serde_json::value::RawValue;
use std::{rc::Rc, time::Duration};
use tokio::{net::UnixStream, sync::oneshot, time::Instant};

/// How long the server may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers one request after the other until the asker goes.
pub(super) async fn serve(client: UnixStream, shared: &Rc<Shared>) {
    let mut client = Jsonl::new(client, MESSAGE_BYTES);
    while let Ok(Some(asked)) = client.receive::<Asked>().await {
        let _in_use = shared.in_use();
        let answer = tokio::select! {
            answer = answer(asked, shared) => answer,
            // Dropping a request of the conversation cancels it at the server. A client that only says no
            // more still waits for its answer.
            () = client.hung_up() => return,
        };
        if client.send(&clean(answer, shared)).await.is_err() {
            return;
        }
    }
}

/// A failure in words may quote what the server printed.
fn clean(answer: Answer, shared: &Shared) -> Answer {
    match answer {
        Answer::Failed { kind, message, exit } => {
            Answer::Failed { kind, message: shared.clean(&message), exit }
        }
        answer => answer,
    }
}

async fn answer(asked: Asked, shared: &Shared) -> Answer {
    let request: Request = match serde_json::from_str(asked.request.get()) {
        Ok(request) if asked.version == VERSION || matches!(request, Request::Stop { .. }) => request,
        _ if asked.version != VERSION => {
            let found = asked.version;
            let message = format!("supervisor speaks version {VERSION}, not {found}; it can only be stopped");
            return failed(FailureKind::Request, message);
        }
        Ok(_) => return failed(FailureKind::Request, "request was not understood".to_owned()),
        Err(error) => return failed(FailureKind::Request, format!("request was not understood: {error}")),
    };
    match request {
        Request::Status => {
            let epoch = shared.link.borrow().as_ref().map(|link| link.epoch.clone()).unwrap_or_default();
            Answer::Status { record: Box::new(shared.recorder.get()), epoch }
        }
        Request::Mcp { method, params, timeout_ms } => {
            mcp(shared, &method, params.as_deref(), Duration::from_millis(timeout_ms)).await
        }
        Request::Ping => ping(shared).await,
        Request::Stats => match shared.ask::<Stats>("stats", Control::Stats, CONTROL_TIMEOUT).await {
            Ok(stats) => Answer::Stats(stats),
            Err(error) => unreached(&error),
        },
        Request::Stop { reason } => tell(shared, Wish::Stop { reason }).await,
        Request::Kill => tell(shared, Wish::Kill).await,
        Request::Pause if !shared.capabilities.pause => incapable("pause"),
        Request::Resume if !shared.capabilities.resume => incapable("resume"),
        Request::CutLink if !shared.capabilities.cut_link => incapable("cut the link"),
        Request::Pause => wish(shared, Wish::Pause).await,
        Request::Resume => wish(shared, Wish::Resume).await,
        Request::CutLink => {
            let (done, told) = oneshot::channel();
            match shared.wishes.send(Wish::CutLink(done)).await.is_ok() && told.await.is_ok() {
                true => Answer::Done,
                false => ending(),
            }
        }
    }
}

async fn mcp(shared: &Shared, method: &str, params: Option<&RawValue>, timeout: Duration) -> Answer {
    let Some(conversation) = shared.conversation.borrow().clone() else {
        return failed(
            FailureKind::NoConversation,
            "a client speaks with this server, not its supervisor".to_owned(),
        );
    };
    if let Err(error) = shared.link().await {
        return unreached(&error);
    }
    match conversation.request(method, params, timeout).await {
        Ok(McpAnswer::Result(result)) => Answer::Result { result },
        Ok(McpAnswer::Error(error)) => Answer::Error { error },
        Err(error @ RequestError::Timeout { .. }) => failed(FailureKind::Timeout, chain(&error)),
        Err(ref error @ RequestError::Closed { ref reason, .. }) if is_to_blame(reason) => {
            failed(FailureKind::Protocol, chain(error))
        }
        Err(error @ RequestError::Closed { .. }) => {
            let exit = shared.exit_news().await;
            let message = match &exit {
                Some(exit) => format!("no answer to {method}: the server {}", describe_exit(exit)),
                None => chain(&error),
            };
            Answer::Failed { kind: FailureKind::ServerGone, message, exit }
        }
        Err(error) => failed(FailureKind::Protocol, chain(&error)),
    }
}

async fn ping(shared: &Shared) -> Answer {
    let asked = Instant::now();
    let agent: Pong = match shared.ask("ping", Control::Ping, CONTROL_TIMEOUT).await {
        Ok(pong) => pong,
        Err(error) => return unreached(&error),
    };
    let agent_us = asked.elapsed().as_micros() as u64;
    let conversation = shared.conversation.borrow().clone();
    let server_us = match conversation {
        None => None,
        Some(conversation) => {
            let asked = Instant::now();
            if let Err(error) = conversation.ping(PING_TIMEOUT).await {
                return failed(FailureKind::Protocol, chain(&error));
            }
            Some(asked.elapsed().as_micros() as u64)
        }
    };
    Answer::Pong { agent, agent_us, server_us }
}

async fn wish(
    shared: &Shared,
    make: impl FnOnce(oneshot::Sender<Result<(), BackendError>>) -> Wish,
) -> Answer {
    let (done, told) = oneshot::channel();
    if shared.wishes.send(make(done)).await.is_err() {
        return ending();
    }
    match told.await {
        Ok(Ok(())) => Answer::Done,
        Ok(Err(error)) => failed(FailureKind::Machine, chain(&error)),
        Err(_) => ending(),
    }
}

async fn tell(shared: &Shared, wish: Wish) -> Answer {
    if shared.wishes.send(wish).await.is_ok() { Answer::Done } else { ending() }
}

fn ending() -> Answer {
    failed(FailureKind::Machine, "machine is ending".to_owned())
}

/// The agent did not do what was asked.
fn unreached(error: &ControlError) -> Answer {
    let kind = match error {
        ControlError::NotAdmitted(_) => FailureKind::NoMemory,
        _ => FailureKind::Machine,
    };
    failed(kind, chain(error))
}

fn incapable(what: &str) -> Answer {
    failed(FailureKind::Incapable, format!("backend cannot {what}"))
}

fn failed(kind: FailureKind, message: String) -> Answer {
    Answer::Failed { kind, message, exit: None }
}
