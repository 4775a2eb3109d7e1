//! Errors of the crates below as this program's errors: whose fault they are, and what to try next.

use crate::error::{Error, Kind};
use casemate_image::{
    build::{BuildError, BuildErrorKind},
    kernel::KernelError,
    source::SourceError,
    store::StoreError,
};
use casemate_machine::{
    HomeError, LaunchError, SessionError, backend::BackendError, registry::ClaimError,
    supervise::FailureKind, template::TemplateError,
};
use std::{error::Error as StdError, io};

/// A disk has no room.
const FULL: [io::ErrorKind; 2] = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];

impl From<HomeError> for Error {
    fn from(error: HomeError) -> Self {
        let hint = match &error {
            HomeError::Unset => "set CASEMATE_HOME to an absolute path",
            HomeError::NoFolder { .. } => "set CASEMATE_HOME to the absolute path of a folder",
            HomeError::Foreign { .. } => "set CASEMATE_HOME to a folder of your own",
            HomeError::Io { .. } => return storage("cannot use the home folder", error),
        };
        Self::configuration(error.to_string()).hint(hint)
    }
}

impl From<SourceError> for Error {
    fn from(error: SourceError) -> Self {
        Self::usage(error.to_string()).hint("sources are npm:PACKAGE, pypi:PACKAGE, dir:PATH, or a command")
    }
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        let kind = match error.kind() {
            BuildErrorKind::Configuration => Kind::Configuration,
            BuildErrorKind::Unavailable => Kind::Unavailable,
            BuildErrorKind::Failed if is_of(&FULL, &error) => Kind::Unavailable,
            BuildErrorKind::Failed => Kind::Server,
        };
        let hint = match kind {
            // What is wrong is said with its remedy.
            Kind::Configuration => None,
            Kind::Unavailable => Some("try again when what is missing is there; what was fetched is kept"),
            _ => Some("another version of the package may do better: NAME@VERSION"),
        };
        Self::new(kind, "cannot build the image").because(error).maybe_hint(hint.map(str::to_owned))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound { .. } | StoreError::Ambiguous { .. } => {
                Self::configuration(error.to_string()).hint("`casemate image list` shows the images")
            }
            other => storage("cannot use the image store", other),
        }
    }
}

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        match &error {
            KernelError::Image { .. } | KernelError::Modules { .. } => {
                Self::configuration("cannot use the guest kernel")
                    .because(error)
                    .hint("`casemate kernel fetch` takes one that works")
            }
            KernelError::Store { .. } => storage("cannot use the kernel store", error),
            _ => Self::unavailable("no guest kernel")
                .because(error)
                .hint("check the network, or import a kernel of your own: casemate kernel import VMLINUX --modules DIR"),
        }
    }
}

impl From<TemplateError> for Error {
    fn from(error: TemplateError) -> Self {
        match &error {
            TemplateError::NoKey(_) => Self::usage(error.to_string()),
            TemplateError::Missing(_) | TemplateError::Ambiguous(_) => {
                Self::configuration(error.to_string()).hint("`casemate template list` shows the templates")
            }
            TemplateError::Damaged { .. } | TemplateError::Foreign { .. } => {
                Self::new(Kind::Failed, error.to_string())
                    .hint("nothing is restored from it any more: the next start of its server makes another")
            }
            TemplateError::Key(_) => Self::unavailable("no template can be made").because(error),
            TemplateError::Home(_) | TemplateError::Io { .. } => storage("cannot use the templates", error),
        }
    }
}

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        let remedy = match &error {
            BackendError::Missing { remedy, .. } | BackendError::TooOld { remedy, .. } => *remedy,
            _ => "`casemate doctor` says what this host can run",
        };
        Self::unavailable("no machine can be made").because(error).hint(remedy)
    }
}

/// A machine that did not become ready.
pub fn launch_error(name: &str, error: LaunchError) -> Error {
    match error {
        LaunchError::Claim(ClaimError::NameTaken { .. }) => {
            Error::configuration(error.to_string()).hint(format!("casemate stop {name}, or use another name"))
        }
        LaunchError::Claim(ClaimError::NoMemory(refusal)) => {
            let hint = refusal.remedy();
            Error::unavailable(format!("cannot start machine {name}")).because(refusal).hint(hint)
        }
        LaunchError::Claim(ClaimError::Home(error)) => error.into(),
        LaunchError::Failed { reason, hint, logs, .. } => {
            let hint =
                hint.unwrap_or_else(|| format!("casemate logs {name}, or casemate logs {name} --console"));
            Error::server(format!("machine {name} failed: {reason}")).hint(hint).log(&logs)
        }
        LaunchError::SupervisorGone { ref logs, .. } => {
            let logs = logs.clone();
            Error::server(format!("machine {name} was lost"))
                .because(error)
                .hint("it was killed, or the host ran out of memory; try again")
                .log(&logs)
        }
        other => Error::unavailable(format!("cannot start machine {name}"))
            .because(other)
            .hint("try again; `casemate doctor` says what this host can run"),
    }
}

/// A supervisor that did not do what was asked.
pub fn session_error(name: &str, error: SessionError) -> Error {
    let hint = match &error {
        SessionError::Failed { kind: FailureKind::NoMemory, message, .. } => {
            return Error::unavailable(format!("machine {name} stays suspended: {message}"))
                .hint("stop other machines (casemate stop NAME), then ask again: it is as it was");
        }
        SessionError::Failed { kind: FailureKind::Timeout, .. } => {
            "give it more time with --timeout SECONDS".to_owned()
        }
        SessionError::Failed { kind: FailureKind::NoConversation, .. } => {
            format!("a client speaks with {name}: casemate launch starts a machine that answers calls")
        }
        SessionError::Failed { exit: Some(exit), .. } if !exit.stderr_tail.trim().is_empty() => {
            format!("the server's last words: {}", crate::render::harmless(exit.stderr_tail.trim()))
        }
        _ => format!("casemate logs {name}, or casemate logs {name} --console"),
    };
    Error::server(format!("machine {name} gave no answer")).because(error).hint(hint)
}

/// A home folder that cannot be written is a matter of configuration, a full disk and a lock that another command
/// keeps are the host's.
pub(super) fn storage(message: &str, error: impl StdError + Send + Sync + 'static) -> Error {
    if is_of(&[io::ErrorKind::TimedOut], &error) {
        return Error::unavailable(message).because(error).hint("then try again");
    }
    if is_of(&FULL, &error) {
        return Error::unavailable(message)
            .because(error)
            .hint("make room: casemate image prune removes what no server uses");
    }
    Error::configuration(message).because(error).hint("check owner, mode and file system of CASEMATE_HOME")
}

/// Whether the operating system's error that is behind another one is of one of these kinds.
fn is_of(kinds: &[io::ErrorKind], error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind.is_some_and(|kind| kinds.contains(&kind)) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home_error(kind: io::ErrorKind) -> Error {
        HomeError::Io { action: "write", path: "/h".into(), source: kind.into() }.into()
    }

    #[test]
    fn a_full_disk_and_a_lock_are_the_hosts_matter_and_a_closed_folder_the_users() {
        assert_eq!(home_error(io::ErrorKind::StorageFull).kind(), Kind::Unavailable);
        assert_eq!(home_error(io::ErrorKind::TimedOut).kind(), Kind::Unavailable);
        assert_eq!(home_error(io::ErrorKind::ReadOnlyFilesystem).kind(), Kind::Configuration);
    }
}
