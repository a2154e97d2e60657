//! Where backups are kept: a directory, an object store, or anything else behind [`Repository`].
//!
//! # Invariants
//! * A backup of a cluster has its name once it is whole, verified and durable; what is not has none and is not
//!   listed.
//! * Beside each of their archives lies its entry, in the clear: what it holds, its size and its digest. Entries
//!   have no secrets, so that listing takes no key.
//! * Who reads an archive of a cluster gets the bytes of its entry's digest, or an error before the last of them.
//! * Deleting names one backup.
//!
//! # After a crash
//! What was unfinished here is removed when the director starts ([`Repository::tidy`]), what was unfinished
//! elsewhere by and by ([`Repository::sweep`]). An archive without its entry is made again by the same backup.

mod directory;

pub use self::directory::Directory;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, ReadBuf};
use utoipa::ToSchema;
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Digest, DirectorId, Hasher};

use super::cluster::{BackupName, Manifest};
use super::own_name::OwnName;
use super::s3::{S3, S3Error};
use crate::config::BackupConfig;

/// Most backups of one cluster that are listed, the newest first: as many as a policy may keep, and as many again
/// that were ordered. A list of 2 KiB each is 4 MiB.
pub const LISTED_MAX: usize = 2000;
/// Largest entry, bytes: a manifest and two numbers.
pub(super) const ENTRY_BYTES_MAX: u64 = (1 << 20) + 1024;

/// One backup of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupEntry {
    /// What it holds.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Its archive.
    pub archive: ArchiveFacts,
}

/// The archive of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveFacts {
    /// Its size, bytes.
    pub bytes: u64,
    /// SHA-256 of it.
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// An archive that is read.
pub struct Archive {
    /// What it is.
    pub entry: BackupEntry,
    /// Its bytes, from the first on.
    pub from: Box<dyn AsyncRead + Send + Unpin>,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Archive({})", self.entry.manifest.name)
    }
}

/// Why a repository did not do what was asked. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// A file of it cannot be used.
    #[error("cannot {doing} {}; see that the backups' directory is there, writable and has room", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The object store did not do it.
    #[error("the object store did not do it")]
    Store(#[from] S3Error),
    /// Another one has the name already.
    #[error(
        "backup {name} of cluster {cluster} is in the repository already, and is another one: two directors work with \
         the same records; stop the one that is not to go on"
    )]
    Taken {
        /// Whose.
        cluster: ClusterName,
        /// Which.
        name: BackupName,
    },
    /// What is there is not what belongs there.
    #[error(
        "{what} is damaged: {found}; put a copy in its place, or delete the backup by name and make another"
    )]
    Damaged {
        /// Which file or object.
        what: String,
        /// What is wrong with it.
        found: String,
    },
    /// A task of the runtime was lost.
    #[error("the backups' directory was not looked at")]
    Lost(#[source] tokio::task::JoinError),
}

impl RepositoryError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::File { .. } | Self::Taken { .. } | Self::Damaged { .. } => ErrorClass::Operator,
            Self::Store(source) => source.class(),
            Self::Lost(_) => ErrorClass::Bug,
        }
    }
}

impl RepositoryError {
    /// What an error of an archive that is being read is, if it is the repository's.
    pub(crate) fn of_reading(name: &BackupName, source: io::Error) -> Result<Self, io::Error> {
        if source.kind() == io::ErrorKind::InvalidData {
            return Ok(Self::Damaged {
                what: format!("backup {name}"),
                found: source.to_string(),
            });
        }
        source.downcast().map(Self::Store)
    }
}

/// What a call of a repository returns.
pub type RepositoryFuture<'a, T> = BoxFuture<'a, Result<T, RepositoryError>>;

/// Where backups are kept.
pub trait Repository: Send + Sync + fmt::Debug {
    /// Where that is, for people: a path, or `s3://BUCKET/PREFIX at ENDPOINT`.
    fn location(&self) -> String;

    /// Directory for an archive that has no name yet, made for its owner alone.
    fn unfinished(&self) -> RepositoryFuture<'_, PathBuf>;

    /// Removes what a director that ended left in [`Repository::unfinished`]; while none is made.
    fn tidy(&self) -> RepositoryFuture<'_, ()>;

    /// Removes what uploads that were cut off left outside of this host; may run at any time. Says how much it was.
    fn sweep(&self) -> RepositoryFuture<'_, usize>;

