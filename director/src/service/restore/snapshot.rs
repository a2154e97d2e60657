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
use crate::model::{FieldFault, Timestamp};

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

impl Inner {
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
