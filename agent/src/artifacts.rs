//! The machine's store of artifacts: one file each, named by its digest.
//!
//! # Invariants
//! * A file is under its name only when it was verified ([`crate::steps::fetch`] puts it there).
//!
//! # Not here
//! Fetching; who may have them (`crate::peer`).

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use tokio::sync::watch;
use windlass_common::id::Digest;
use windlass_common::limits::ARTIFACTS_HELD_MAX;

use crate::host::{Host, STATE_DIR};

/// The store. Clones are one.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    directory: PathBuf,
    held: watch::Sender<Vec<Digest>>,
}

impl ArtifactStore {
    /// The store of a machine, with what is in it: the newest [`ARTIFACTS_HELD_MAX`] are known. A
    /// directory that is missing or cannot be read holds nothing.
    pub fn open(host: &Host) -> ArtifactStore {
        let directory = host.path(&format!("{STATE_DIR}/artifacts/sha256"));
        let mut found: Vec<(SystemTime, Digest)> = fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
                let digest = format!("sha256:{}", entry.file_name().to_str()?);
                Some((meta.modified().ok()?, digest.parse().ok()?))
            })
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.truncate(ARTIFACTS_HELD_MAX);
        let held = found.into_iter().map(|(_, digest)| digest).collect();
        ArtifactStore {
            directory,
            held: watch::channel(held).0,
        }
    }

    /// Where an artifact is, if it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// What is there, the newest first.
    pub fn held(&self) -> watch::Receiver<Vec<Digest>> {
        self.held.subscribe()
    }

    /// An artifact was verified and has its name now.
    pub fn add(&self, digest: Digest) {
        self.held.send_if_modified(|held| {
            if held.first() == Some(&digest) {
                return false;
            }
            held.retain(|known| *known != digest);
            held.insert(0, digest);
            held.truncate(ARTIFACTS_HELD_MAX);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_store_is_known_and_other_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::open(root.path()).unwrap();
        assert!(ArtifactStore::open(&host).held().borrow().is_empty());
        let dir = root.path().join("var/lib/windlass/artifacts/sha256");
        fs::create_dir_all(dir.join("sub")).unwrap();
        let digest = Digest::of(b"one");
        fs::write(dir.join(digest.hex()), b"one").unwrap();
        fs::write(dir.join("README"), b"no digest").unwrap();
        let store = ArtifactStore::open(&host);
        assert_eq!(*store.held().borrow(), [digest]);
        for number in 0..ARTIFACTS_HELD_MAX {
            store.add(Digest::of(&number.to_be_bytes()));
        }
        let held = store.held().borrow().clone();
        assert_eq!(held.len(), ARTIFACTS_HELD_MAX);
        assert!(!held.contains(&digest));
    }
}
