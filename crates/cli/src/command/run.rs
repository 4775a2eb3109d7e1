//! `casemate run`.

use super::options::{LaterOptions, MachineOptions, ServerOptions, StartOptions};
use crate::{
    config::{
        settings::{self, Flags},
        transport::Transport,
    },
    context::Context,
    engine::{self, ConversationEnd, Leased, Restart, Target, Unknown, asking, routing},
    error::{Error, Outcome},
    render::harmless,
};
use casemate_proto::{control::Exit, ids::Name, port};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};
use std::time::Duration;
use tokio::{
    io::{AsyncWriteExt, copy},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
};

/// The name of a server that is given as a command.
const AD_HOC: &str = "run";

/// How often a client that sends nothing more is looked for.
const STILL_THERE: Duration = Duration::from_secs(1);

/// Be a server on standard input and output: what goes into a client's configuration
///
/// Starts a machine of its own and stops it when the client closes standard input or the server ends.
/// Standard output carries the server's messages and nothing else. Where tools of the server have tables of
/// their own, the machine has the strongest wall, the largest sizes and the folders that any of them asks for.
///
/// Examples:
///   casemate run everything
///   casemate run --isolation microvm -- npx -y @modelcontextprotocol/server-everything
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[command(
    verbatim_doc_comment,
    override_usage = "casemate run [OPTIONS] <NAME>\n       casemate run [OPTIONS] -- <COMMAND>..."
)]
pub struct Run {
    /// The server
    #[arg(required_unless_present = "words", conflicts_with = "words")]
    name: Option<Name>,
    /// The server's command, instead of a name
    #[arg(last = true, value_name = "COMMAND")]
    words: Vec<String>,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    start: StartOptions,
    #[command(flatten)]
    later: LaterOptions,
}

/// Which side ended a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The client closed standard input, and then the server said no more.
    Client,
    /// Nobody reads the server's messages any more.
    Unheard,
    /// The server, or its machine.
    Server,
}

/// Leases a machine and lets the client speak with its server.
pub async fn run(args: Run, context: &Context) -> Result<Outcome, Error> {
    args.later.refuse()?;
    if args.start.life.restart == Some(Restart::OnFailure) {
        return Err(Error::usage(
            "--restart on-failure is not for a machine that lives for one conversation",
        )
        .hint("leave it out; a client starts a server anew that ended"));
    }
    let configuration = context.configuration()?;
    let mut target: Target<'_> = match &args.name {
        Some(name) => engine::resolve(context, &configuration, name, &args.server, Unknown::Refused)?,
        None => engine::ad_hoc(AD_HOC, &args.words, &args.server)?,
    };
    let tools = routing::for_all(context, &configuration, &mut target, &args.server)?;
    let flags = Flags { machine: &args.machine, start: &args.start };
    let (server, defaults) = (target.server, &configuration.defaults);
    let settings = settings::merge_for(flags, &context.environment, &tools, server, defaults)?;
    let plan = engine::plan(context, &configuration, &target, &settings).await?;
    let mut leased = asking::lease_for_client(context, &plan, &target.name).await?;
    let conversed = converse(&leased).await;
    let end = match conversed {
        Ok(Ended::Client | Ended::Server) => leased.conversation_end().await,
        _ => None,
    };
    let name = leased.record().name.to_string();
    let logs = context.home.machine(&leased.record().id).join("logs");
    leased.stop().await;
    match (conversed?, end) {
        (Ended::Client | Ended::Server, Some(ConversationEnd::Broken(reason))) => {
            Err(Error::server(format!("conversation with machine {name} was broken off: {reason}"))
                .log(&logs))
        }
        (Ended::Server, Some(ConversationEnd::MachineEnded(reason))) => {
            Err(Error::server(format!("machine {name} ended: {reason}")).log(&logs))
        }
        (ended @ (Ended::Client | Ended::Server), Some(ConversationEnd::ServerExited(exit)))
            if !in_peace(ended, &exit, &target.transport) =>
        {
            let tail = harmless(exit.stderr_tail.trim());
            let tail = (!tail.is_empty()).then(|| format!("its last words: {tail}"));
            let error = Error::server(format!("server of machine {name} ended {}", describe(&exit)));
            Err(error.maybe_hint(tail).log(&logs))
        }
        (Ended::Client | Ended::Unheard, _) | (Ended::Server, Some(ConversationEnd::ServerExited(_))) => {
            Ok(Outcome::Done)
        }
        (Ended::Server, None) => {
            Err(Error::server(format!("conversation with machine {name} ended without a reason")).log(&logs))
        }
    }
}

/// Pumps bytes both ways until one side is done.
async fn converse(leased: &Leased) -> Result<Ended, Error> {
    let name = leased.record().name.as_str();
    let stream =
        leased.connect(port::CONVERSATION).await.map_err(|error| engine::session_error(name, error))?;
    let (from_server, to_server) = stream.into_split();
    let upward = up(to_server);
    let downward = down(from_server);
    tokio::pin!(upward, downward);
    tokio::select! {
        ended = &mut downward => Ok(ended),
        // What the server still has to say after the last request comes before its end.
        half = &mut upward => {
            // Dropped at the end of this block: the write half stays closed, not reset.
            let _half = half;
            tokio::select! {
                ended = &mut downward => Ok(if ended == Ended::Server { Ended::Client } else { ended }),
                () = unheard() => Ok(Ended::Unheard),
            }
        }
    }
}

async fn up(mut to_server: OwnedWriteHalf) -> OwnedWriteHalf {
    // A server that does not read any more is noticed when its output ends.
    let _ = copy(&mut tokio::io::stdin(), &mut to_server).await;
    let _ = to_server.shutdown().await;
    to_server
}

async fn down(mut from_server: OwnedReadHalf) -> Ended {
    match copy(&mut from_server, &mut tokio::io::stdout()).await {
        // The client has closed its end: nobody listens any more.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ended::Unheard,
        // A supervisor that is gone ends the conversation as a server does.
        Ok(_) | Err(_) => Ended::Server,
    }
}

/// Resolves when standard output has lost its reader. A client that was killed closes both ends, and a
/// server that neither ends at the end of its input nor writes would never find out.
async fn unheard() {
    let stdout = std::io::stdout();
    loop {
        tokio::time::sleep(STILL_THERE).await;
        let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
        let answered = poll(&mut asked, Some(&Timespec::default()));
        if answered.is_ok() && asked[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return;
        }
    }
}

/// Whether a server ended as servers do: by itself or, after its input had ended, by the signals that are
/// sent to one that lingers.
fn in_peace(ended: Ended, exit: &Exit, transport: &Transport) -> bool {
    const SENT: [i32; 2] = [Signal::TERM.as_raw(), Signal::KILL.as_raw()];
    let was_sent = ended == Ended::Client && exit.signal.is_some_and(|signal| SENT.contains(&signal));
    // One that has no input is always told by a signal, and may have an exit code of its own for that.
    let was_told = ended == Ended::Client && *transport != Transport::Stdio;
    exit.code == Some(0) || was_sent || was_told
}

fn describe(exit: &Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}
