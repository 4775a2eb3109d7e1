//! Takes secrets out of what a server prints, before it is written anywhere.

use super::{SecretText, Secrets};
use crate::log::CappedLog;
use memchr::memmem;
use std::{borrow::Cow, sync::Arc};
use zeroize::Zeroizing;

/// A line of a secret that has several is looked for by itself if it is at least so long: shorter ones
/// (`}`, `-----`) are no secret and stand everywhere.
const LINE_BYTES: usize = 8;

/// What begins like a secret for so many bytes is one that was cut.
const BEGINNING_BYTES: usize = 16;

/// Knows what must not be written.
#[derive(Default)]
pub(crate) struct Redactor {
    /// The longest first, so that no part of one is taken for another.
    patterns: Vec<Pattern>,
}

struct Pattern {
    bytes: Zeroizing<Vec<u8>>,
    shown: String,
}

impl Redactor {
    pub(crate) fn new(secrets: &Secrets) -> Self {
        let mut patterns = Vec::new();
        for secret in &secrets.0 {
            let shown = format!("[secret {}]", secret.name);
            patterns.extend(spellings(&secret.value).map(|bytes| Pattern { bytes, shown: shown.clone() }));
        }
        patterns.sort_by(|a, b| b.bytes.len().cmp(&a.bytes.len()).then_with(|| a.bytes.cmp(&b.bytes)));
        patterns.dedup_by(|a, b| a.bytes == b.bytes);
        Self { patterns }
    }

    /// The same bytes without secrets.
    pub(crate) fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let begins = |pattern: &Pattern| memmem::find(bytes, pattern.beginning()).is_some();
        match self.patterns.iter().any(begins) {
            true => Cow::Owned(self.scan(bytes, true).0),
            false => Cow::Borrowed(bytes),
        }
    }

    /// The same text without secrets.
    pub(crate) fn text(&self, text: &str) -> String {
        // Beginnings of texts are taken out of a text, and a character may be cut.
        String::from_utf8_lossy(&self.bytes(text.as_bytes())).into_owned()
    }

    /// The beginning of a text without secrets, of which one may be cut by the end.
    pub(crate) fn beginning(&self, text: &[u8]) -> String {
        String::from_utf8_lossy(&self.scan(text, false).0).into_owned()
    }

    /// The end of a text without secrets, of which one may be cut by its beginning: unless it is known to be whole,
    /// what stands before its first line's end is left out.
    pub(crate) fn end(&self, text: &str, is_whole: bool) -> String {
        match text.split_once('\n') {
            _ if is_whole || self.patterns.is_empty() => self.text(text),
            Some((_, rest)) => self.text(rest),
            None => String::new(),
        }
    }

    /// The same bytes without secrets, and how many at the end may be the beginning of one: they are left out,
    /// unless nothing more will come.
    fn scan(&self, bytes: &[u8], is_all: bool) -> (Vec<u8>, usize) {
        let (mut clean, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
        'next: while let [first, after @ ..] = rest {
            for pattern in &self.patterns {
                let same = pattern.bytes.iter().zip(rest).take_while(|(a, b)| a == b).count();
                if !is_all && same == rest.len() && same < pattern.bytes.len() {
                    return (clean, rest.len());
                }
                if same >= pattern.beginning().len() {
                    clean.extend_from_slice(pattern.shown.as_bytes());
                    rest = &rest[same..];
                    continue 'next;
                }
            }
            clean.push(*first);
            rest = after;
        }
        (clean, 0)
    }
}

impl Pattern {
    /// So much of it is taken for it: somebody may have cut it.
    fn beginning(&self) -> &[u8] {
        &self.bytes[..self.bytes.len().min(BEGINNING_BYTES)]
    }
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redactor").field("patterns", &self.patterns.len()).finish()
    }
}

/// How a secret may be written: as it is, as JSON, and each of its lines.
fn spellings(value: &SecretText) -> impl Iterator<Item = Zeroizing<Vec<u8>>> {
    let text = value.expose();
    let json = serde_json::to_string(text).map(Zeroizing::new).ok();
    let json = json.map(|json| Zeroizing::new(json.as_bytes()[1..json.len() - 1].to_vec()));
    let lines: Vec<Zeroizing<Vec<u8>>> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.len() >= LINE_BYTES)
        .map(|line| Zeroizing::new(line.as_bytes().to_vec()))
        .collect();
    [Zeroizing::new(text.as_bytes().to_vec())].into_iter().chain(json).chain(lines)
}

/// A log without secrets.
#[derive(Debug)]
pub(crate) struct Redacted {
    log: CappedLog,
    redactor: Arc<Redactor>,
    /// The beginning of what may become a secret with the next bytes.
    held: Zeroizing<Vec<u8>>,
    /// Bytes are missing, and it is not known yet where the next line begins.
    in_gap: bool,
}

impl Redacted {
    pub(crate) fn new(log: CappedLog, redactor: Arc<Redactor>) -> Self {
        Self { log, redactor, held: Zeroizing::default(), in_gap: false }
    }

