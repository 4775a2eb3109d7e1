//! The command at the other end of the leash, and the signals: both can end the machine from outside.

use super::ending::Ending;
use crate::{jsonl::Jsonl, leash::Report};
use std::{io, time::Duration};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// More reports than this never wait: a machine has a handful of phases and one server.
const REPORTS: usize = 64;

/// How long a command may take to read that its machine is over.
const FAREWELL: Duration = Duration::from_millis(500);

/// Sends reports to the command; never waits.
#[derive(Debug, Clone)]
pub(super) struct Reports(mpsc::Sender<Report>);

impl Reports {
    /// Queues a report. A command that does not read loses it.
    pub(super) fn send(&self, report: Report) {
        let _ = self.0.try_send(report);
    }
}

/// Who may end the machine from outside.
#[derive(Debug)]
pub(super) struct Owner {
    reports: Reports,
    gone: watch::Receiver<bool>,
    task: JoinHandle<()>,
    /// The machine's life does not depend on the command any more.
    free: bool,
    terminate: Signal,
    interrupt: Signal,
}

impl Owner {
    /// Watches the leash from now on.
    pub(super) fn new(mut leash: Jsonl) -> io::Result<Self> {
        let (reports, mut outgoing) = mpsc::channel(REPORTS);
        let (set_gone, gone) = watch::channel(false);
        let task = tokio::task::spawn_local(async move {
            loop {
                tokio::select! {
                    biased;
                    report = outgoing.recv() => match report {
                        Some(report) if leash.send(&report).await.is_ok() => {}
                        _ => break,
                    },
                    () = leash.closed() => break,
                }
            }
            let _ = set_gone.send(true);
        });
        Ok(Self {
            reports: Reports(reports),
            gone,
            task,
            free: false,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(super) fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// From now on the command's end does not end the machine.
    pub(super) fn let_go(&mut self) {
        self.free = true;
    }

    /// Resolves when the owner is gone or a signal came. May be cancelled and called again.
    pub(super) async fn interrupted(&mut self) -> Ending {
        tokio::select! {
            _ = self.terminate.recv() => Ending::Signal("TERM"),
            _ = self.interrupt.recv() => Ending::Signal("INT"),
            _ = self.gone.wait_for(|&gone| gone), if !self.free => Ending::OwnerGone,
        }
    }

    /// Says the last word and waits a moment for it to be read.
    pub(super) async fn farewell(self, report: Report) {
        self.reports.send(report);
        drop(self.reports);
        let _ = tokio::time::timeout(FAREWELL, self.task).await;
    }
}
