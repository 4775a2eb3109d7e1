//! A machine that becomes a template.

use super::{ending::Ending, shared::Shared};
use crate::{
    backend::Instance,
    control::{Control, ControlError},
    spec::Level,
    template::{Contents, Templates},
};
use casemate_proto::control::{Clones, FailureCode, ReplyError, Request, Settled};
use jiff::Timestamp;
use std::time::Duration;

/// How long a server may take to rest once it was started.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Waits until the machine rests, then writes it down.
pub(super) async fn finish(
    instance: &mut dyn Instance,
    control: &mut Control,
    shared: &Shared,
    folder: &str,
    level: Level,
) -> Result<Contents, Ending> {
    if level == Level::Server {
        settle(control, shared).await?;
    }
    let state = instance.save().await.map_err(|error| Ending::Backend { error, tail: String::new() })?;
    let record = shared.recorder.get();
    let memory = instance.memory();
    let Some(whole) = memory.whole() else {
        return Err(Ending::NoTemplate("it was itself restored".to_owned()));
    };
    let build_ms = Timestamp::now().duration_since(record.started_at).as_millis().max(0) as u64;
    let templates = Templates::open(&shared.recorder.home)?;
    Ok(templates.write(folder, whole, record.memory_mb, &state, build_ms)?)
}

async fn settle(control: &mut Control, shared: &Shared) -> Result<(), Ending> {
    match control.request::<Settled>("settle", Request::Settle, SETTLE_TIMEOUT).await {
        Ok(Settled { clones: Clones::Differ, .. }) => Ok(()),
        Ok(Settled { clones: Clones::Repeat, .. }) => Err(Ending::NoTemplate(
            "clones of the running server could repeat its random numbers: \
             not all of its processes are of a runtime that can be reseeded"
                .to_owned(),
        )),
        Ok(Settled { clones: Clones::Share, .. }) => Err(Ending::NoTemplate(
            "clones of the running server would share random numbers that it draws while it starts"
                .to_owned(),
        )),
        Err(ControlError::Timeout { .. }) => Err(restless()),
        Err(ControlError::Refused { source: ReplyError::Failed(failure), .. })
            if failure.code == FailureCode::Deadline =>
        {
            Err(restless())
        }
        Err(error) => Err(match shared.exit_news().await {
            Some(exit) => Ending::ServerExited(exit),
            None => error.into(),
        }),
    }
}

fn restless() -> Ending {
    Ending::NoTemplate(format!("the server did not rest within {} s of its start", SETTLE_TIMEOUT.as_secs()))
}
