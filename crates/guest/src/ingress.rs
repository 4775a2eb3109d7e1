//! Port 5255: to the HTTP port of a server on guest loopback.

use crate::agent::Agent;
use casemate_link::Incoming;
use casemate_proto::control::Transport;
use casemate_proto::limits::HANDSHAKE_TIMEOUT;
use casemate_proto::mux::ResetCode;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// How long a server that has just been started may take to listen; the host waits a little longer.
const PATIENCE: Duration = HANDSHAKE_TIMEOUT.saturating_sub(Duration::from_secs(1));
const TRY_AGAIN: Duration = Duration::from_millis(25);
const BUFFER_BYTES: usize = 64 << 10;

/// Carries one connection, starting the server if none was started.
pub async fn carry(agent: &Agent, incoming: Incoming) {
    let port = match agent.server.launch().map(|launch| launch.transport) {
        Ok(Transport::Http { port }) => port,
        Ok(Transport::Stdio) => {
            return incoming.refuse(ResetCode::Refused, "the server is reached by its conversation");
        }
        Err(failure) => return incoming.refuse(ResetCode::Refused, &failure.message),
    };
    let mut server = match connect(agent, port).await {
        Ok(server) => server,
        Err(reason) => return incoming.refuse(ResetCode::Refused, &reason),
    };
    let mut client = incoming.accept();
    // How a connection ends is between its two ends.
    let _ =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES).await;
}

async fn connect(agent: &Agent, port: u16) -> Result<TcpStream, String> {
    let process = {
        let turn = agent.server.turn().await;
        match agent.server.state() {
            // A server of this kind serves all its clients with one process; whether its end is to be followed
            // by another is for the host to say.
            casemate_proto::control::ServerState::Exited(_) => return Err("the server has ended".to_owned()),
            _ => agent.server.ensure(&turn).map_err(|failure| failure.message)?,
        }
    };
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < until => {}
            Err(error) => return Err(format!("connect to the server's port {port}: {error}")),
        }
        tokio::select! {
            () = sleep(TRY_AGAIN) => {}
            () = process.over() => return Err("the server has ended".to_owned()),
        }
    }
}
