//! What every error of this project can answer: who has to act.

use std::fmt;

/// Who acts on an error: the retry loop, an operator, or a developer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorClass {
    /// May go away by itself; the caller tries again with backoff.
    Retry,
    /// Needs a person: wrong input, missing prerequisite, full disk.
    Operator,
    /// A broken invariant of ours.
    Bug,
}

/// Prints an error and each of its sources once, separated by `: `.
///
/// Errors of this project never repeat their source in `Display`; this is what adds it, where the
/// error is handled.
pub struct ErrorChain<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
