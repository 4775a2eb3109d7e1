//! SOCKS version 5 (RFC 1928), as far as clients use it: `CONNECT` without authentication.

use super::way::Way;
use super::{PATIENCE, join};
use casemate_proto::egress::{Host, Refusal, Request, Target};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The first byte of a client.
pub const VERSION: u8 = 5;

const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// Answers (section 6).
mod reply {
    pub const DONE: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const DENIED: u8 = 2;
    pub const UNREACHABLE: u8 = 4;
    pub const NO_COMMAND: u8 = 7;
    pub const NO_ADDRESS: u8 = 8;
}

/// Serves one client to its end.
pub async fn serve(mut client: TcpStream, way: &Way) -> io::Result<()> {
    let asked = timeout(PATIENCE, async {
        let methods = greeting(&mut client).await?;
        let method = if methods.contains(&NO_AUTHENTICATION) { NO_AUTHENTICATION } else { NO_METHOD };
        client.write_all(&[VERSION, method]).await?;
        if method == NO_METHOD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        request(&mut client).await
    });
    let target = match asked.await?? {
        Ok(target) => target,
        Err(code) => return answer(&mut client, code).await,
    };
    match way.open(&Request::Connect(target)).await {
        Ok(mut outside) => {
            answer(&mut client, reply::DONE).await?;
            join(&mut client, &mut outside).await
        }
        Err(refused) => {
            let code = match refused.code {
                Refusal::Denied => reply::DENIED,
                Refusal::Unreachable => reply::UNREACHABLE,
                Refusal::Busy | Refusal::Malformed => reply::FAILED,
            };
            answer(&mut client, code).await?;
            client.shutdown().await
        }
    }
}

async fn greeting(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = [0; 2];
    client.read_exact(&mut head).await?;
    if head[0] != VERSION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut methods = vec![0; head[1].into()];
    client.read_exact(&mut methods).await?;
    Ok(methods)
}

/// What is asked for, or the answer to what cannot be done.
async fn request(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Result<Target, u8>> {
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    let [VERSION, command, 0, kind] = head else { return Err(io::ErrorKind::InvalidData.into()) };
    let host = match kind {
        1 => Ok(Host::Address(Ipv4Addr::from(client.read_u32().await?).into())),
        4 => Ok(Host::Address(Ipv6Addr::from(client.read_u128().await?).to_canonical())),
        3 => {
            let mut name = vec![0; client.read_u8().await?.into()];
            client.read_exact(&mut name).await?;
            // Some clients hand over an IPv6 address as if it were a name.
            let name = String::from_utf8(name).unwrap_or_default();
            let bracketed = if name.contains(':') { format!("[{name}]") } else { name };
            bracketed.parse()
        }
        _ => return Ok(Err(reply::NO_ADDRESS)),
    };
    let port = client.read_u16().await?;
    Ok(match (command, host) {
        (CONNECT, Ok(host)) if port != 0 => Ok(Target { host, port }),
        (CONNECT, _) => Err(reply::NO_ADDRESS),
        _ => Err(reply::NO_COMMAND),
    })
}

/// The address in an answer is where the connection comes from, which nobody here knows.
async fn answer(client: &mut TcpStream, code: u8) -> io::Result<()> {
    client.write_all(&[VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(bytes: &[u8]) -> Option<Result<String, u8>> {
        request(&mut &*bytes).await.ok().map(|asked| asked.map(|target| target.to_string()))
    }

    #[tokio::test]
    async fn requests_are_read_in_their_three_kinds() {
        assert_eq!(asked(b"\x05\x01\0\x01\x7f\0\0\x01\0\x50").await, Some(Ok("127.0.0.1:80".to_owned())));
        assert_eq!(asked(b"\x05\x01\0\x03\x09A.example\x01\xbb").await, Some(Ok("a.example:443".to_owned())));
        let v6 = [&b"\x05\x01\0\x04"[..], &[0x20, 1], &[0; 13], &[1, 0, 80]].concat();
        assert_eq!(asked(&v6).await, Some(Ok("[2001::1]:80".to_owned())));
        assert_eq!(asked(b"\x05\x01\0\x03\x03::1\0\x50").await, Some(Ok("[::1]:80".to_owned())));
    }

    #[tokio::test]
    async fn what_is_not_done_is_said_and_nonsense_is_left() {
        assert_eq!(asked(b"\x05\x02\0\x01\x7f\0\0\x01\0\x50").await, Some(Err(reply::NO_COMMAND)));
        assert_eq!(asked(b"\x05\x01\0\x02\x7f\0\0\x01\0\x50").await, Some(Err(reply::NO_ADDRESS)));
        assert_eq!(asked(b"\x05\x01\0\x01\x7f\0\0\x01\0\0").await, Some(Err(reply::NO_ADDRESS)));
        assert_eq!(asked(b"\x05\x01\0\x03\x03a\nb\0\x50").await, Some(Err(reply::NO_ADDRESS)));
        assert_eq!(asked(b"\x04\x01\0\x01\x7f\0\0\x01\0\x50").await, None);
        assert_eq!(asked(b"\x05\x01\x01\x01\x7f\0\0\x01\0\x50").await, None);
        assert_eq!(asked(b"\x05\x01\0\x03\xffa").await, None);
    }
}
