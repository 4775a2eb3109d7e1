//! The Streamable HTTP transport, at `/mcp`, HTTP/1.1 only.
//!
//! ```text
//! POST /mcp    a message        (both eras)      the answer as JSON or as a stream; 202 if there is none
//! GET /mcp     a session        (legacy)         a stream of what the server says by itself
//! DELETE /mcp  a session        (legacy)         ends it
//! ```
//!
//! One thread a connection, which waits for the client and for answers at once; nothing happens by the clock.

mod guard;
mod mailbox;
mod post;
mod request;
mod response;
mod sessions;

use crate::args::Eras;
use crate::server::Server;
use crate::signal::lock;
use guard::Hosts;
use request::{Reader, Request};
use response::{Response, Stream};
use sessions::{Session, Sessions};
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;

/// The most connections at once; more are closed as they come.
const CONNECTIONS: usize = 256;

/// JSON as deep as the parser allows, dropped recursively, in an unoptimised build.
const CONNECTION_STACK: usize = 1 << 20;

/// What all connections share.
struct Site {
    server: Arc<Server>,
    sessions: Sessions,
    hosts: Hosts,
    connections: Mutex<usize>,
}

/// Whether the connection may carry another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Keep,
    Close,
}

/// Serves until the process is ended.
pub fn serve(server: &Arc<Server>, host: IpAddr, port: u16) -> ExitCode {
    let listening = TcpListener::bind((host, port)).and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    let (listener, address) = match listening {
        Ok(listening) => listening,
        Err(error) => {
            eprintln!("casemate-probe: listen on {host} port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    eprintln!("casemate-probe: listening on http://{address}/mcp");
    let site = Arc::new(Site {
        server: server.clone(),
        sessions: Sessions::default(),
        hosts: Hosts::of(host),
        connections: Mutex::new(0),
    });
    loop {
        match listener.accept() {
            Ok((stream, _)) => admit(&site, stream),
            // The client was faster to leave than we to greet it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                eprintln!("casemate-probe: accept a connection: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

fn admit(site: &Arc<Site>, stream: TcpStream) {
    {
        let mut connections = lock(&site.connections);
        if *connections >= CONNECTIONS {
            return;
        }
        *connections += 1;
    }
    let shared = site.clone();
    let spawned = thread::Builder::new().stack_size(CONNECTION_STACK).spawn(move || {
        // An error here is a client that left.
        let _ = connection(&shared, &stream);
        *lock(&shared.connections) -= 1;
    });
    if spawned.is_err() {
        *lock(&site.connections) -= 1;
    }
}

fn connection(site: &Arc<Site>, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(response::PATIENCE))?;
    let mut reader = Reader::new(stream);
    while let Some(request) = reader.next()? {
        let after = match request {
            Ok(request) => respond(site, &request, stream)?,
            Err(refusal) => {
                Response::text(refusal.status, refusal.reason).write(stream, After::Close)?;
                After::Close
            }
        };
        if after == After::Close {
            return reader.linger();
        }
    }
    Ok(())
}

/// Routes a request and writes its answer.
fn respond(site: &Arc<Site>, request: &Request, stream: &TcpStream) -> io::Result<After> {
    let refused = site.hosts.check(request).err().or_else(|| {
        (request.path() != "/mcp").then(|| Response::text(404, "this server's only resource is /mcp"))
    });
    if let Some(response) = refused {
        return response.write(stream, request.after);
    }
    let legacy = site.server.eras != Eras::Modern;
    match request.method.as_str() {
        "POST" => post::respond(site, request, stream),
        "GET" if legacy => match open_stream(site, request) {
            Ok(session) => push(&session, request, stream),
            Err(response) => response.write(stream, request.after),
        },
        "DELETE" if legacy => {
            let response = match site.sessions.of(request) {
                Ok(session) => {
                    site.sessions.end(&session);
                    Response::empty(204)
                }
                Err(response) => response,
            };
            response.write(stream, request.after)
        }
        _ => {
            let allow = if legacy { "POST, GET, DELETE" } else { "POST" };
            Response::text(405, "method not allowed").header("Allow", allow).write(stream, request.after)
        }
    }
}

/// Whether `GET` may open the stream of a session: it has one at most.
fn open_stream(site: &Site, request: &Request) -> Result<Arc<Session>, Response> {
    if !guard::accepted(request).stream {
        return Err(Response::text(406, "Accept must include text/event-stream"));
    }
    let session = site.sessions.of(request)?;
    if session.attach() { Ok(session) } else { Err(Response::text(409, "the session has a stream already")) }
}

/// Sends what the server says by itself, until the client leaves or the session ends.
fn push(session: &Session, request: &Request, stream: &TcpStream) -> io::Result<After> {
    let sent = Stream::start(stream, &[]).and_then(|mut out| {
        loop {
            match session.push.wait(stream) {
                mailbox::Event::Message(message) => out.event(&message)?,
                mailbox::Event::Answer(answer) => out.event(&answer.message)?,
                mailbox::Event::End => return out.finish().map(|()| request.after),
                mailbox::Event::HungUp => return Ok(After::Close),
            }
        }
    });
    session.detach();
    sent
}
