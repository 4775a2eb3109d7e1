//! Why a connection with a secret did not come about or broke off, for people: what is most often the matter in
//! their words, with the library's own behind them.

use crate::supervisor::chain;
use rustls::{AlertDescription, CertificateError, Error as TlsError};
use std::{error::Error, io};

/// The same error of a handshake with the server outside, in words.
pub(super) fn outside(error: io::Error) -> io::Error {
    in_words(error, of_server)
}

/// The same error of a handshake with the program inside, in words.
pub(super) fn inside(error: io::Error) -> io::Error {
    in_words(error, of_guest)
}

fn in_words(error: io::Error, words: impl Fn(&TlsError) -> Option<&'static str>) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match tls.and_then(words) {
        Some(words) => io::Error::new(error.kind(), format!("{words} ({error})")),
        None => error,
    }
}

/// Why requests and answers ended before their end.
pub(super) fn of_requests(error: &hyper::Error) -> String {
    match (is_cut(error), error.is_user()) {
        // What is passed on to the program is the body of an answer.
        (true, true) => {
            "the server left in the middle of an answer, or of one whose end it did not tell".to_owned()
        }
        (true, false) => "the program inside left before it was answered".to_owned(),
        (false, _) => chain(error),
    }
}

/// Whether a connection was closed without the words with which TLS ends.
pub(super) fn is_cut(error: &hyper::Error) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = next {
        let is_end = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
        if cause.downcast_ref::<io::Error>().is_some_and(is_end) {
            return true;
        }
        next = cause.source();
    }
    false
}

fn of_guest(error: &TlsError) -> Option<&'static str> {
    Some(match error {
        TlsError::InvalidMessage(_) => "what it speaks is not TLS",
        TlsError::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown,
        ) => "it does not believe that authority",
        _ => return None,
    })
}

fn of_server(error: &TlsError) -> Option<&'static str> {
    Some(match error {
        TlsError::InvalidMessage(_) => "what speaks there is not TLS",
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is of no authority that this host trusts; SSL_CERT_FILE names a file with others"
        }
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for other names",
        TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired"
        }
        _ => return None,
    })
}
