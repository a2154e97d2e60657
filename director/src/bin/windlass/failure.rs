//! Exit codes and the errors that carry them.

use windlass_common::error::ErrorChain;
use windlass_director::client::{ClientError, ContextError};
use windlass_director::model::FieldFault;

/// It was tried and failed.
pub(crate) const FAILED: u8 = 1;
/// Wrong arguments or input.
pub(crate) const USAGE: u8 = 2;
/// There is no such thing.
pub(crate) const NOT_FOUND: u8 = 3;
/// It cannot be done in the state things are in.
pub(crate) const CONFLICT: u8 = 4;
/// The director cannot be reached.
pub(crate) const UNREACHABLE: u8 = 5;
/// Ctrl-C while waiting; what was waited for goes on.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) code: u8,
    /// What failed, and what to do.
    pub(crate) message: String,
    /// Every fault of the input.
    pub(crate) faults: Vec<FieldFault>,
}

impl Failure {
    /// With this code.
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
            faults: Vec::new(),
        }
    }

    /// It was tried and failed.
    pub(crate) fn failed(message: impl Into<String>) -> Failure {
        Failure::new(FAILED, message)
    }

    /// Of an error with its sources.
    pub(crate) fn of(error: &dyn std::error::Error) -> Failure {
        Failure::failed(ErrorChain(error).to_string())
    }
}

impl From<ContextError> for Failure {
    fn from(error: ContextError) -> Failure {
        Failure::new(UNREACHABLE, ErrorChain(&error).to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error {
            ClientError::Problem(problem) => Failure {
                code: match problem.status {
                    400 | 413 | 422 => USAGE,
                    404 => NOT_FOUND,
                    409 => CONFLICT,
                    _ => FAILED,
                },
                message: problem.message,
                faults: problem.faults,
            },
            ClientError::Unreachable { .. } => {
                Failure::new(UNREACHABLE, ErrorChain(&error).to_string())
            }
            other => Failure::of(&other),
        }
    }
}
