//! Release files: `InRelease` is a signed list of digests of all indices of one suite.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;

use super::super::digest::Digest;
use super::DebianError;
use super::index::first_stanza;
use crate::helper::{self, Bounds};

/// Where Debian's package `debian-archive-keyring` puts the keys of the archive.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What checking a signature may take; it prints the text that was signed.
const BOUNDS: Bounds = Bounds { time: Duration::from_secs(60), output: 64 << 20 };

/// Lines of OpenPGP cleartext signatures (RFC 9580, 7).
const BEGIN_MESSAGE: &str = "-----BEGIN PGP SIGNED MESSAGE-----";
const BEGIN_SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";
const END_SIGNATURE: &str = "-----END PGP SIGNATURE-----";

/// A file that a release lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub digest: Digest,
    pub size: u64,
}

/// Who vouches for a release file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Voucher {
    /// Its signature, by a key of the keyring.
    Signature,
    /// Only the encrypted connection to the mirror: there was no key, or no program to check with.
    Transport,
}

/// The text of a release file that can be trusted, and why it can be.
///
/// `encrypted` says whether the transport authenticated the mirror that delivered the file from `url`.
pub(super) fn trusted_text(
    inrelease: &Path,
    url: &str,
    encrypted: bool,
    keyring: &Path,
) -> Result<(String, Voucher), DebianError> {
    let message = std::fs::read(inrelease)
        .map_err(|source| DebianError::Cache { path: inrelease.to_owned(), source })?;
    let message = String::from_utf8(message).map_err(|_| malformed(url, "it is no text"))?;
    let unchecked = clear_text(&message).ok_or(malformed(url, "it is no signed message"))?;
    match check_signature(inrelease, keyring) {
        Signature::Good(text) => Ok((text, Voucher::Signature)),
        Signature::Unknown if encrypted => Ok((unchecked, Voucher::Transport)),
        Signature::Unknown => Err(DebianError::Unverifiable { url: url.to_owned() }),
        Signature::Bad => Err(DebianError::Signature { url: url.to_owned(), keyring: keyring.to_owned() }),
    }
}

/// What a signature check found out.
#[derive(Debug, PartialEq, Eq)]
enum Signature {
    /// Signed by a known key; the text is what was signed.
    Good(String),
    /// Signed, but not by a key of the keyring; or there is no keyring, or no `gpgv` that answers.
    Unknown,
    /// Not what was signed.
    Bad,
}

fn check_signature(inrelease: &Path, keyring: &Path) -> Signature {
    if !keyring.exists() {
        return Signature::Unknown;
    }
    let mut gpgv = Command::new("gpgv");
    gpgv.args(["--status-fd", "2", "--output", "-", "--keyring"]).arg(keyring).arg("--").arg(inrelease);
    let Ok(output) = helper::run(&mut gpgv, BOUNDS) else { return Signature::Unknown };
    let status = String::from_utf8_lossy(&output.stderr);
    let says = |word: &str| {
        let mut lines = status.lines().filter_map(|line| line.strip_prefix("[GNUPG:] "));
        lines.any(|line| line.split(' ').next() == Some(word))
    };
    match String::from_utf8(output.stdout) {
        _ if says("BADSIG") => Signature::Bad,
        // Of several signatures one by a known key is enough, as apt has it.
        Ok(text) if says("GOODSIG") => Signature::Good(text),
        _ if says("NO_PUBKEY") => Signature::Unknown,
        _ => Signature::Bad,
    }
}

/// The signed text of a clearsigned message, without looking at its signature.
///
/// Text before or after the one message is an error: it would not be covered by the signature.
pub(super) fn clear_text(message: &str) -> Option<String> {
    let mut lines = message.trim_end().lines();
    if lines.next()?.trim_end() != BEGIN_MESSAGE {
        return None;
    }
    // Headers of the message, up to an empty line.
    lines.by_ref().find(|line| line.trim_end().is_empty())?;
    let mut text = String::with_capacity(message.len());
    loop {
        let line = lines.next()?;
        if line.trim_end() == BEGIN_SIGNATURE {
            break;
        }
        match line.strip_prefix('-') {
            None => text.push_str(line),
            Some(escaped) => text.push_str(escaped.strip_prefix(' ')?),
        }
        text.push('\n');
    }
    lines.by_ref().find(|line| line.trim_end() == END_SIGNATURE)?;
    lines.next().is_none().then_some(text)
}

