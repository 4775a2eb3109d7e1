//! Secrets that the guest does not have: the host puts them into its requests.
//!
//! ```text
//! guest ── TLS, the machine's own authority ── host ── TLS, verified here ── server outside
//!          Authorization: Bearer casemate-placeholder-…     Authorization: Bearer the token
//! ```
//!
//! Both ends speak HTTP/1.1. Header fields of requests are searched for placeholders; addresses and bodies are
//! not, nor is anything that comes back: a server that repeats what it was sent tells the guest the secret.

mod authority;
mod header;
mod reason;
#[cfg(test)]
mod tests;

pub(crate) use authority::AuthorityError;

use super::{
    budget::Bounds,
    carry::{Meter, Metered, idle},
};
use crate::{secret::Swapped, supervisor::chain};
use authority::Authority;
use casemate_proto::{
    control::Trust,
    egress::{Host, Target},
};
use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri, Version,
    body::{Body, Bytes, Incoming},
    client::conn::http1 as client,
    header::{HOST, HeaderValue, TRANSFER_ENCODING},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
    server::Acceptor,
};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

/// How long a TLS handshake, or the head of a request, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest head of a request or an answer.
const HEAD_BYTES: usize = 64 << 10;

/// TLS's own port, which no address names.
const HTTPS: u16 = 443;

/// Why secrets cannot be put into requests.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwapError {
    /// Nobody could be verified.
    #[error("this host trusts no authority, so no server outside can be verified")]
    NoRoots,
    /// Certificates cannot be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// Puts secrets into the requests of one machine.
#[derive(Debug)]
pub(super) struct Swap {
    secrets: Vec<Swapped>,
    authority: Authority,
    trust: Trust,
    outside: Arc<ClientConfig>,
}

/// A connection to a server that was verified.
#[derive(Debug)]
pub(super) struct Verified {
    stream: tokio_rustls::client::TlsStream<Metered>,
    meter: Arc<Meter>,
}

/// Names of secrets that were put into requests.
pub(super) type Used = Mutex<BTreeSet<String>>;

type Answer = Response<Either<Incoming, Full<Bytes>>>;

impl Swap {
    /// Trusts who this host trusts.
    pub(super) fn new(secrets: Vec<Swapped>) -> Result<Self, SwapError> {
        Self::trusting(secrets, rustls_native_certs::load_native_certs().certs)
    }

