//! What every step of a build needs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{BuildError, BuildRequest};
use crate::archive::UnpackError;
use crate::confine::{Confinement, Outcome};
use crate::partial::PartialDir;
use crate::progress::Progress;
use crate::registry::address::Registries;
use crate::registry::http::Http;
use crate::store::{BUILD_TIME, BuildLog, Store, StoreError};

/// Where systems keep the certificates of authorities as one file.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The largest bundle of certificates.
const BUNDLE_BYTES: u64 = 8 << 20;

/// What every step of a build needs.
pub(crate) struct Context<'a> {
    pub(crate) store: &'a Store,
    pub(crate) registries: &'a Registries,
    pub(crate) request: &'a BuildRequest<'a>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) http: Http,
    log: BuildLog<'a>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(
        store: &'a Store,
        registries: &'a Registries,
        request: &'a BuildRequest<'a>,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            store,
            registries,
            request,
            progress,
            http: Http::new(),
            log: BuildLog::new(store, format!("building {}", request.source)),
        }
    }

    /// Runs a confined program, its command and output going to the log.
    pub(crate) fn run(&self, confinement: &Confinement<'_>) -> Result<Outcome, BuildError> {
        self.note(&format!("running {}", confinement.argv.join(" ")))?;
        let result = confinement.run(&mut self.log.writer()?);
        let outcome = result.map_err(|source| BuildError::Confine { log: self.log_path(), source })?;
        for address in &outcome.refused {
            let note = format!(
                "the installer asked for {address}, which is no configured registry, and was refused"
            );
            self.note(&note)?;
            self.progress.note(&note);
        }
        self.note(&format!("it ended with {}", outcome.ending()))?;
        Ok(outcome)
    }

    /// Adds a line to the log.
    pub(crate) fn note(&self, text: &str) -> Result<(), BuildError> {
        self.log.line(text)?;
        Ok(())
    }

    /// Where the log is, for errors.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.log.path().unwrap_or_else(|| self.store.logs_dir())
    }

    /// A folder for this build's files, removed when dropped.
    pub(crate) fn work(&self) -> Result<PartialDir, BuildError> {
        let folder = self.store.cache("work")?;
        PartialDir::inside(&folder).map_err(crate::files::failed("write to", &folder)).map_err(Into::into)
    }

    /// Takes a lock, saying what it waits for if it has to.
    pub(crate) fn wait_for(&self, name: &str, what: &str) -> Result<File, StoreError> {
        let say = || self.progress.step(&format!("waiting for another command that {what}"));
        self.store.lock(name, BUILD_TIME, say)
    }

    /// The certificates of authorities that this host trusts, in PEM.
    pub(crate) fn certificates(&self) -> Result<Vec<u8>, BuildError> {
        let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut last = io::ErrorKind::NotFound.into();
        for path in named.into_iter().chain(BUNDLES.map(PathBuf::from)) {
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.len() > BUNDLE_BYTES => last = io::ErrorKind::FileTooLarge.into(),
                _ => match std::fs::read(&path) {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => last = error,
                },
            }
        }
        Err(BuildError::Certificates(last))
    }

    pub(crate) fn unpack_error(&self, archive: &Path, source: UnpackError) -> BuildError {
        BuildError::Unpack { archive: archive.to_owned(), source: Box::new(source) }
    }
}
