//! One connection to the supervisor's socket: who it is, which port it wants, and its stream.

use super::{
    answer, http,
    ledger::{Ledger, Side},
    shared::{Holder, InUse, Shared},
};
use crate::{control::ControlError, hangup::hung_up, supervise};
use casemate_link::{ConnectError, Stream, handshake};
use casemate_proto::{limits::MCP_MESSAGE_BYTES, line::LineBuffer, mux::ResetCode, port};
use serde_json::value::RawValue;
use std::{cell::RefCell, io, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
};

/// How long what a client had said may take to get through once it went away.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Serves one connection until it ends. What fails here concerns this connection alone.
pub(super) async fn handle(mut client: UnixStream, shared: Rc<Shared>) {
    let Some(holder) = admitted(&client) else { return };
    let Ok(port) = handshake::read_connect(&mut client).await else { return };
    let refused = match port {
        supervise::PORT => {
            if handshake::reply_ok(&mut client, port).await.is_ok() {
                answer::serve(client, &shared).await;
            }
            return;
        }
        port::CONVERSATION => match reserve(&shared, holder) {
            Ok(reservation) => match converse(&mut client, &shared).await {
                Ok(()) => return drop(reservation),
                Err(error) => error,
            },
            Err(busy) => (ResetCode::Busy, busy),
        },
        _ => match pass_through(&mut client, &shared, port).await {
            Ok(()) => return,
            Err(error) => error,
        },
    };
    // A client that is gone already need not be told.
    let _ = handshake::reply_refused(&mut client, refused.0, &refused.1).await;
}

/// The client, if it is the user that casemate runs as, or root.
fn admitted(client: &UnixStream) -> Option<Holder> {
    let credentials = client.peer_cred().ok()?;
    let own = rustix::process::geteuid().as_raw();
    if credentials.uid() != own && credentials.uid() != 0 {
        return None;
    }
    let pid = credentials.pid().unwrap_or_default();
    let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder { pid, program: program.trim().to_owned() })
}

/// Makes the client the one that speaks with the server, until the reservation is dropped.
fn reserve(shared: &Rc<Shared>, client: Holder) -> Result<Reservation, String> {
    if shared.conversation.borrow().is_some() {
        return Err("conversation is held by the machine's supervisor; use `casemate call`".to_owned());
    }
    let mut holder = shared.holder.borrow_mut();
    if let Some(Holder { pid, program }) = &*holder {
        return Err(format!("conversation is held by process {pid} ({program})"));
    }
    *holder = Some(client);
    Ok(Reservation(Rc::clone(shared)))
}

struct Reservation(Rc<Shared>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.holder.borrow_mut().take();
    }
}

type Refusal = (ResetCode, String);

async fn open(shared: &Shared, port: u32) -> Result<Stream, Refusal> {
    let link = shared.link().await.map_err(refusal)?;
    link.connector.connect(port).await.map_err(|error| refusal(error.into()))
}

fn refusal(error: ControlError) -> Refusal {
    match error {
        ControlError::Connect(ConnectError::Refused { code, reason, .. }) => (code, reason),
        ControlError::Connect(error @ ConnectError::TooMany) => (ResetCode::Busy, error.to_string()),
        _ => (ResetCode::Internal, super::ending::chain(&error)),
    }
}

/// Joins the client and a port of the machine, byte for byte.
async fn pass_through(client: &mut UnixStream, shared: &Rc<Shared>, port: u32) -> Result<(), Refusal> {
    let _in_use = shared.in_use();
    let mut stream = open(shared, port).await?;
    if handshake::reply_ok(client, port).await.is_ok() {
        let gone = gone(client);
        // Either side may break off; both streams end with this function.
        tokio::select! {
            _ = tokio::io::copy_bidirectional(client, &mut stream) => {}
            () = gone => {}
        }
    }
    Ok(())
}

/// Resolves when a client is no more: one that says no more still waits for answers, of a machine that may be
/// silent for as long as it likes.
fn gone(client: &UnixStream) -> impl Future<Output = ()> + use<> {
    let hung_up = hung_up(client);
    async {
        hung_up.await;
        tokio::time::sleep(LAST_WORDS).await;
    }
}

