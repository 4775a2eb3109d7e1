//! Errors of the agent as failures of the control protocol.

use crate::log::chain;
use crate::spawn::SpawnError;
use casemate_proto::control::{Failure, FailureCode};

/// A failure.
pub fn new(code: FailureCode, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

/// The operating system refused.
pub fn system(error: &dyn std::error::Error) -> Failure {
    new(FailureCode::System, chain(error))
}

/// A program was not started.
pub fn from_spawn(error: &SpawnError) -> Failure {
    let code = match error {
        SpawnError::Empty => FailureCode::Params,
        SpawnError::Execute { .. } => FailureCode::Program,
        SpawnError::System { .. } | SpawnError::Wall { .. } => FailureCode::System,
    };
    new(code, chain(error))
}
