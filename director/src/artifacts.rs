//! The director's store of artifacts: one file each, named by its digest.
//!
//! # Invariants
//! * A file is under its name only when it was verified and synced.
//! * What is private is given to the machines that it was shared with, and to nobody else; a director that has
//!   started again gives it to nobody before it was shared again.
//!
//! # After a crash
//! What was being copied is copied again; its file is written anew.
//!
//! # Not here
//! Who gets which artifact, and from whom ([`crate::gateway`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Hasher, MachineName};
use windlass_common::limits::CHUNK_BYTES;
use windlass_common::pki::MachineIdentity;

use crate::gateway::ArtifactSource;

/// Artifacts in a directory, by digest: `sha256/<hex>`.
#[derive(Debug)]
pub struct Artifacts {
    directory: PathBuf,
    shared: Mutex<BTreeMap<Digest, BTreeSet<MachineName>>>,
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
    /// A private artifact is not there any more.
    #[error("{digest} is not in the director's store any more; order what needs it again")]
    Gone {
        /// Which.
        digest: Digest,
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
            Self::Digest { .. } | Self::TooLarge { .. } | Self::Gone { .. } | Self::File { .. } => {
                ErrorClass::Operator
            }
        }
    }
}

impl Artifacts {
    /// Artifacts under `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            shared: Mutex::default(),
        }
    }

    /// Where a private artifact is: readable by the director alone.
    fn private_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("private").join(digest.hex())
    }

    fn shared(&self) -> MutexGuard<'_, BTreeMap<Digest, BTreeSet<MachineName>>> {
        // Whole before and after each change.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies a file of at most `max` bytes into the store as a private artifact; returns its digest and length.
    /// Blocks.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was added then.
    pub fn keep(&self, from: &Path, max: u64) -> Result<(Digest, u64), PublishError> {
        use std::os::unix::fs::DirBuilderExt;
        let directory = self.directory.join("private");
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(&directory)
            .map_err(failed("make the directory", &directory))?;
        let fresh = directory.join("new");
        let kept = copy(from, &fresh, max).and_then(|(digest, bytes)| {
            let path = self.private_path(&digest);
            fs::rename(&fresh, &path).map_err(failed("rename", &fresh))?;
            let synced = File::open(&directory).and_then(|directory| directory.sync_all());
            synced.map_err(failed("sync", &directory))?;
            Ok((digest, bytes))
        });
        if kept.is_err() {
            // What is left of it is written over by the next attempt.
            let _ = fs::remove_file(&fresh);
        }
        kept
    }

    /// Lets machines have a private artifact; returns its length. Blocks.
    ///
    /// # Errors
    /// [`PublishError::Gone`], and files that fail.
    pub fn share(
        &self,
        digest: &Digest,
        machines: BTreeSet<MachineName>,
    ) -> Result<u64, PublishError> {
        let path = self.private_path(digest);
        let found = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PublishError::Gone { digest: *digest });
            }
            other => other.map_err(failed("look at", &path))?,
        };
        self.shared().insert(*digest, machines);
        Ok(found.len())
    }

    /// Removes private artifacts other than these. Blocks.
    ///
    /// # Errors
    /// [`PublishError`] for a file that cannot be removed.
    pub fn drop_private(&self, except: &BTreeSet<Digest>) -> Result<(), PublishError> {
        let directory = self.directory.join("private");
        self.shared().retain(|digest, _| except.contains(digest));
        let stays: BTreeSet<PathBuf> = except.iter().map(|d| self.private_path(d)).collect();
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed("list", &directory))?,
        };
        for entry in entries {
            let path = entry.map_err(failed("list", &directory))?.path();
            if !stays.contains(&path) {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
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
    fn locate(&self, digest: &Digest, machine: &MachineIdentity) -> Option<PathBuf> {
        let path = self.path(digest);
        if path.is_file() {
            return Some(path);
        }
        let shared = self.shared();
        let may = shared
            .get(digest)
            .is_some_and(|machines| machines.contains(&machine.machine));
        let path = self.private_path(digest);
        (may && path.is_file()).then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_is_for_whom_it_was_shared_with() {
        use windlass_common::id::{ClusterName, DirectorId, Incarnation};
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::new(dir.path().join("artifacts"));
        let from = dir.path().join("snapshot");
        fs::write(&from, b"snapshot").unwrap();
        let (digest, bytes) = artifacts.keep(&from, 100).unwrap();
        assert_eq!((digest, bytes), (Digest::of(b"snapshot"), 8));
        let identity = |machine: &str| MachineIdentity {
            director: DirectorId::new("d1").unwrap(),
            cluster: ClusterName::new("demo").unwrap(),
            machine: MachineName::new(machine).unwrap(),
            incarnation: Incarnation::FIRST,
        };
        let (member, worker) = (identity("demo-cp-0"), identity("demo-w-0"));
        assert_eq!(artifacts.locate(&digest, &member), None);
        let names = BTreeSet::from([member.machine.clone()]);
        assert_eq!(artifacts.share(&digest, names.clone()).unwrap(), 8);
        assert!(artifacts.locate(&digest, &member).is_some());
        assert_eq!(artifacts.locate(&digest, &worker), None);
        // A new life of the director has to be told again.
        let again = Artifacts::new(dir.path().join("artifacts"));
        assert_eq!(again.locate(&digest, &member), None);
        again.drop_private(&BTreeSet::from([digest])).unwrap();
        assert_eq!(again.share(&digest, names.clone()).unwrap(), 8);
        again.drop_private(&BTreeSet::new()).unwrap();
        let gone = again.share(&digest, names);
        assert!(matches!(gone, Err(PublishError::Gone { .. })));
        assert_eq!(again.locate(&digest, &member), None);
    }

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