    /// Appends bytes of a stream; some wait for those that come next.
    pub(crate) fn stream(&mut self, mut bytes: &[u8]) {
        if self.in_gap {
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return };
            bytes = &bytes[end + 1..];
            self.in_gap = false;
        }
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        let (clean, held) = self.redactor.scan(&all, false);
        self.held.extend_from_slice(&all[all.len() - held..]);
        self.log.write(&clean);
    }

    /// Bytes of the stream are missing here. Of a secret that was cut by that only the beginning could be known: what
    /// follows is left out up to the next line.
    pub(crate) fn gap(&mut self) {
        self.held.clear();
        self.in_gap = !self.redactor.patterns.is_empty();
    }

    /// The stream has ended, or began anew: nothing more is waited for.
    pub(crate) fn flush(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.log.write(&self.redactor.bytes(&held));
        self.in_gap = false;
    }

    /// Appends a line of casemate's own.
    pub(crate) fn line(&mut self, line: &str) {
        self.log.write(&self.redactor.bytes(format!("{line}\n").as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Holder, Secret};
    use super::*;
    use proptest::prelude::*;

    fn redactor(values: &[&str]) -> Redactor {
        let secret = |(n, value): (usize, &&str)| Secret {
            name: format!("S{n}"),
            value: SecretText::new((*value).to_owned()).unwrap(),
            holder: Holder::Server,
        };
        Redactor::new(&Secrets(values.iter().enumerate().map(secret).collect()))
    }

    fn streamed(redactor: Redactor, pieces: &[&[u8]]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Redacted::new(CappedLog::open(&path).unwrap(), Arc::new(redactor));
        pieces.iter().for_each(|piece| log.stream(piece));
        log.flush();
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn secrets_are_named_and_the_rest_stays() {
        let redactor = redactor(&["hunter2", "hunter2-long", "a\"b\nsecond line"]);
        let clean = redactor.text("x hunter2 hunter2-long {\"k\": \"a\\\"b\\nsecond line\"} a\"b hunter");
        assert_eq!(clean, "x [secret S0] [secret S1] {\"k\": \"[secret S2]\"} a\"b hunter");
        assert_eq!(redactor.text("its second line\r\n"), "its [secret S2]\r\n");
    }

    #[test]
    fn the_longest_of_several_is_taken_out_also_where_it_comes_in_pieces() {
        let both = || redactor(&["hunter2", "hunter2-long", "abcab"]);
        assert_eq!(
            streamed(both(), &[b"hunter2", b"-lo", b"ng", b" hunter2", b"-"]),
            "[secret S1] [secret S0]-"
        );
        assert_eq!(streamed(both(), &[b"xabcab", b"cab"]), "x[secret S2]cab");
    }

    #[test]
    fn a_secret_that_somebody_cut_is_taken_out_too() {
        let value = "0123456789abcdef".repeat(200);
        let redactor = redactor(&[&value]);
        assert_eq!(
            redactor.text(&format!("cannot read {:?}...", &value[..200])),
            "cannot read \"[secret S0]\"..."
        );
        assert_eq!(redactor.beginning(format!("config: {}", &value[..9]).as_bytes()), "config: ");
        assert_eq!(redactor.beginning(format!("config: {value}").as_bytes()), "config: [secret S0]");
        assert_eq!(redactor.end(&format!("{}\nlast: {value}", &value[7..]), false), "last: [secret S0]");
        assert_eq!(redactor.end(&value[7..], false), "");
        assert_eq!(Redactor::default().end("cut and kept", false), "cut and kept");
    }

    #[test]
    fn what_follows_a_gap_is_left_out_up_to_the_next_line() {
        let written = |value: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let mut log = Redacted::new(CappedLog::open(&path).unwrap(), Arc::new(redactor(value)));
            log.stream(b"begin hun");
            log.gap();
            for piece in [&b"ter2 "[..], b"is cut\nit goes on"] {
                log.stream(piece);
            }
            log.flush();
            std::fs::read_to_string(path).unwrap()
        };
        assert_eq!(written(&["hunter2"]), "begin it goes on");
        assert_eq!(written(&[]), "begin hunter2 is cut\nit goes on");
    }

    #[test]
    fn a_line_of_casemates_own_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let redactor = Arc::new(redactor(&["hunter2"]));
        let mut log = Redacted::new(CappedLog::open(&path).unwrap(), redactor);
        log.stream(b"it is hun");
        log.line("refused hunter2");
        log.stream(b"ter2 and hun");
        log.flush();
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(written, "it is refused [secret S0]\n[secret S0] and hun");
    }

    proptest! {
        #[test]
        fn no_secret_is_written_however_it_is_cut(
            around in "[hunter2 ]{0,12}", cuts in prop::collection::vec(0usize..40, 0..6)
        ) {
            let text = format!("{around}hunter2{around}hunter2hunter22");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|at| &text.as_bytes()[at[0]..at[1]]).collect();
            let written = streamed(redactor(&["hunter2"]), &pieces);
            prop_assert!(!written.contains("hunter2"), "{}", written);
            prop_assert_eq!(written, redactor(&["hunter2"]).text(&text));
        }
    }
}
