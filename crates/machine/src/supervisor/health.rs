//! Whether a machine lives: its agent is asked again and again, and its server where the supervisor speaks
//! with it.

use super::{ending::Ending, shared::Shared};
use crate::{
    control::Control,
    spec::{Restart, Spec},
};
use casemate_mcp::client::RequestError;
use casemate_proto::control::{Pong, Request};
use std::{rc::Rc, time::Duration};
use tokio::time::{sleep, timeout};

/// What a ping told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// There is life.
    Well,
    /// There was none from this one.
    None(&'static str),
    /// The machine was suspended, paused or ended meanwhile: nothing can be told.
    Unknown,
}

const AGENT: &str = "agent";
const SERVER: &str = "server";

/// Resolves when the machine is beyond hope. After the first silence the record says so; after the second a
/// machine whose agent is silent is over, and one whose server is silent where it is to be restarted: a
/// server may have much to do.
pub(super) async fn watch(spec: &Spec, shared: &Rc<Shared>) -> Ending {
    let interval = Duration::from_millis(spec.health_ms);
    // `marked`: the record says so.
    let (mut silent, mut last, mut marked) = (0, "", false);
    loop {
        sleep(interval).await;
        match ask(shared, interval).await {
            Sign::Unknown => silent = 0,
            Sign::Well if marked => {
                (silent, marked) = (0, false);
                shared.note("answers again");
                shared.recorder.update(|record| record.reason = None);
            }
            Sign::Well => silent = 0,
            Sign::None(what) => {
                // A silent server says nothing of its agent.
                silent = if what == last { silent + 1 } else { 1 };
                (last, marked) = (what, true);
                let reason = format!("{what} has not answered a ping for {} s", interval.as_secs_f32());
                shared.note(&reason);
                shared.recorder.update(|record| record.reason = Some(reason));
                let hopeless = what == AGENT || spec.restart == Restart::OnFailure;
                if silent > 1 && hopeless {
                    return Ending::Hung { what, patience: interval * silent };
                }
            }
        }
    }
}

async fn ask(shared: &Rc<Shared>, patience: Duration) -> Sign {
    // A suspended machine is not woken for this.
    let Some(link) = shared.link.borrow().clone().filter(|_| !shared.paused.get()) else {
        return Sign::Unknown;
    };
    let agent = async {
        let mut control = Control::open(&link.connector, &link.epoch, patience).await?;
        control.request::<Pong>("ping", Request::Ping, patience).await
    };
    let agent = timeout(patience, agent).await;
    let still_the_same = || {
        let now = shared.link.borrow();
        !shared.paused.get() && now.as_ref().is_some_and(|now| now.epoch == link.epoch)
    };
    if !matches!(agent, Ok(Ok(_))) {
        return if still_the_same() { Sign::None(AGENT) } else { Sign::Unknown };
    }
    let Some(conversation) = shared.conversation.borrow().clone() else { return Sign::Well };
    // Not to be suspended with a ping on its way.
    shared.usage.begin();
    let answered = conversation.ping(patience).await;
    shared.usage.end_unnoticed();
    match answered {
        Err(RequestError::Timeout { .. }) if still_the_same() => Sign::None(SERVER),
        // Its end is seen elsewhere.
        Err(_) => Sign::Unknown,
        Ok(()) => Sign::Well,
    }
}