    /// Takes an archive out of [`Repository::unfinished`] and gives it its name. Done again with the same archive
    /// it is the same; a directory lets another archive take the name, an object store does not.
    fn store<'a>(&'a self, archive: &'a Path, entry: &'a BackupEntry) -> RepositoryFuture<'a, ()>;

    /// The backups of a cluster, newest first, at most [`LISTED_MAX`].
    fn list<'a>(&'a self, cluster: &'a ClusterName) -> RepositoryFuture<'a, Vec<BackupEntry>>;

    /// Opens one; `None` when there is none of the name.
    fn open<'a>(
        &'a self,
        cluster: &'a ClusterName,
        name: &'a BackupName,
    ) -> RepositoryFuture<'a, Option<Archive>>;

    /// Removes one; says whether it was there.
    fn delete<'a>(
        &'a self,
        cluster: &'a ClusterName,
        name: &'a BackupName,
    ) -> RepositoryFuture<'a, bool>;

    /// Takes an archive of the director itself out of [`Repository::unfinished`] and gives it a name that nothing
    /// has yet.
    fn store_own<'a>(&'a self, archive: &'a Path, name: &'a OwnName) -> RepositoryFuture<'a, ()>;

    /// The backups of the director itself, in any order.
    fn list_own(&self) -> RepositoryFuture<'_, Vec<OwnName>>;

    /// Removes one of those; says whether it was there.
    fn delete_own<'a>(&'a self, name: &'a OwnName) -> RepositoryFuture<'a, bool>;
}

/// The repository that the configuration of this director names.
pub fn open(config: &BackupConfig, director: &DirectorId) -> Arc<dyn Repository> {
    let directory = config.directory.clone();
    match &config.s3 {
        Some(s3) => Arc::new(S3::new(s3.clone(), directory, director.clone())),
        None => Arc::new(Directory::new(directory)),
    }
}

/// Reads an archive and compares it with what its entry says: whoever reads to the end has read the right bytes, or
/// got an error in the place of the last ones.
pub(super) struct Verified<R> {
    from: R,
    left: u64,
    digest: Digest,
    hasher: Hasher,
}

impl<R> Verified<R> {
    /// Reads `from`, which has to be this archive.
    pub(super) fn new(from: R, archive: ArchiveFacts) -> Self {
        Self {
            from,
            left: archive.bytes,
            digest: archive.digest,
            hasher: Hasher::default(),
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Verified<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let damaged = |what: &str| {
            let message = format!("the archive is not the one of its entry: {what}");
            Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)))
        };
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut own.from).poll_read(context, buffer))?;
        let came = &buffer.filled()[before..];
        if came.is_empty() {
            return match own.left {
                0 => Poll::Ready(Ok(())),
                left => damaged(&format!("{left} bytes are missing")),
            };
        }
        own.hasher.update(came);
        let left = own.left.checked_sub(came.len() as u64);
        own.left = match left {
            Some(left) => left,
            None => {
                buffer.set_filled(before);
                return damaged("it is longer than it should be");
            }
        };
        if own.left == 0 && std::mem::take(&mut own.hasher).finish() != own.digest {
            buffer.set_filled(before);
            // So that reading on does not look like a good end.
            own.left = 1;
            return damaged("it has another digest");
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn other_bytes_than_those_of_the_entry_are_never_read_to_the_end() {
        let right = ArchiveFacts {
            bytes: 6,
            digest: Digest::of(b"sealed"),
        };
        #[rustfmt::skip]
        let cases: [(&[u8], Option<&str>); 5] = [
            (b"sealed",  None),
            (b"Sealed",  Some("another digest")),
            (b"seale",   Some("1 bytes are missing")),
            (b"sealed!", Some("longer")),
            (b"",        Some("6 bytes are missing")),
        ];
        for (bytes, wrong) in cases {
            let mut read = Vec::new();
            let end = Verified::new(bytes, right).read_to_end(&mut read).await;
            match wrong {
                None => assert_eq!((end.unwrap(), read.as_slice()), (6, bytes)),
                Some(wrong) => {
                    let error = end.unwrap_err().to_string();
                    assert!(error.contains(wrong), "{error}");
                    assert!(read.len() < 6, "{read:?}");
                }
            }
        }
    }
}
