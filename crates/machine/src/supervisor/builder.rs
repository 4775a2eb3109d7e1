//! A machine that becomes a template.

use super::{ending::Ending, shared::Shared};
use crate::{
    backend::Instance,
    control::{Control, ControlError},
    spec::Level,
    template::{Contents, Templates},
};
use casemate_mcp::client as mcp;
use casemate_proto::control::{Clones, FailureCode, ReplyError, Request, Settled};
use casemate_proto::limits::STOP_GRACE;
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::timeout;

/// How long a server may take to rest once it was started, on a host that has nothing else to do …
const SETTLE_TIMEOUT: Duration = Duration::from_secs(15);

/// … and at most, however busy the host is.
const SETTLE_TIMES: f64 = 4.0;

/// How long a server may take over the requests that warm it up, and to end.
const WARM_TIMEOUT: Duration = Duration::from_secs(60);

/// Lets a server that was started answer what every client asks first, then ends it and removes all that it
/// wrote: its runtime keeps the code that it compiled, of which the server that is started next makes use. No
/// client has a part in this.
pub(super) async fn warm(control: &mut Control, shared: &Shared) -> Result<(), Ending> {
    let asked = timeout(WARM_TIMEOUT, ask_what_all_ask(shared));
    // A server that answers nothing sensible to this may still do so to its client.
    let _ = asked.await;
    let _: serde_json::Value = control.request("rinse", Request::Rinse, WARM_TIMEOUT).await?;
    Ok(())
}

async fn ask_what_all_ask(shared: &Shared) -> Result<(), Box<dyn std::error::Error>> {
    let (reader, writer) = tokio::io::split(shared.converse().await?);
    let mut options = mcp::Options::new("casemate", env!("CARGO_PKG_VERSION"));
    options.negotiate_timeout = WARM_TIMEOUT;
    let conversation = mcp::Conversation::open(reader, writer, options).await?;
    conversation.request("tools/list", None, WARM_TIMEOUT).await?;
    // A tool that none is: the way to a tool is gone, and no tool is called.
    let nothing = serde_json::value::to_raw_value(&serde_json::json!({ "name": "", "arguments": {} }))?;
    conversation.request("tools/call", Some(&nothing), WARM_TIMEOUT).await?;
    conversation.close(STOP_GRACE).await;
    Ok(())
}

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
    templates.write(folder, whole, record.memory_mb, &state, build_ms).map_err(Ending::Unwritten)
}

async fn settle(control: &mut Control, shared: &Shared) -> Result<(), Ending> {
    match control.request::<Settled>("settle", Request::Settle, patience()).await {
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

/// How long to wait: a start that others slow down is not the server's fault.
fn patience() -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").ok();
    let load: Option<f64> = load.and_then(|text| text.split(' ').next()?.parse().ok());
    let processors = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    SETTLE_TIMEOUT.mul_f64((load.unwrap_or(0.0) / processors).clamp(1.0, SETTLE_TIMES))
}

fn restless() -> Ending {
    Ending::NoTemplate(format!("the server did not rest within {} s of its start", SETTLE_TIMEOUT.as_secs()))
}
