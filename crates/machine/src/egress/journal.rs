//! What is written down: every attempt with its verdict in `egress.log`, and refusals in the server's log,
//! where people look who wonder why their server cannot reach something.

use super::{budget::lock, carry::Meter, swap::Used};
use crate::{log::CappedLog, secret::Redactor};
use jiff::Timestamp;
use serde::Serialize;
use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};
use tokio::sync::mpsc;

/// The log's name in the machine's folder of logs.
pub const FILE: &str = "egress.log";

/// How many different refusals are told in the server's log.
const TOLD: usize = 100;

/// Lines for the server's log that wait to be written.
const QUEUE: usize = 64;

/// One line of the log. Text of the guest's is in it only as far as it is a target.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line<'a> {
    pub(super) time: Timestamp,
    /// What was asked for, such as `CONNECT api.example.com:443`.
    pub(super) request: &'a str,
    /// Where a forward leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<&'a str>,
    pub(super) verdict: Verdict,
    /// The one address that was connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'a str>,
    /// Names of the secrets that were put into requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) secrets: Vec<&'a str>,
    /// Bytes from the guest, and to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) received: Option<u64>,
}

/// One attempt, of which a line is written at the latest when nobody goes on with it: the link ended, or the machine.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    journal: &'a Journal,
    /// What will be written.
    pub(super) line: Line<'a>,
    /// Its reason.
    pub(super) reason: Option<String>,
    /// Which secrets were put into requests.
    pub(super) secrets: Used,
    meter: Arc<Meter>,
}

impl<'a> Attempt<'a> {
    /// Connected to this address, for whatever the guest now says that it wants.
    pub(super) fn connected(
        journal: &'a Journal,
        (request, target): (&'a str, Option<&'a str>),
        address: SocketAddr,
        meter: Arc<Meter>,
    ) -> Self {
        let line = Line {
            time: Timestamp::now(),
            request,
            target,
            verdict: Verdict::Refused,
            address: Some(address),
            reason: None,
            secrets: Vec::new(),
            sent: None,
            received: None,
        };
        Self {
            journal,
            line,
            reason: Some("the guest went away".to_owned()),
            secrets: Used::default(),
            meter,
        }
    }

    /// What it wants it may have, from now on.
    pub(super) fn allow(&mut self) {
        self.line.verdict = Verdict::Allowed;
        self.line.time = Timestamp::now();
        self.journal.write(&self.line);
        self.line.verdict = Verdict::Ended;
        self.reason = Some("the machine's link ended".to_owned());
    }

    /// What it wants it may not have after all.
    pub(super) fn refuse(&mut self, reason: String) {
        self.line.verdict = Verdict::Refused;
        self.reason = Some(reason);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let (sent, received) = self.meter.bytes();
        let is_over = self.line.verdict == Verdict::Ended;
        let secrets = lock(&self.secrets);
        self.journal.write(&Line {
            time: Timestamp::now(),
            reason: self.reason.as_deref(),
            secrets: secrets.iter().map(String::as_str).collect(),
            sent: is_over.then_some(sent),
            received: is_over.then_some(received),
            ..self.line.clone()
        });
    }
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// It is connected.
    Allowed,
    /// It may not be.
    Refused,
    /// It might have been, and nobody answered.
    Failed,
    /// A connection that was allowed is over.
    Ended,
}

/// Writes both logs.
#[derive(Debug)]
pub(super) struct Journal {
    log: Mutex<CappedLog>,
    redactor: Arc<Redactor>,
    notes: mpsc::Sender<String>,
    told: Mutex<BTreeSet<String>>,
}

impl Journal {
    /// Opens the log; what is to stand in the server's log comes out of the receiver.
    pub(super) fn open(logs: &Path, redactor: Arc<Redactor>) -> io::Result<(Self, mpsc::Receiver<String>)> {
        let (notes, noted) = mpsc::channel(QUEUE);
        let log = Mutex::new(CappedLog::open(&logs.join(FILE))?);
        Ok((Self { log, redactor, notes, told: Mutex::default() }, noted))
    }

    /// Writes a line.
    pub(super) fn write(&self, line: &Line<'_>) {
        // Strings and numbers: it serialises.
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        lock(&self.log).write(&self.redactor.bytes(&text));
    }

    /// Explains a refusal in the server's log, each once.
    pub(super) fn explain(&self, request: &str, reason: &str) {
        let note = format!("no way out for {request}: {reason}");
        let mut told = lock(&self.told);
        if told.len() > TOLD || told.contains(&note) {
            return;
        }
        told.insert(note.clone());
        let note =
            if told.len() > TOLD { format!("more refused connections are in {FILE} only") } else { note };
        // A flood of them loses some.
        let _ = self.notes.try_send(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_and_a_flood_of_them_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, mut notes) = Journal::open(dir.path(), Arc::default()).unwrap();
        let mut told = Vec::new();
        for round in 0..3 {
            for n in 0..200 {
                journal.explain(&format!("CONNECT a{n}.example:1"), "no");
                told.extend(notes.try_recv());
            }
            assert_eq!(told.len(), TOLD + 1, "in round {round}");
        }
        assert_eq!(told[0], "no way out for CONNECT a0.example:1: no");
        assert_eq!(told[TOLD], "more refused connections are in egress.log only");
    }
}
