//! Why an operation of the director was not done.

use std::fmt;

use windlass_common::error::ErrorClass;

use crate::model::{FieldFault, Role};
use crate::rollout::EffectError;
use crate::rotation::RotationError;
use crate::store::StoreError;

/// Why an operation of [`super::Director`] was not done. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// There is no such thing.
    #[error("{kind} {name} does not exist; `windlass {kind} list` shows those there are")]
    NotFound {
        /// `cluster`, `node`, `task`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It cannot be done in the state things are in.
    #[error("{message}")]
    Conflict {
        /// What is in the way, and what to do.
        message: String,
    },
    /// The director was restored and is on hold.
    #[error(
        "the director was restored from a backup and is on hold: it will not {action} before `windlass director adopt` has shown what changed since, and that was approved"
    )]
    OnHold {
        /// What was asked for.
        action: &'static str,
    },
    /// The input is refused; all its faults.
    #[error("{}", Faults(.faults))]
    Invalid {
        /// Every fault.
        faults: Vec<FieldFault>,
    },
    /// The caller's role does not allow it.
    #[error(
        "{operator} may not {action}: that takes the role {needed}; `windlass operator list` shows who has it"
    )]
    Forbidden {
        /// Who asked.
        operator: String,
        /// For what.
        action: &'static str,
        /// The least role that may.
        needed: Role,
    },
    /// What it needs is not there now.
    #[error("{what}; try again")]
    Unavailable {
        /// What is not there.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Something needs a person.
    #[error("{what}")]
    Operator {
        /// What, and what to do.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A broken invariant of ours.
    #[error("bug in the director: {what}")]
    Bug {
        /// What does not hold.
        what: String,
        /// What showed it.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl ServiceError {
    /// Whether nothing was written, because a record was changed by somebody else after it had been read.
    pub(super) fn is_outdated(&self) -> bool {
        let Self::Unavailable {
            source: Some(source),
            ..
        } = self
        else {
            return false;
        };
        matches!(source.downcast_ref(), Some(StoreError::Conflict { .. }))
    }

    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable { .. } => ErrorClass::Retry,
            Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::OnHold { .. }
            | Self::Invalid { .. }
            | Self::Forbidden { .. }
            | Self::Operator { .. } => ErrorClass::Operator,
            Self::Bug { .. } => ErrorClass::Bug,
        }
    }
}

impl ServiceError {
    /// Takes over an error of another room.
    pub(super) fn of(
        class: ErrorClass,
        what: &str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let source: Option<Box<dyn std::error::Error + Send + Sync>> = Some(Box::new(source));
        let what = what.to_owned();
        match class {
            ErrorClass::Retry => Self::Unavailable { what, source },
            ErrorClass::Operator => Self::Operator { what, source },
            ErrorClass::Bug => Self::Bug { what, source },
        }
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        Self::of(error.class(), "the store did not do it", error)
    }
}

impl From<RotationError> for ServiceError {
    fn from(error: RotationError) -> Self {
        match error {
            RotationError::NoMachine(name) => Self::NotFound { kind: "node", name },
            RotationError::Store(_) => Self::of(error.class(), "the CA is not rotated", error),
        }
    }
}

impl From<EffectError> for ServiceError {
    fn from(error: EffectError) -> Self {
        Self::of(error.class, "it was not done", error)
    }
}

/// Prints faults one after another.
struct Faults<'a>(&'a [FieldFault]);

impl fmt::Display for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}
