//! Snapshots that are taken in: verified, and kept where agents get them from.
//!
//! # Invariants
//! * A snapshot that is taken in is whole: etcd writes the digest of a snapshot behind it.
//!
//! # Not here
//! When it is removed again: a snapshot holds every Secret of its cluster (`World::drop_snapshots`).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Hasher};
use windlass_common::limits::CHUNK_BYTES;

use super::super::{Inner, ServiceError, ServiceResult};
use super::judge::From;
use crate::backup::cluster::{BackupName, Opened};
use crate::kubernetes::pki::ClusterPki;
use crate::model::{Cluster, FieldFault, RestoreSource, Timestamp};

/// Largest snapshot, bytes: a quota is 8 GiB at most, and a database may outgrow it by what was written until its
/// alarm went off.
const SNAPSHOT_BYTES_MAX: u64 = 10 << 30;
/// Pages of a database are a multiple of this, bytes.
const PAGE: u64 = 512;
/// Length of the digest behind a snapshot, bytes.
const DIGEST_BYTES: u64 = 32;

/// A snapshot that was taken in.
pub(super) struct Taken {
    pub(super) digest: Digest,
    pub(super) revision: Option<u64>,
    pub(super) taken_at: Option<Timestamp>,
}

impl Taken {
    /// What the order says of it, and what the plan does.
    pub(super) fn named(self, name: String) -> (From, RestoreSource) {
        let from = From::Snapshot {
            name,
            revision: self.revision,
            taken_at: self.taken_at,
        };
        let digest = self.digest;
        (from, RestoreSource::Snapshot { digest })
    }
}

/// Why a file is not taken in.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("a file with the end of a snapshot; this one was cut off, or is none of etcd's")]
    NoSnapshot,
    #[error("a snapshot whose bytes are those that etcd wrote; these are others")]
    Broken,
    #[error("a snapshot that can be read: {0}")]
    Read(#[from] io::Error),
}

/// Compares a snapshot with the digest behind it.
fn verify(path: &Path) -> Result<Option<Timestamp>, Fault> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    let bytes = meta.len();
    if !meta.is_file() || bytes <= PAGE || bytes % PAGE != DIGEST_BYTES {
        return Err(Fault::NoSnapshot);
    }
    let mut left = bytes - DIGEST_BYTES;
    let mut hasher = Hasher::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    while left > 0 {
        let want = usize::try_from(left)
            .unwrap_or(CHUNK_BYTES)
            .min(CHUNK_BYTES);
        file.read_exact(&mut chunk[..want])?;
        hasher.update(&chunk[..want]);
        left -= want as u64;
    }
    file.seek(SeekFrom::Start(bytes - DIGEST_BYTES))?;
    let mut behind = [0; DIGEST_BYTES as usize];
    file.read_exact(&mut behind)?;
    if hasher.finish().as_bytes() != &behind {
        return Err(Fault::Broken);
    }
    let written = meta.modified()?.duration_since(std::time::UNIX_EPOCH);
    Ok(written.ok().and_then(|since| {
        let ms = u64::try_from(since.as_millis()).ok()?;
        Some(Timestamp::from_unix_ms(ms))
    }))
}

/// The first encryption key of a backup that its cluster does not have any more.
fn lost_key<'a>(backup: &'a ClusterPki, cluster: &ClusterPki) -> Option<&'a str> {
    let lost = backup
        .encryption
        .iter()
        .find(|key| !cluster.encryption.contains(key));
    lost.map(|key| key.name.as_str())
}

impl Inner {
    /// Opens a backup of a cluster, or the one that it was made from, and keeps its snapshot.
    pub(super) async fn open_and_take(
        &self,
        cluster: &Cluster,
        name: &BackupName,
    ) -> ServiceResult<Taken> {
        let made_from = cluster.made_from.as_ref().filter(|of| of.backup == *name);
        let of = made_from.map_or(&cluster.spec.name, |from| &from.cluster);
        let opened = self.open_backup(of, name).await?;
        let taken = self.take_opened(cluster, name, &opened).await;
        // What is left is removed at the next start.
        let _ = tokio::fs::remove_file(&opened.snapshot).await;
        taken
    }

