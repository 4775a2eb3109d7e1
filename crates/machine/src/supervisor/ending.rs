//! Why a machine ended, in words for the user.

use crate::{
    backend::BackendError,
    control::ControlError,
    disks::DiskError,
    egress::{GateError, SwapError},
    home::HomeError,
    leash::{Built, Culprit},
    log,
    record::State,
    template::{Contents, TemplateError},
};
use casemate_mcp::client::{CloseReason, OpenError, RequestError};
use casemate_proto::control::Exit;
use std::{fmt::Write as _, io, process::ExitStatus, time::Duration};

/// How much of a log is shown with an error.
const TAIL_BYTES: usize = 1500;

/// Where the words are looked for with which the guest's kernel gave up: a trace of its stack follows.
const PANIC_BYTES: usize = 16 << 10;
const PANIC: &str = "Kernel panic";

/// With less than this most servers of a runtime such as Node spend their time in reading again what the kernel
/// had to forget.
const ORDINARY_MEMORY_MB: u32 = 256;

/// SIGILL.
const ILLEGAL_INSTRUCTION: i32 = 4;

/// Why a machine is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ending {
    /// Somebody asked for it.
    #[error("{0}")]
    Asked(String),
    /// The command that leased it is gone.
    #[error("its owner went away")]
    OwnerGone,
    /// The supervisor got a signal to end.
    #[error("supervisor was told to end by signal {0}")]
    Signal(&'static str),
    /// It became a template.
    #[error("it became a template")]
    Built(Contents),
    /// It could not become a template, and could not next time.
    #[error("no template can be made of it: {0}")]
    NoTemplate(String),
    /// The template that it was to become could not be written.
    #[error("cannot write the template: {}", chain(.0))]
    Unwritten(TemplateError),
    /// The template that it was to be restored from is of no use.
    #[error("{}", chain(.0))]
    Template(TemplateError),
    /// It gave no sign of life.
    #[error("{what} did not answer within {} s", patience.as_secs_f32())]
    Hung {
        /// Who.
        what: &'static str,
        /// How long was waited.
        patience: Duration,
    },
    /// It failed too often.
    #[error("{text}; the last time: {last}")]
    GaveUp {
        /// How often.
        text: String,
        /// Why, the last time.
        last: Box<Ending>,
    },
    /// It could not go on after it was suspended.
    #[error("cannot resume: {0}")]
    Resume(String),
    /// It was killed on demand.
    #[error("killed on demand")]
    Killed,
    /// The server ended.
    #[error("server {}", describe_exit(.0))]
    ServerExited(Exit),
    /// The server, or the link, ended the conversation.
    #[error("conversation with the server ended: {0}")]
    ConversationEnded(String),
    /// The server did not speak MCP when it was asked to.
    #[error("server did not answer: {}", chain(.0))]
    Server(OpenError),
    /// Its way out cannot be opened.
    #[error("{}", chain(.0))]
    Gate(GateError),
    /// What it is to be given beside its root cannot be had.
    #[error("{}", chain(.0))]
    Disk(DiskError),
    /// The server cannot be reached by HTTP.
    #[error("server cannot be reached: {reason}{}", with_tail(.tail))]
    Deaf {
        /// In which way.
        reason: String,
        /// The last of what it printed.
        tail: String,
    },
    /// The backend could not make the machine.
    #[error("cannot start the machine: {}{}", chain(.error), with_tail(.tail))]
    Backend {
        /// Why.
        error: BackendError,
        /// The last of what the VMM printed.
        tail: String,
    },
    /// The VMM ended.
    #[error("VMM ended ({status}){}", with_tail(.tail))]
    VmmEnded {
        /// How.
        status: ExitStatus,
        /// The last of what it and the guest's kernel printed.
        tail: String,
    },
    /// The machine did not become ready in time.
    #[error("machine was not {what} within {} s{}", patience.as_secs_f32(), with_tail(.tail))]
    Slow {
        /// `booted` or `ready`.
        what: &'static str,
        /// How long was waited.
        patience: Duration,
        /// The last of what it printed.
        tail: String,
    },
    /// The agent failed.
    #[error("agent failed: {}", chain(.0))]
    Agent(ControlError),
    /// The home folder failed.
    #[error("{}", chain(.0))]
    Home(HomeError),
    /// Not even that could be written down.
    #[error("{0}")]
    Unrecorded(io::Error),
}

