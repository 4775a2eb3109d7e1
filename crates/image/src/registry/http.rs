//! A small blocking HTTP client for package registries.
//!
//! Certificates are checked against the system's bundle (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured), a
//! proxy is taken from `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. Every answer has a size limit; transient
//! failures are tried again; a download appears under its name only when it is complete and verified.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::digest::Digest;
use crate::partial::Partial;
use crate::progress::Progress;

/// How often a request is tried before its failure is reported.
const ATTEMPTS: u32 = 4;
/// The wait before the second attempt; it doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// A transfer that delivers no byte for this long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Progress is reported once for so many bytes.
const REPORT_EVERY: u64 = 256 * 1024;

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The server answered with a status other than success.
    #[error("{url} answered with status {status}")]
    Status {
        /// Host and path asked for.
        url: String,
        /// The HTTP status code.
        status: u16,
    },
    /// No answer could be had, after all attempts.
    #[error("cannot fetch {url}; check the network, the proxy settings or the configured registry address")]
    Transport {
        /// Host and path asked for.
        url: String,
        #[source]
        /// What went wrong at the last attempt.
        source: Box<ureq::Error>,
    },
    /// The transfer broke off, after all attempts.
    #[error("the transfer of {url} broke off; check the network")]
    Transfer {
        /// Host and path asked for.
        url: String,
        #[source]
        /// What went wrong at the last attempt.
        source: io::Error,
    },
    /// The answer is larger than anything sensible.
    #[error("the answer of {url} is larger than {limit} bytes")]
    TooLarge {
        /// Host and path asked for.
        url: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes are not those that the index promised.
    #[error("{url} does not have the published digest: expected {expected}, got {actual}")]
    Digest {
        /// Host and path asked for.
        url: String,
        /// The published digest.
        expected: Box<Digest>,
        /// The digest of what arrived.
        actual: Box<Digest>,
    },
    /// The file could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        #[source]
        /// The cause.
        source: io::Error,
    },
}

/// The client. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Http {
    agent: ureq::Agent,
}

impl Default for Http {
    fn default() -> Self {
        Http::new()
    }
}

impl Http {
    /// A client with the system's certificates and the environment's proxy.
    ///
    /// Certificates that cannot be read are left out; if none remain, requests fail with a TLS error.
    pub fn new() -> Http {
        let found = rustls_native_certs::load_native_certs();
        let roots: Vec<Certificate<'static>> =
            found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("casemate/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .build();
        Http { agent: config.into() }
    }

    /// Fetches `url` into memory. `accept` is the media type asked for, `limit` the most bytes taken.
    pub fn get(&self, url: &str, accept: Option<&str>, limit: u64) -> Result<Vec<u8>, HttpError> {
        with_retries(|| {
            let mut bytes = Vec::new();
            let body = self.request(url, accept)?;
            body.take(limit.saturating_add(1))
                .read_to_end(&mut bytes)
                .map_err(|source| HttpError::Transfer { url: display_name(url), source })?;
            if bytes.len() as u64 > limit {
                return Err(HttpError::TooLarge { url: display_name(url), limit });
            }
            Ok(bytes)
        })
    }

    /// Fetches `url` into the file `to`, which appears only when complete and of the expected digest.
    ///
    /// The folder of `to` must exist; an existing file is replaced.
    pub fn download(
        &self,
        url: &str,
        to: &Path,
        expected: &Digest,
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<(), HttpError> {
        with_retries(|| {
            let cannot_write = |source| HttpError::Write { path: to.to_owned(), source };
            let mut file = Partial::beside(to).map_err(cannot_write)?;
            let body = self.request_sized(url, None)?;
            let total = body.length;
            let mut reader = body.reader;
            let mut hasher = expected.hasher();
            let mut chunk = vec![0; 64 * 1024];
            let (mut done, mut reported) = (0u64, 0u64);
            progress.bytes(0, total);
            loop {
                let count = match reader.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(source) => return Err(HttpError::Transfer { url: display_name(url), source }),
                };
                done += count as u64;
                if done > limit {
                    return Err(HttpError::TooLarge { url: display_name(url), limit });
                }
                hasher.update(&chunk[..count]);
                file.write_all(&chunk[..count]).map_err(cannot_write)?;
                if done - reported >= REPORT_EVERY {
                    progress.bytes(done, total);
                    reported = done;
                }
            }
            progress.bytes(done, total);
            let actual = hasher.finish();
            if actual != *expected {
                let expected = Box::new(*expected);
                return Err(HttpError::Digest { url: display_name(url), expected, actual: Box::new(actual) });
            }
            file.publish(to).map_err(cannot_write)
        })
    }

    fn request(&self, url: &str, accept: Option<&str>) -> Result<impl Read + use<>, HttpError> {
        Ok(self.request_sized(url, accept)?.reader)
    }

    fn request_sized(&self, url: &str, accept: Option<&str>) -> Result<SizedBody, HttpError> {
        let mut request = self.agent.get(url);
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        // An address that asks for encryption keeps it across redirects.
        let request = request.config().https_only(url.starts_with("https://")).build();
        match request.call() {
            Ok(response) => {
                let body = response.into_body();
                Ok(SizedBody { length: body.content_length(), reader: body.into_reader() })
            }
            Err(ureq::Error::StatusCode(status)) => Err(HttpError::Status { url: display_name(url), status }),
            Err(source) => Err(HttpError::Transport { url: display_name(url), source: Box::new(source) }),
        }
    }
}

struct SizedBody {
    length: Option<u64>,
    reader: ureq::BodyReader<'static>,
}

fn with_retries<T>(mut attempt: impl FnMut() -> Result<T, HttpError>) -> Result<T, HttpError> {
    let mut backoff = FIRST_BACKOFF;
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if is_transient(&error) => {
                std::thread::sleep(backoff);
                backoff *= 2;
            }
            decided => return decided,
        }
    }
    attempt()
}

/// Whether the same request may succeed a moment later.
fn is_transient(error: &HttpError) -> bool {
    match error {
        HttpError::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
        HttpError::Transfer { .. } => true,
        HttpError::Transport { source, .. } => matches!(
            **source,
            ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::HostNotFound
                | ureq::Error::ConnectionFailed
                | ureq::Error::Protocol(_)
        ),
        HttpError::TooLarge { .. } | HttpError::Digest { .. } | HttpError::Write { .. } => false,
    }
}

/// Scheme, host and path of `url`: no credentials, no query, so that it may be shown and logged.
fn display_name(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = match rest.find('/') {
                Some(at) => rest.split_at(at),
                None => (rest, ""),
            };
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}
