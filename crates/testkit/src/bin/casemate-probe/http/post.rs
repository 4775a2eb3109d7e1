//! `POST /mcp`: one message in, and its answer out, as JSON or as a stream.

use super::guard::{self, Accepted};
use super::mailbox::{Event, Mailbox};
use super::request::Request;
use super::response::{Response, Stream};
use super::sessions::{self, Session};
use super::{After, Site};
use crate::args::Eras;
use crate::conversation::{Conversation, Outlet};
use crate::lifecycle::{self, Phase};
use crate::revision::Revision;
use crate::rpc::{self, ErrorKind, Id, Incoming, Message, NoId, RpcError};
use std::io;
use std::net::TcpStream;
use std::sync::Arc;

/// To whom a message goes.
enum Addressee {
    /// Nobody but itself (modern), or a server that has not been initialised (legacy).
    Itself { conversation: Arc<Conversation>, modern: bool },
    /// A session that its handshake may begin.
    New(Arc<Session>),
    /// A session.
    Session(Arc<Session>),
}

impl Addressee {
    fn conversation(&self) -> &Arc<Conversation> {
        match self {
            Self::Itself { conversation, .. } => conversation,
            Self::New(session) | Self::Session(session) => &session.conversation,
        }
    }

    fn is_modern(&self) -> bool {
        matches!(self, Self::Itself { modern: true, .. })
    }
}

/// Answers a `POST`.
pub fn respond(site: &Arc<Site>, request: &Request, stream: &TcpStream) -> io::Result<After> {
    let incoming = rpc::parse(&request.body);
    let body = match &incoming {
        Ok(Incoming::One(Message::Request(body))) => Some(body),
        _ => None,
    };
    let mailbox = Arc::new(Mailbox::new()?);
    let outlet: Arc<dyn Outlet> = mailbox.clone();
    let (accepted, addressee) = match check_form(request, body)
        .and_then(|accepted| Ok((accepted, address(site, request, &incoming, &outlet)?)))
    {
        Ok(addressed) => addressed,
        Err(response) => return response.write(stream, request.after),
    };
    let id = body.map(|body| body.id.clone());
    let conversation = addressee.conversation();
    let silent = match &incoming {
        Ok(Incoming::One(message)) => !wants_answer(message),
        // Where there are no batches, that is the answer.
        Ok(Incoming::Batch(messages)) => conversation.has_batches() && !messages.iter().any(wants_answer),
        Err(_) => false,
    };
    conversation.take(incoming, &outlet);
    if silent {
        return Response::empty(202).write(stream, request.after);
    }
    let mut headers = Vec::new();
    if let Addressee::New(session) = &addressee
        && conversation.is_initialised()
    {
        if !site.sessions.add(session) {
            return Response::text(503, "too many sessions").write(stream, request.after);
        }
        headers.push(("Mcp-Session-Id", session.id.clone()));
    }
    let answering = Answering { mailbox: &mailbox, addressee: &addressee, accepted, headers };
    let ended = answering.run(stream, request.after);
    if let (true, Some(id), Ok(None) | Err(_)) = (addressee.is_modern(), &id, &ended) {
        // Closing the stream cancels the request, in the modern era only.
        conversation.cancel(id);
    }
    ended.map(|after| after.unwrap_or(After::Close))
}

/// Whether the client sends and takes the right kinds of content.
fn check_form(request: &Request, body: Option<&rpc::Request>) -> Result<Accepted, Response> {
    if !guard::sends_json(request) {
        return Err(Response::text(415, "Content-Type must be application/json"));
    }
    let accepted = guard::accepted(request);
    let endless = body.is_some_and(|body| body.method == "subscriptions/listen");
    if accepted.stream || accepted.json && !endless {
        return Ok(accepted);
    }
    Err(Response::text(406, "Accept must include application/json and text/event-stream"))
}