impl Ending {
    /// The final state that follows.
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Asked(_) | Self::OwnerGone | Self::Signal(_) | Self::Built(_) | Self::NoTemplate(_) => {
                State::Stopped
            }
            _ => State::Failed,
        }
    }

    /// Whether how the server ended adds nothing: it answered, or was ended for what it sent.
    pub(crate) fn is_final_word(&self) -> bool {
        match self {
            Self::Server(OpenError::NoAnswer(RequestError::Closed { reason, .. })) => is_to_blame(reason),
            Self::Server(_) => true,
            _ => false,
        }
    }

    /// What failed.
    pub(crate) fn culprit(&self) -> Culprit {
        match self {
            Self::Backend { error: BackendError::Monitor { .. }, .. } | Self::VmmEnded { .. } => {
                Culprit::Guest
            }
            Self::Slow { what: "booted", .. } => Culprit::Guest,
            Self::Slow { .. }
            | Self::ServerExited(_)
            | Self::Server(_)
            | Self::ConversationEnded(_)
            | Self::Deaf { .. } => Culprit::Server,
            Self::Disk(_) | Self::Gate(_) | Self::Home(_) | Self::Unrecorded(_) => Culprit::Host,
            _ => Culprit::Other,
        }
    }

    /// What became of the template that the machine was to become.
    pub(crate) fn built(&self) -> Option<Built> {
        match self {
            Self::Built(contents) => Some(Built::Made(contents.clone())),
            Self::NoTemplate(reason) => Some(Built::Refused { reason: reason.clone() }),
            Self::Unwritten(_) => Some(Built::Unwritten { reason: self.to_string() }),
            _ => None,
        }
    }

    /// Whether another start may help: the machine or its server failed, and nobody asked for that.
    pub(crate) fn may_restart(&self) -> bool {
        if let Self::ServerExited(exit) = self {
            return exit.code != Some(0);
        }
        matches!(
            self,
            Self::ConversationEnded(_)
                | Self::VmmEnded { .. }
                | Self::Hung { .. }
                | Self::Resume(_)
                | Self::Slow { .. }
                | Self::Agent(_)
                | Self::Server(_)
                | Self::Deaf { .. }
        )
    }

    /// What the user may do.
    pub(crate) fn hint(&self, memory_mb: u32) -> Option<String> {
        Some(
            match self {
                Self::Disk(error) => return error.hint().map(str::to_owned),
                Self::Gate(GateError::Swap(SwapError::NoRoots)) => {
                    "install ca-certificates, or name a file with certificates: SSL_CERT_FILE"
                }
                Self::Backend {
                    error: BackendError::Missing { remedy, .. } | BackendError::TooOld { remedy, .. },
                    ..
                } => *remedy,
                Self::VmmEnded { tail, .. }
                    if tail.contains("Out of memory") || tail.contains("Kernel panic") =>
                {
                    "the guest's kernel gave up; it may need more memory (--memory 256)"
                }
                Self::ServerExited(Exit { signal: Some(ILLEGAL_INSTRUCTION), .. }) => {
                    "the server uses instructions that the emulated processor has only with CASEMATE_CPU=full"
                }
                Self::Deaf { .. } => {
                    "give the port that the server listens on (--port N), or have it listen on that one"
                }
                Self::Slow { what: "booted", .. } => {
                    "the host may be busy, or the memory too small to boot (--memory 256)"
                }
                Self::Slow { .. } if memory_mb < ORDINARY_MEMORY_MB => {
                    "the server may need more memory (--memory 256)"
                }
                Self::Slow { .. } => "the server may need longer, or wait for something that it cannot have",
                _ => return None,
            }
            .to_owned(),
        )
    }
}

impl From<TemplateError> for Ending {
    fn from(error: TemplateError) -> Self {
        Self::Template(error)
    }
}

impl From<DiskError> for Ending {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<GateError> for Ending {
    fn from(error: GateError) -> Self {
        Self::Gate(error)
    }
}

impl From<HomeError> for Ending {
    fn from(error: HomeError) -> Self {
        Self::Home(error)
    }
}

impl From<ControlError> for Ending {
    fn from(error: ControlError) -> Self {
        Self::Agent(error)
    }
}

/// Whether the conversation ended for what the server sent; how the server then ended says less.
pub(crate) fn is_to_blame(reason: &CloseReason) -> bool {
    matches!(reason, CloseReason::TooLong { .. })
}

/// How a process ended, in words.
pub(crate) fn describe_exit(exit: &Exit) -> String {
    let mut text = match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    if !exit.stderr_tail.trim().is_empty() {
        let _ = write!(text, "; the last of its stderr:\n{}", exit.stderr_tail.trim_end());
    }
    text
}

/// What the machine printed last: the guest's console, then the VMM. A kernel that gave up is quoted with
/// its reason alone.
pub(crate) fn tails(logs: &std::path::Path) -> String {
    let console = log::tail(&logs.join("console.log"), PANIC_BYTES);
    let panic = console.lines().find_map(|line| Some(&line[line.find(PANIC)?..]));
    let console = match panic {
        Some(panic) => panic.trim_end().to_owned(),
        None => log::tail(&logs.join("console.log"), TAIL_BYTES),
    };
    let parts = [console, log::tail(&logs.join("vmm.log"), TAIL_BYTES)];
    parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("\n")
}

fn with_tail(tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!("; it last printed:\n{tail}") }
}

/// An error and its sources, once each.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_not_blamed_for_what_the_host_or_the_server_did() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let deaf = Ending::Deaf { reason: String::new(), tail: String::new() };
        let slow = |what| Ending::Slow { what, patience: Duration::ZERO, tail: String::new() };
        let blamed = [
            Ending::Disk(DiskError::Placeholder(full())),
            Ending::Unrecorded(full()),
            deaf,
            slow("ready"),
            slow("booted"),
        ]
        .map(|ending| ending.culprit());
        let expected = [Culprit::Host, Culprit::Host, Culprit::Server, Culprit::Server, Culprit::Guest];
        assert_eq!(blamed, expected);
    }

    #[test]
    fn a_kernel_that_gave_up_is_quoted_without_its_stack() {
        let logs = tempfile::tempdir().unwrap();
        let trace = "[    1.4] Call Trace:\r\n".repeat(100);
        let console =
            format!("[    0.6] PCI: none\r\n[    1.4] Kernel panic - not syncing: no memory\r\n{trace}");
        std::fs::write(logs.path().join("console.log"), console).unwrap();
        std::fs::write(logs.path().join("vmm.log"), "qemu: bye\n").unwrap();
        assert_eq!(tails(logs.path()), "Kernel panic - not syncing: no memory\nqemu: bye");
    }
}