/// Why a conversation did not come to its own end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// One side sent a line that cannot be followed.
    #[error("message from the {from} is longer than {limit} bytes", limit = MCP_MESSAGE_BYTES)]
    TooLong { from: &'static str },
    /// One side went away.
    #[error(transparent)]
    Gone(#[from] io::Error),
}

/// Joins the client and the server. What the server prints is passed on a line at a time, so that a stray
/// print reaches the log and not the client.
async fn converse(client: &mut UnixStream, shared: &Rc<Shared>) -> Result<(), Refusal> {
    let open = (!shared.may_be_suspended).then(|| shared.in_use());
    let usage = Usage { shared, ledger: RefCell::default(), open: RefCell::new(open) };
    // It is not to be suspended before the client has said its first word.
    let opening = shared.in_use();
    let stream = http::talk(shared).await.map_err(refusal)?;
    if handshake::reply_ok(client, port::CONVERSATION).await.is_err() {
        return Ok(());
    }
    drop(opening);
    let gone = gone(client);
    let (mut from_server, mut to_server) = tokio::io::split(stream);
    let (mut from_client, mut to_client) = client.split();
    let requests = async {
        pass_requests(&mut from_client, &mut to_server, &usage).await?;
        // The end of what a client says is for the server to hear too, and to answer.
        let in_use = shared.in_use();
        awake(shared).await?;
        to_server.shutdown().await?;
        Ok(in_use)
    };
    let answers = pass_messages(&mut from_server, &mut to_client, &usage);
    tokio::pin!(requests, answers);
    // The client's end closes the server's stdin and lets it answer what it still has; the server's end
    // is the end of both.
    let both = async {
        tokio::select! {
            ended = &mut answers => ended,
            sent = &mut requests => match sent {
                Ok(_in_use) => answers.await,
                Err(error) => Err(error),
            },
        }
    };
    let ended = tokio::select! {
        ended = both => ended,
        () = gone => Ok(()),
    };
    if let Err(error @ Broken::TooLong { .. }) = ended {
        shared.note(&format!("conversation ended: {error}"));
        // Before the client sees the end, so that it finds the reason when it looks for one.
        shared.broken.send_replace(Some(error.to_string()));
    }
    Ok(())
}

/// Passes on what the client sends, byte for byte, as long as its lines are within bounds.
async fn pass_requests(
    client: &mut (impl AsyncRead + Unpin),
    server: &mut (impl AsyncWrite + Unpin),
    usage: &Usage<'_>,
) -> Result<(), Broken> {
    let mut chunk = vec![0; 64 << 10];
    let (mut length, mut lines) = (0, LineBuffer::new(MCP_MESSAGE_BYTES));
    loop {
        let sent = match client.read(&mut chunk).await? {
            0 => return Ok(()),
            read => &chunk[..read],
        };
        // A part of a message is a use of the machine too.
        let _in_use = usage.shared.may_be_suspended.then(|| usage.shared.in_use());
        for part in sent.split_inclusive(|&byte| byte == b'\n') {
            length += part.strip_suffix(b"\n").unwrap_or(part).len();
            if length > MCP_MESSAGE_BYTES {
                return Err(Broken::TooLong { from: "client" });
            }
            if part.ends_with(b"\n") {
                length = 0;
            }
        }
        if usage.shared.may_be_suspended {
            lines.push(sent);
            while let Ok(Some(line)) = lines.next_line() {
                usage.note(Side::Client, line);
            }
            awake(usage.shared).await?;
        }
        server.write_all(sent).await?;
    }
}

/// A machine that was suspended meanwhile goes on.
async fn awake(shared: &Shared) -> Result<(), Broken> {
    match shared.link().await {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::other(super::ending::chain(&error)).into()),
    }
}

/// Whether a client's conversation uses the machine: from its beginning to its end, or where the machine may
/// be suspended meanwhile, while a request is open.
struct Usage<'a> {
    shared: &'a Rc<Shared>,
    ledger: RefCell<Ledger>,
    open: RefCell<Option<InUse>>,
}

impl Usage<'_> {
    fn note(&self, side: Side, line: &[u8]) {
        if !self.shared.may_be_suspended {
            return;
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.note(side, line);
        // Dropped and taken anew, so that the machine counts as used just now.
        let in_use = ledger.is_open().then(|| self.shared.in_use());
        drop(self.shared.in_use());
        *self.open.borrow_mut() = in_use;
    }
}

async fn pass_messages(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
    usage: &Usage<'_>,
) -> Result<(), Broken> {
    let shared = usage.shared;
    let mut lines = LineBuffer::new(MCP_MESSAGE_BYTES);
    let mut chunk = vec![0; 64 << 10];
    loop {
        match lines.next_line() {
            Ok(Some(line)) if is_object(line) => {
                usage.note(Side::Server, line);
                client.write_all(line).await?;
                client.write_all(b"\n").await?;
                continue;
            }
            Ok(Some(line)) => {
                shared.note_garbage(line);
                continue;
            }
            Ok(None) => {}
            Err(_) => return Err(Broken::TooLong { from: "server" }),
        }
        match server.read(&mut chunk).await? {
            0 => break,
            read => lines.push(&chunk[..read]),
        }
    }
    let rest = lines.remainder();
    if is_object(rest) {
        client.write_all(rest).await?;
    } else if !rest.is_empty() {
        shared.note_garbage(rest);
    }
    Ok(())
}

fn is_object(line: &[u8]) -> bool {
    line.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
        && serde_json::from_slice::<&RawValue>(line).is_ok()
}

#[cfg(test)]
mod tests;
