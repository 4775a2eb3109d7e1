//! A machine that becomes a template.

use super::{ending::Ending, shared::Shared};
use crate::{
    backend::Instance,
    control::{Control, ControlError},
    spec::Level,
    template::{Contents, Templates},
};
use casemate_mcp::{
    client as mcp,
    era::{Era, NEWEST_MODERN},
};
use casemate_proto::{
    control::{Clones, FailureCode, ReplyError, Request, Reseed, Settled, Started},
    limits::STOP_GRACE,
};
use jiff::Timestamp;
use std::time::Duration;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    time::timeout,
};

/// How long a server may take to rest once it was started, on a host that has nothing else to do.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long it may take over the requests that warm it up. Some leave unanswered what they do not know, and each
/// start of such a server waits for its template.
const WARM_TIMEOUT: Duration = Duration::from_secs(5);

/// How many times as long on a host that is busy.
const BUSY_TIMES: f64 = 4.0;

/// How long the agent may take to end it and to clean up after it.
const RINSE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long it may take over a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer to a ping that is read.
const ANSWER_BYTES: u64 = 64 << 10;

/// Starts the server that a template will hold.
///
/// A server on Node, which compiles what it executes, is started twice. The first one answers what every
/// client asks first, and is ended and forgotten with all that it wrote but for the code that its runtime
/// keeps. Where it knows nothing but revisions with `initialize`, in which a ping may come first and changes
/// nothing, the second one answers a ping: its ways in and out are compiled then. No client has a part in
/// this.
pub(super) async fn start(
    control: &mut Control,
    shared: &Shared,
    reseed: Option<Reseed>,
    patience: Duration,
) -> Result<(), Ending> {
    let _: Started = control.request("start", Request::Start, patience).await?;
    if reseed != Some(Reseed::Node) {
        return Ok(());
    }
    // A server that answers nothing sensible to this may still do so to its client.
    let warm = on_this_host(WARM_TIMEOUT);
    let is_legacy =
        matches!(timeout(warm, ask_what_all_ask(shared, warm)).await, Ok(Ok(era)) if !era.is_modern());
    start_anew(control, patience).await?;
    if is_legacy && !matches!(timeout(PING_TIMEOUT, ping(shared)).await, Ok(Ok(true))) {
        // Something else was said, which its client may miss.
        start_anew(control, patience).await?;
    }
    Ok(())
}

async fn start_anew(control: &mut Control, patience: Duration) -> Result<(), Ending> {
    let _: serde_json::Value = control.request("rinse", Request::Rinse, RINSE_TIMEOUT).await?;
    let _: Started = control.request("start", Request::Start, patience).await?;
    Ok(())
}

async fn ask_what_all_ask(shared: &Shared, patience: Duration) -> Result<Era, Box<dyn std::error::Error>> {
    let (reader, writer) = tokio::io::split(shared.converse().await?);
    let mut options = mcp::Options::new("casemate", env!("CARGO_PKG_VERSION"));
    options.negotiate_timeout = patience;
    // Asked first, a server that knows both eras shows it.
    options.era = Some(Era::Modern { version: NEWEST_MODERN });
    let conversation = mcp::Conversation::open(reader, writer, options).await?;
    conversation.request("tools/list", None, patience).await?;
    // A tool that none is: the way to a tool is gone, and no tool is called.
    let nothing = serde_json::value::to_raw_value(&serde_json::json!({ "name": "", "arguments": {} }))?;
    conversation.request("tools/call", Some(&nothing), patience).await?;
    conversation.close(STOP_GRACE).await;
    Ok(conversation.era())
}

/// Whether the server answered a ping, and said nothing else.
async fn ping(shared: &Shared) -> Result<bool, Box<dyn std::error::Error>> {
    let (reader, mut writer) = tokio::io::split(shared.converse().await?);
    writer.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":\"casemate\",\"method\":\"ping\"}\n").await?;
    let mut said = BufReader::new(reader.take(ANSWER_BYTES));
    let mut answer = Vec::new();
    said.read_until(b'\n', &mut answer).await?;
    // The server's input stays open for its client. On a stream of its own, and read meanwhile: one that
    // floods cannot be parked, and is given up.
    let mut more = Vec::new();
    let park = shared.ask::<serde_json::Value>("park", Request::Park, PING_TIMEOUT);
    let (parked, read) = tokio::join!(park, said.read_to_end(&mut more));
    parked?;
    read?;
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    Ok(more.is_empty() && answer["id"] == "casemate" && answer["result"].is_object())
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
    let patience = on_this_host(SETTLE_TIMEOUT);
    match control.request::<Settled>("settle", Request::Settle, patience).await {
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
        Err(ControlError::Timeout { .. }) => Err(restless(patience)),
        Err(ControlError::Refused { source: ReplyError::Failed(failure), .. })
            if failure.code == FailureCode::Deadline =>
        {
            Err(restless(patience))
        }
        Err(error) => Err(match shared.exit_news().await {
            Some(exit) => Ending::ServerExited(exit),
            None => error.into(),
        }),
    }
}

/// How long to wait for what takes so long where nothing else runs: a start that others slow down is not the
/// server's fault.
fn on_this_host(patience: Duration) -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").ok();
    let load: Option<f64> = load.and_then(|text| text.split(' ').next()?.parse().ok());
    let processors = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    patience.mul_f64((load.unwrap_or(0.0) / processors).clamp(1.0, BUSY_TIMES))
}

fn restless(patience: Duration) -> Ending {
    Ending::NoTemplate(format!("the server did not rest within {} s of its start", patience.as_secs()))
}