/// The entry of the file `name` in the text of the release of `codename`.
pub(super) fn entry(text: &str, codename: &str, name: &str, now: Timestamp) -> Result<Entry, &'static str> {
    let release = first_stanza(text);
    if release.field("Codename") != Some(codename) {
        return Err("it is of another release");
    }
    if let Some(until) = release.field("Valid-Until") {
        let until = parse_date(until).ok_or("its expiry is no date")?;
        if until < now {
            return Err("it has expired");
        }
    }
    let digests = release.field("SHA256").ok_or("it lists no SHA-256 digests")?;
    let listed = digests.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (hex, size, path) = (words.next()?, words.next()?, words.next()?);
        (path == name).then_some((hex, size))
    });
    let (hex, size) = listed.ok_or("it does not list the index of this architecture")?;
    let digest = Digest::from_hex(hex).filter(|digest| matches!(digest, Digest::Sha256(_)));
    let size = size.parse().map_err(|_| "it lists a malformed size")?;
    Ok(Entry { digest: digest.ok_or("it lists a malformed digest")?, size })
}

/// A date as release files have it: RFC 5322, in UTC, which they call `UTC` rather than `+0000`.
fn parse_date(text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix("UTC").map_or(text.to_owned(), |date| format!("{date}GMT"));
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(&text).ok()
}

/// The error of an unusable release file.
pub(super) fn malformed(url: &str, problem: &'static str) -> DebianError {
    DebianError::Malformed { what: url.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: &str = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nCodename: x\n- -dash\n\
        -----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n";

    fn release(extra: &str) -> String {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        format!(
            "Origin: Debian\nCodename: x\n{extra}MD5Sum:\n 0 1 main/P.xz\nSHA256:\n {hex} 12 main/P\n {hex}  345 main/P.xz\n"
        )
    }

    fn now() -> Timestamp {
        "2026-11-21T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn clear_text_is_unescaped_and_stands_alone() {
        assert_eq!(clear_text(MESSAGE).unwrap(), "Codename: x\n-dash\n");
        assert_eq!(clear_text(&MESSAGE.replace('\n', "\r\n")).unwrap(), "Codename: x\n-dash\n");
        let refused = [
            format!("Codename: evil\n{MESSAGE}"),
            format!("{MESSAGE}Codename: evil\n"),
            format!("{MESSAGE}{MESSAGE}"),
            MESSAGE.replace("- -dash", "-dash"),
            MESSAGE.replace("-----END PGP SIGNATURE-----", ""),
            String::new(),
        ];
        for message in refused {
            assert_eq!(clear_text(&message), None, "{message}");
        }
    }

    #[test]
    fn entries_are_found_by_exact_name() {
        let found = entry(&release(""), "x", "main/P.xz", now()).unwrap();
        assert_eq!(found.size, 345);
        assert!(entry(&release(""), "x", "main", now()).is_err());
        assert_eq!(entry(&release(""), "y", "main/P.xz", now()), Err("it is of another release"));
        assert!(entry(&release("").replace(" 345 ", " x "), "x", "main/P.xz", now()).is_err());
        assert!(entry(&release("").replace("e3b0", "zzzz"), "x", "main/P.xz", now()).is_err());
        assert!(entry("Codename: x\n", "x", "main/P.xz", now()).is_err());
    }

    #[test]
    fn an_old_release_is_refused() {
        let fresh = release("Valid-Until: Sat, 28 Nov 2026 20:19:23 UTC\n");
        let stale = release("Valid-Until: Fri, 20 Nov 2026 20:19:23 UTC\n");
        assert!(entry(&fresh, "x", "main/P.xz", now()).is_ok());
        assert_eq!(entry(&stale, "x", "main/P.xz", now()), Err("it has expired"));
        assert!(entry(&release("Valid-Until: soon\n"), "x", "main/P.xz", now()).is_err());
    }

    #[test]
    fn without_a_keyring_only_an_encrypted_transport_vouches() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("InRelease");
        std::fs::write(&file, MESSAGE).unwrap();
        let absent = folder.path().join("absent.gpg");
        let (text, voucher) = trusted_text(&file, "https://m.test", true, &absent).unwrap();
        assert_eq!((text.as_str(), voucher), ("Codename: x\n-dash\n", Voucher::Transport));
        let refused = trusted_text(&file, "http://m.test", false, &absent);
        assert!(matches!(refused, Err(DebianError::Unverifiable { .. })));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(-----BEGIN PGP SIGNED MESSAGE-----\n)?[a: \n-]{0,40}") {
            let _ = (clear_text(&text), entry(&text, "a", "a", now()));
        }
    }
}
