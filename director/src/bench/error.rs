//! Why there is no result.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::IdentityError;
use crate::pki::IssueError;
use crate::store::StoreError;

/// Why a benchmark did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum BenchError {
    /// A file, directory, socket or process.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The fleet's program is not there.
    #[error(
        "{} is not there; build it with `cargo build --release -p windlass-tests --bin windlass-fleet`, or name it with --fleet-exe",
        .0.display()
    )]
    NoFleet(PathBuf),
    /// The store of the director under test.
    #[error("cannot prepare the store")]
    Store(#[from] StoreError),
    /// The identity of the director under test.
    #[error("cannot prepare the director's identity")]
    Identity(#[from] IdentityError),
    /// A token or a certificate.
    #[error("cannot issue a token or a certificate")]
    Issue(#[from] IssueError),
    /// A process ended, or says what makes no sense.
    #[error("{name} {what}; its log is in the bench's directory (keep one with --dir)")]
    Peer {
        /// Which process.
        name: String,
        /// What it did.
        what: String,
    },
    /// A process said no.
    #[error("{name} failed: {message}")]
    Failed {
        /// Which process.
        name: String,
        /// Its words.
        message: String,
    },
    /// No answer.
    #[error("{name} did not answer within {patience:?}")]
    Silent {
        /// Which process.
        name: String,
        /// How long was waited.
        patience: Duration,
    },
}

impl BenchError {
    /// A failure of the file system, of a socket or of a process.
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> BenchError {
        let path = path.into();
        move |source| BenchError::Io {
            doing,
            path,
            source,
        }
    }
}
