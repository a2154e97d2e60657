//! The director's store of artifacts: one file each, named by its digest.
//!
//! # Invariants
//! * A file is under its name only when it was verified and synced.
//!
//! # After a crash
//! What was being copied is copied again; its file is written anew.
//!
//! # Not here
//! Who gets which artifact, and from whom ([`crate::gateway`]).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Hasher};
use windlass_common::limits::CHUNK_BYTES;
use windlass_common::pki::MachineIdentity;

use crate::gateway::ArtifactSource;

/// Artifacts in a directory, by digest: `sha256/<hex>`.
#[derive(Debug)]
pub struct Artifacts {
    directory: PathBuf,
}

/// Why a file is not in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It is another file.
    #[error("{} has digest {got}, its stemcell's manifest says {want}; build the stemcell again", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Digest that was found.
        got: Digest,
        /// Digest that it should have.
        want: Digest,
    },
    /// It is larger than any of its kind.
    #[error("{} is larger than {max} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Largest, in bytes.
        max: u64,
    },
    /// A file failed.
    #[error("cannot {action} {}; check the disk of the director", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl PublishError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Digest { .. } | Self::TooLarge { .. } | Self::File { .. } => ErrorClass::Operator,
        }
    }
}

impl Artifacts {
    /// Artifacts under `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("sha256").join(digest.hex())
    }

    /// Copies a file of at most `max` bytes into the store, unless it is there; returns its length. Blocks.
    ///
    /// # Errors
    /// [`PublishError`]; nothing is under its name then.
    pub fn publish(&self, digest: &Digest, from: &Path, max: u64) -> Result<u64, PublishError> {
        let path = self.path(digest);
        if let Ok(found) = fs::metadata(&path) {
            return Ok(found.len());
        }
        let directory = path.parent().unwrap_or(&self.directory);
        fs::create_dir_all(directory).map_err(failed("make the directory", directory))?;
        let fresh = path.with_extension("new");
        let copied = copy(from, &fresh, max);
        let published = copied.and_then(|(got, bytes)| {
            if got != *digest {
                let (path, want) = (from.to_owned(), *digest);
                return Err(PublishError::Digest { path, got, want });
            }
            fs::rename(&fresh, &path).map_err(failed("rename", &fresh))?;
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(failed("sync", directory))?;
            Ok(bytes)
        });
        if published.is_err() {
            // What is left of it is written over by the next attempt.
            let _ = fs::remove_file(&fresh);
        }
        published
    }
}

/// Copies and syncs; returns digest and length.
fn copy(from: &Path, to: &Path, max: u64) -> Result<(Digest, u64), PublishError> {
    let mut source = File::open(from).map_err(failed("open", from))?;
    let mut target = File::create(to).map_err(failed("make", to))?;
    let mut hasher = Hasher::default();
    let mut bytes = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = source.read(&mut chunk).map_err(failed("read", from))?;
        if read == 0 {
            target.sync_all().map_err(failed("sync", to))?;
            return Ok((hasher.finish(), bytes));
        }
        bytes += read as u64;
        if bytes > max {
            let path = from.to_owned();
            return Err(PublishError::TooLarge { path, max });
        }
        hasher.update(&chunk[..read]);
        let written = target.write_all(&chunk[..read]);
        written.map_err(failed("write", to))?;
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PublishError {
    let path = path.to_owned();
    move |source| PublishError::File {
        action,
        path,
        source,
    }
}

impl ArtifactSource for Artifacts {
    fn locate(&self, digest: &Digest, _machine: &MachineIdentity) -> Option<PathBuf> {
        let path = self.path(digest);
        path.is_file().then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_verified_is_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::new(dir.path().join("artifacts"));
        let from = dir.path().join("agent");
        fs::write(&from, b"agent").unwrap();
        let digest = Digest::of(b"agent");
        let other = Digest::of(b"another");
        let refused = artifacts.publish(&other, &from, 100);
        assert!(matches!(refused, Err(PublishError::Digest { .. })));
        let refused = artifacts.publish(&digest, &from, 4);
        assert!(matches!(refused, Err(PublishError::TooLarge { .. })));
        let left = fs::read_dir(dir.path().join("artifacts/sha256")).unwrap();
        assert_eq!(left.count(), 0);
        assert_eq!(artifacts.publish(&digest, &from, 5).unwrap(), 5);
        // It is there, whatever became of where it came from.
        fs::remove_file(&from).unwrap();
        assert_eq!(artifacts.publish(&digest, &from, 5).unwrap(), 5);
    }
}
