//! What the system does for a connection: it tells when the other side is gone without a word.

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_nodelay,
    set_tcp_user_timeout,
};
use std::{os::fd::AsFd, time::Duration};

/// After how long without a sign of life the other side is asked for one.
const ASKED: Duration = Duration::from_secs(30);

/// How often it is asked then, and how far apart.
const TIMES: u32 = 3;
const APART: Duration = Duration::from_secs(10);

/// How long what was sent may stay unconfirmed: tcp(7), `TCP_USER_TIMEOUT`.
const UNCONFIRMED_MS: u32 = 30_000;

/// Prepares a connection. A socket that does not take one of these is served nevertheless.
pub fn prepare(socket: impl AsFd) {
    // Answers are small and waited for.
    let _ = set_tcp_nodelay(&socket, true);
    let _ = set_socket_keepalive(&socket, true);
    let _ = set_tcp_keepidle(&socket, ASKED);
    let _ = set_tcp_keepintvl(&socket, APART);
    let _ = set_tcp_keepcnt(&socket, TIMES);
    let _ = set_tcp_user_timeout(&socket, UNCONFIRMED_MS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::{socket_keepalive, tcp_keepidle, tcp_nodelay, tcp_user_timeout};

    #[test]
    fn a_connection_is_watched_by_the_system() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        prepare(&served);
        assert_eq!((socket_keepalive(&served), tcp_nodelay(&served)), (Ok(true), Ok(true)));
        assert_eq!((tcp_keepidle(&served), tcp_user_timeout(&served)), (Ok(ASKED), Ok(UNCONFIRMED_MS)));
    }
}
