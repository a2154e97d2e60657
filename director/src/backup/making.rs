//! Makes the archive of a backup from a snapshot that arrives meanwhile, and reads it back.
//!
//! # Invariants
//! * No byte of a snapshot is on the director's disk in the clear.
//! * An archive that was made is on the disk when [`make`] returns; one that [`verify`] accepts opens with the
//!   director's own key.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tokio::sync::mpsc;
use windlass_common::id::Hasher;

use super::cluster::{ArchiveError, Manifest, read, write};
use super::envelope::{Identity, Recipient};
use super::repository::ArchiveFacts;
use crate::kubernetes::pki::ClusterPki;

/// Pieces of a snapshot that may wait to be sealed: of 64 KiB each, 1 MiB.
pub const PIECES_QUEUE: usize = 16;

/// A snapshot that arrives in pieces; its end is when nobody can send any more. To be read where blocking is
/// allowed.
#[derive(Debug)]
pub struct Pieces {
    from: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

impl Pieces {
    /// What is read, and where its pieces are put in.
    pub fn channel() -> (mpsc::Sender<Vec<u8>>, Pieces) {
        let (sender, from) = mpsc::channel(PIECES_QUEUE);
        let pieces = Pieces {
            from,
            piece: Vec::new(),
            read: 0,
        };
        (sender, pieces)
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() {
            match self.from.blocking_recv() {
                Some(piece) => (self.piece, self.read) = (piece, 0),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.read);
        buffer[..count].copy_from_slice(&self.piece[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

/// Keeps count of what is written.
struct Hashed<W> {
    to: W,
    bytes: u64,
    hasher: Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Makes the archive in the file `path`, in the place of one that may be there.
///
/// # Errors
/// [`ArchiveError`]; the file is then to be removed.
pub fn make(
    path: &Path,
    manifest: &Manifest,
    secrets: &ClusterPki,
    snapshot: impl Read,
    recipients: &[Recipient],
) -> Result<ArchiveFacts, ArchiveError> {
    let failed = |source| ArchiveError::File {
        doing: "write",
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let to = Hashed {
        to: BufWriter::new(file),
        bytes: 0,
        hasher: Hasher::default(),
    };
    let Hashed { to, bytes, hasher } = write(manifest, secrets, snapshot, recipients, to)?;
    let file = to
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(ArchiveFacts {
        bytes,
        digest: hasher.finish(),
    })
}

/// Reads an archive from its beginning to its end: it is whole, and holds what it was made of.
///
/// # Errors
/// [`ArchiveError`].
pub fn verify(
    path: &Path,
    identity: &Identity,
    made_of: &Manifest,
    secrets: &ClusterPki,
) -> Result<(), ArchiveError> {
    let file = File::open(path).map_err(|source| ArchiveError::File {
        doing: "open",
        path: path.to_owned(),
        source,
    })?;
    let (manifest, found) = read(BufReader::new(file), identity, &mut io::sink())?;
    if (&manifest, &found) == (made_of, secrets) {
        return Ok(());
    }
    Err(ArchiveError::Part {
        found: format!("backup {}", manifest.name),
        wanted: "what was put in",
    })
}

#[cfg(test)]
mod tests {
    use windlass_common::id::Digest;

    use super::super::fixtures::{manifest, secrets};
    use super::*;

    #[tokio::test]
    async fn a_snapshot_that_arrives_in_pieces_is_sealed_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.age");
        let data: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let identity = Identity::generate();
        let about = manifest("20300131-120000-00000001", &data);
        let (sender, pieces) = Pieces::channel();
        let making = {
            let (path, about, recipients) = (path.clone(), about.clone(), [identity.recipient()]);
            tokio::task::spawn_blocking(move || {
                make(&path, &about, &secrets(), pieces, &recipients)
            })
        };
        for piece in data.chunks(7001) {
            sender.send(piece.to_vec()).await.unwrap();
        }
        drop(sender);
        let facts = making.await.unwrap().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(
            (facts.bytes, facts.digest),
            (bytes.len() as u64, Digest::of(&bytes))
        );
        verify(&path, &identity, &about, &secrets()).unwrap();
        let mut other = about.clone();
        other.taken_from = "demo-cp-1".parse().unwrap();
        verify(&path, &identity, &other, &secrets()).unwrap_err();
    }

    #[test]
    fn a_snapshot_whose_sender_goes_makes_no_archive() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, pieces) = Pieces::channel();
        sender.try_send(vec![1; 10]).unwrap();
        drop(sender);
        let about = manifest("20300131-120000-00000001", &[1; 20]);
        let recipients = [Identity::generate().recipient()];
        let path = directory.path().join("a.age");
        let error = make(&path, &about, &secrets(), pieces, &recipients).unwrap_err();
        assert!(matches!(error, ArchiveError::Snapshot { .. }), "{error}");
    }
}