    fn trusting(secrets: Vec<Swapped>, roots: Vec<CertificateDer<'static>>) -> Result<Self, SwapError> {
        let authority = Authority::new()?;
        let trust = authority.trust(&roots);
        let mut store = RootCertStore::empty();
        // A certificate of another age or kind verifies nobody, and harms nobody.
        let _ = store.add_parsable_certificates(roots);
        if store.is_empty() {
            return Err(SwapError::NoRoots);
        }
        let mut outside = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        outside.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { secrets, authority, trust, outside: Arc::new(outside) })
    }

    /// What the programs of the machine are to trust.
    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether a secret goes there.
    pub(super) fn concerns(&self, target: &Target) -> bool {
        self.of(target).next().is_some()
    }

    fn of<'a>(&'a self, target: &Target) -> impl Iterator<Item = &'a Swapped> {
        self.secrets.iter().filter(|secret| secret.to.iter().any(|allow| allow.matches(target)))
    }

    /// Verifies that a connection leads to the server of that name.
    pub(super) async fn verify(&self, target: &Target, outside: Metered) -> io::Result<Verified> {
        let name = match &target.host {
            Host::Name(name) => ServerName::try_from(name.clone()).map_err(io::Error::other)?,
            Host::Address(address) => ServerName::IpAddress((*address).into()),
        };
        let meter = Arc::clone(outside.meter());
        let connecting = TlsConnector::from(Arc::clone(&self.outside)).connect(name, outside);
        let connected = timeout(PATIENCE, connecting).await.map_err(|_| io::ErrorKind::TimedOut)?;
        let stream = connected.map_err(reason::outside)?;
        Ok(Verified { stream, meter })
    }

    /// Takes the guest's TLS in place of the server's.
    pub(super) async fn accept<G>(
        &self,
        target: &Target,
        guest: G,
    ) -> io::Result<tokio_rustls::server::TlsStream<G>>
    where
        G: AsyncRead + AsyncWrite + Unpin,
    {
        let accepting = async {
            let begun = LazyConfigAcceptor::new(Acceptor::default(), guest).await?;
            let named = begun.client_hello().server_name().map(str::to_ascii_lowercase);
            if let Host::Name(name) = &target.host
                && named.as_ref() != Some(name)
            {
                let named = named.as_deref().unwrap_or("no server");
                return Err(io::Error::other(format!("its TLS handshake is for {named}")));
            }
            let config = self.authority.server(&target.host);
            let config = config.map_err(|error| io::Error::other(chain(&error)))?;
            begun.into_stream(Arc::new(config)).await
        };
        let accepted = timeout(PATIENCE, accepting).await.map_err(|_| io::ErrorKind::TimedOut)?;
        accepted.map_err(reason::inside)
    }

    /// Carries requests and answers until one side ends, or a bound is reached; says why. `used` has
    /// the names of the secrets that were put into requests.
    pub(super) async fn carry(
        &self,
        target: &Target,
        guest: impl AsyncRead + AsyncWrite + Unpin,
        outside: Verified,
        bounds: &Bounds,
        used: &Used,
    ) -> Option<String> {
        let Verified { stream, meter } = outside;
        let carrying = self.requests(target, guest, stream, bounds, used);
        tokio::select! {
            carried = carrying => carried.err().map(|error| reason::of_requests(&error)),
            reason = idle(&meter, bounds) => Some(reason),
        }
    }

    async fn requests(
        &self,
        target: &Target,
        guest: impl AsyncRead + AsyncWrite + Unpin,
        outside: impl AsyncRead + AsyncWrite + Unpin,
        bounds: &Bounds,
        used: &Used,
    ) -> hyper::Result<()> {
        let (sender, to_server) =
            client::Builder::new().max_buf_size(HEAD_BYTES).handshake(TokioIo::new(outside)).await?;
        let sender = tokio::sync::Mutex::new(sender);
        let service = service_fn(|request| async {
            Ok::<_, Infallible>(self.forward(target, request, &sender, used).await)
        });
        let serving = server::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.idle)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(guest), service);
        let (mut serving, mut to_server) = (pin!(serving), pin!(to_server));
        // It says no more, well or badly: what it said last is still to be passed on.
        let ended = tokio::select! {
            served = serving.as_mut() => return served,
            ended = to_server.as_mut() => ended,
        };
        serving.as_mut().graceful_shutdown();
        serving.await?;
        // Every answer was passed on whole: how the server leaves after that is its own affair.
        ended.or_else(|error| if reason::is_cut(&error) { Ok(()) } else { Err(error) })
    }

    /// Passes one request on, and its answer back.
    async fn forward(
        &self,
        target: &Target,
        request: Request<Incoming>,
        sender: &tokio::sync::Mutex<client::SendRequest<Incoming>>,
        used: &Used,
    ) -> Answer {
        let (mut parts, body) = request.into_parts();
        match parts.method {
            Method::CONNECT => return refusal(StatusCode::BAD_REQUEST, "no tunnels through casemate"),
            // A server that heeds it would answer with what it was sent (RFC 9110, section 9.3.8).
            Method::TRACE => return refusal(StatusCode::METHOD_NOT_ALLOWED, "no TRACE with a secret"),
            _ => {}
        }
        let path = parts.uri.into_parts().path_and_query.map_or_else(Uri::default, Uri::from);
        (parts.uri, parts.version) = (path, Version::HTTP_11);
        header::strip(&mut parts.headers);
        let Ok(host) = HeaderValue::from_str(&authority_of(target)) else {
            return refusal(StatusCode::BAD_REQUEST, "this host has no name that a request could be for");
        };
        parts.headers.insert(HOST, host);
        if body.size_hint().exact().is_none() {
            // It was stripped with what is of one connection; without it a GET would lose its body.
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let secrets: Vec<&Swapped> = self.of(target).collect();
        let note = |name: &str| {
            super::budget::lock(used).insert(name.to_owned());
        };
        if let Err(unfit) = header::swap(&mut parts.headers, &secrets, note) {
            return refusal(StatusCode::BAD_GATEWAY, &unfit.to_string());
        }
        let mut sender = sender.lock().await;
        match sender.send_request(Request::from_parts(parts, body)).await {
            Ok(answer) => {
                let (mut parts, body) = answer.into_parts();
                header::strip(&mut parts.headers);
                Response::from_parts(parts, Either::Left(body))
            }
            Err(error) => refusal(StatusCode::BAD_GATEWAY, &chain(&error)),
        }
    }
}

/// The `Host` field of requests to a target (RFC 9110, section 7.2).
fn authority_of(target: &Target) -> String {
    match target.port {
        HTTPS => target.to_string().trim_end_matches(":443").to_owned(),
        _ => target.to_string(),
    }
}

/// An answer of casemate's own.
fn refusal(status: StatusCode, reason: &str) -> Answer {
    let text = format!("casemate: {reason}\n");
    let mut answer = Response::new(Either::Right(Full::new(text.into())));
    *answer.status_mut() = status;
    answer
}