    async fn take_opened(
        &self,
        cluster: &Cluster,
        name: &BackupName,
        opened: &Opened,
    ) -> ServiceResult<Taken> {
        let of = &cluster.spec.name;
        let manifest = &opened.manifest;
        let same = |created_at| manifest.cluster_created_at == created_at;
        let made_from = cluster.made_from.as_ref();
        let its_own =
            same(cluster.created_at) || made_from.is_some_and(|from| same(from.cluster_created_at));
        if !its_own {
            return Err(ServiceError::Conflict {
                message: format!(
                    "backup {name} is of an earlier cluster of the name {of}, which was ordered at {}",
                    manifest.cluster_created_at
                ),
            });
        }
        let present = self.cluster_pki(of).await?;
        if let Some(key) = lost_key(&opened.secrets, &present) {
            return Err(ServiceError::Conflict {
                message: format!(
                    "Secrets in backup {name} may be encrypted with {key}, which cluster {of} has no more since its \
                     encryption key was rotated; restore a later backup: `windlass cluster backups list {of}`"
                ),
            });
        }
        let mut taken = self.take_snapshot(opened.snapshot.clone()).await?;
        taken.revision = Some(manifest.snapshot.revision);
        taken.taken_at = Some(manifest.taken_at);
        Ok(taken)
    }

    /// Verifies a file and keeps a copy of it.
    pub(super) async fn take_snapshot(&self, path: PathBuf) -> ServiceResult<Taken> {
        let artifacts = self.world.artifacts.clone();
        let given = path.display().to_string();
        let work = move || {
            let taken_at = verify(&path).map_err(|fault| ServiceError::Invalid {
                faults: vec![FieldFault::new("snapshot", &given, fault.to_string())],
            })?;
            let (digest, _) = artifacts.keep(&path, SNAPSHOT_BYTES_MAX).map_err(|error| {
                ServiceError::of(error.class(), "the snapshot is not kept", error)
            })?;
            Ok(Taken {
                digest,
                revision: None,
                taken_at,
            })
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| ServiceError::of(ErrorClass::Bug, "the snapshot is not kept", error))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_whose_encryption_key_is_gone_is_not_restored() {
        let name = windlass_common::id::ClusterName::new("demo").unwrap();
        let old = ClusterPki::generate(&name, jiff::Timestamp::now()).unwrap();
        assert_eq!(lost_key(&old, &old), None);
        let mut both = old.clone();
        both.add_encryption_key().unwrap();
        both.use_encryption_key();
        assert_eq!(lost_key(&old, &both), None, "it can still be read");
        assert_eq!(lost_key(&both, &old), Some("key2"));
        let mut new = both.clone();
        new.drop_encryption_keys();
        assert_eq!(lost_key(&old, &new), Some("key1"));
    }

    #[test]
    fn a_snapshot_is_what_etcd_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        let pages = vec![7; 1024];
        let mut whole = pages.clone();
        whole.extend(Digest::of(&pages).as_bytes());
        let judged = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            verify(&path)
        };
        assert!(judged(&whole).unwrap().is_some());
        assert!(matches!(judged(&whole[..1040]), Err(Fault::NoSnapshot)));
        assert!(matches!(judged(&pages), Err(Fault::NoSnapshot)));
        assert!(matches!(judged(b""), Err(Fault::NoSnapshot)));
        let mut other = whole.clone();
        other[3] = 8;
        assert!(matches!(judged(&other), Err(Fault::Broken)));
        assert!(matches!(
            verify(dir.path()),
            Err(Fault::NoSnapshot | Fault::Read(_))
        ));
        assert!(matches!(
            verify(&dir.path().join("none")),
            Err(Fault::Read(_))
        ));
    }
}