/// Finds to whom a message goes, by its headers and its body.
fn address(
    site: &Site,
    request: &Request,
    incoming: &Result<Incoming, RpcError>,
    outlet: &Arc<dyn Outlet>,
) -> Result<Addressee, Response> {
    let body = match incoming {
        Ok(Incoming::One(Message::Request(body))) => Some(body),
        _ => None,
    };
    let modern = match site.server.eras {
        Eras::Legacy => false,
        Eras::Modern => true,
        Eras::Both => guard::is_modern(request) || body.is_some_and(lifecycle::is_modern),
    };
    let alone = |phase| Addressee::Itself {
        conversation: Conversation::new(site.server.clone(), phase, outlet.clone()),
        modern,
    };
    if modern {
        if let Some(body) = body {
            guard::check_modern(request, body).map_err(|error| refusal(&body.id, error))?;
        }
        return Ok(alone(Phase::Modern));
    }
    if let Some(version) = request.header(guard::VERSION_HEADER)
        && Revision::legacy(version).is_none()
    {
        return Err(Response::text(400, "MCP-Protocol-Version names no revision that is spoken here"));
    }
    if request.header(sessions::HEADER).is_some() {
        return site.sessions.of(request).map(Addressee::Session);
    }
    match incoming {
        Ok(Incoming::One(Message::Request(body))) if body.method == "initialize" => {
            Session::new(&site.server)
                .map(Addressee::New)
                .map_err(|_| Response::text(500, "no session could be made"))
        }
        Ok(Incoming::One(Message::Notification { .. } | Message::Response { .. })) => {
            Err(Response::text(400, "Mcp-Session-Id is missing"))
        }
        _ => Ok(alone(Phase::Legacy)),
    }
}

fn wants_answer(message: &Message) -> bool {
    matches!(message, Message::Request(_) | Message::Invalid { .. })
}

fn refusal(id: &Id, error: RpcError) -> Response {
    let status = status(error.kind, true);
    Response::json(status, &rpc::answer(Some(id), NoId::Null, Err(error)).message)
}

/// The status that goes with an error. The modern era prescribes most; in the legacy era an error that has
/// an id to go with is an answer like any other.
fn status(error: ErrorKind, modern: bool) -> u16 {
    match error {
        ErrorKind::Parse
        | ErrorKind::InvalidRequest
        | ErrorKind::InvalidMeta
        | ErrorKind::HeaderMismatch
        | ErrorKind::MissingCapability
        | ErrorKind::UnsupportedVersion => 400,
        ErrorKind::MethodNotFound if modern => 404,
        ErrorKind::MethodNotFound | ErrorKind::InvalidParams | ErrorKind::Internal => 200,
    }
}

/// The way of one answer to the client.
struct Answering<'a> {
    mailbox: &'a Mailbox,
    addressee: &'a Addressee,
    accepted: Accepted,
    headers: Vec<(&'static str, String)>,
}

impl Answering<'_> {
    /// Sends what comes until the answer; `None` if the client left before it.
    fn run(&self, stream: &TcpStream, after: After) -> io::Result<Option<After>> {
        let mut out = None;
        loop {
            match self.mailbox.wait(stream) {
                Event::Message(message) if self.accepted.stream => {
                    // An answer alone is sent as JSON; only what comes before it needs a stream.
                    let started = self.stream(out.take(), stream)?;
                    out.insert(started).event(&message)?;
                }
                Event::Message(message) => {
                    if let Addressee::Session(session) = self.addressee {
                        session.push.send(message);
                    }
                }
                Event::Answer(answer) => {
                    let status = answer.error.map_or(200, |error| status(error, self.addressee.is_modern()));
                    if out.is_none() && (self.accepted.json || status != 200) {
                        let whole = Response::json(status, &answer.message);
                        return self.with_headers(whole).write(stream, after).map(Some);
                    }
                    let mut out = self.stream(out, stream)?;
                    out.event(&answer.message)?;
                    return out.finish().map(|()| Some(after));
                }
                Event::End if out.is_some() || self.accepted.stream => {
                    return self.stream(out, stream)?.finish().map(|()| Some(after));
                }
                Event::End => return Response::empty(204).write(stream, after).map(Some),
                Event::HungUp => return Ok(None),
            }
        }
    }

    fn stream<'a>(&self, out: Option<Stream<'a>>, stream: &'a TcpStream) -> io::Result<Stream<'a>> {
        out.map_or_else(|| Stream::start(stream, &self.headers), Ok)
    }

    fn with_headers(&self, response: Response) -> Response {
        self.headers.iter().fold(response, |response, (name, value)| response.header(name, value.as_str()))
    }
}
