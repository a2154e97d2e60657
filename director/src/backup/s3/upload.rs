//! Puts files into a bucket: in one request, or in parts of [`PART_BYTES`].
//!
//! # Invariants
//! * At most one part is in memory for each upload.
//! * An object that [`S3::upload`] reports as stored has the bytes it was given: the store named the SHA-256 that it
//!   computed of what it received, or else every byte was read back.
//! * An upload in parts is noted in a file before its first part is sent, and the note stays until the upload is
//!   finished or given up: what a crash leaves in the bucket is known.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use windlass_common::error::ErrorChain;
use windlass_common::id::{Digest, Hasher};

use super::S3;
use super::client::{Client, Uploaded, checksum};
use super::error::S3Error;
use super::fetch::piece_bytes;
use crate::backup::repository::ArchiveFacts;
use crate::config::write_atomic;
use crate::model::Timestamp;

/// Size of a part, and of the largest object that is sent at once, bytes. S3 takes 5 MiB at least, and 10 000 parts
/// at most: of these 78 GiB, which is more than the largest store of a director, and than any snapshot.
pub(super) const PART_BYTES: usize = 8 << 20;
/// Most parts of an object.
const PARTS_MAX: u16 = 10_000;
/// A note of an upload that could not be given up for so long is dropped: the bucket's own rule has removed it.
const NOTE_AGE_MAX_MS: u64 = 7 * 86_400_000;

/// What is remembered of an upload in parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    endpoint: String,
    bucket: String,
    key: String,
    upload: String,
    at: Timestamp,
}

/// The notes of uploads in parts.
#[derive(Debug, Clone)]
pub(super) struct Notes {
    directory: PathBuf,
    /// Those of uploads of this process.
    ours: Arc<Mutex<BTreeSet<PathBuf>>>,
}

/// A note that stays when this is dropped, and is then nobody's.
struct Noted {
    path: PathBuf,
    ours: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Drop for Noted {
    fn drop(&mut self) {
        let mut ours = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
        ours.remove(&self.path);
    }
}

impl Notes {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            ours: Arc::default(),
        }
    }

    fn begin(&self, path: PathBuf) -> Noted {
        let ours = self.ours.clone();
        let mut all = ours.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(path.clone());
        drop(all);
        Noted { path, ours }
    }

    async fn write(&self, note: Note) -> Result<Noted, S3Error> {
        let name = Digest::of(note.upload.as_bytes()).hex();
        let path = self.directory.join(format!("{}.json", &name[..32]));
        let noted = self.begin(path.clone());
        let directory = self.directory.clone();
        let written = move || {
            use std::os::unix::fs::DirBuilderExt;
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&directory)?;
            let text = serde_json::to_vec_pretty(&note).map_err(io::Error::from)?;
            write_atomic(&path, &text, 0o600)
        };
        let written = tokio::task::spawn_blocking(written);
        let written = written.await.map_err(S3Error::Lost)?;
        written.map_err(|source| S3Error::Note {
            path: noted.path.clone(),
            source,
        })?;
        Ok(noted)
    }

    /// The notes that are no upload's of this process.
    async fn left(&self) -> Result<Vec<(PathBuf, Option<Note>)>, S3Error> {
        let own = self.clone();
        let found = tokio::task::spawn_blocking(move || own.left_now());
        let found = found.await.map_err(S3Error::Lost)?;
        found.map_err(|source| S3Error::Note {
            path: self.directory.clone(),
            source,
        })
    }

    fn left_now(&self) -> io::Result<Vec<(PathBuf, Option<Note>)>> {
        let files = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files?,
        };
        let mut left = Vec::new();
        for file in files {
            let path = file?.path();
            let ours = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
            // What is being written has another name until it is whole.
            let whole = path.extension().is_some_and(|ext| ext == "json");
            if !whole || ours.contains(&path) {
                continue;
            }
            drop(ours);
            let text = match std::fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text?,
            };
            left.push((path, serde_json::from_slice(&text).ok()));
        }
        Ok(left)
    }
}

async fn forget(path: &Path) {
    if let Err(error) = tokio::fs::remove_file(path).await
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "the note of an upload stays");
    }
}

/// A file that is read part by part.
struct Source {
    from: File,
    left: u64,
    hasher: Hasher,
}

impl Source {
    /// The next part; empty at the end.
    async fn part(&mut self) -> io::Result<Bytes> {
        let bytes = usize::try_from(self.left).map_or(PART_BYTES, |left| left.min(PART_BYTES));
        let mut part = vec![0; bytes];
        self.from.read_exact(&mut part).await?;
        self.left -= bytes as u64;
        self.hasher.update(&part);
        Ok(part.into())
    }

    /// Whether all of it was read, and is what it was when it was made.
    fn end(self, archive: ArchiveFacts) -> io::Result<()> {
        if self.left == 0 && self.hasher.finish() == archive.digest {
            return Ok(());
        }
        let message = "it is not what it was when it was made";
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

impl S3 {
    /// Puts a file into the bucket, whole, and sees that it is there; with `new` in the place of nothing else.
    pub(super) async fn upload(
        &self,
        client: &Client,
        key: &str,
        path: &Path,
        archive: ArchiveFacts,
        new: bool,
    ) -> Result<(), S3Error> {
        let file = |source| S3Error::File {
            asked: client.asked("write", key),
            source,
        };
        let mut source = Source {
            from: File::open(path).await.map_err(file)?,
            left: archive.bytes,
            hasher: Hasher::default(),
        };
        let checksum = if archive.bytes <= PART_BYTES as u64 {
            let body = source.part().await.map_err(file)?;
            source.end(archive).map_err(file)?;
            match client.put(key, body, new).await {
                // Its answer was lost, or it is another's: that shows now.
                Err(error) if error.is_condition() => {}
                put => put?,
            }
            checksum(&archive.digest)
        } else {
            self.upload_parts(client, key, source, archive, new).await?
        };
        see(client, key, archive, &checksum).await
    }

    /// The same in parts; returns the checksum of the parts'.
    async fn upload_parts(
        &self,
        client: &Client,
        key: &str,
        source: Source,
        archive: ArchiveFacts,
        new: bool,
    ) -> Result<String, S3Error> {
        let upload = client.create_upload(key).await?;
        let asked = *client.asked("write", key);
        let note = Note {
            endpoint: asked.endpoint,
            bucket: asked.bucket,
            key: asked.key,
            upload: upload.clone(),
            at: Timestamp::now(),
        };
        let noted = match self.notes.write(note).await {
            Ok(noted) => noted,
            Err(error) => {
                give_up(client, key, &upload).await;
                return Err(error);
            }
        };
        let sent = send_parts(client, key, &upload, source, archive, new).await;
        if sent.is_ok() || give_up(client, key, &upload).await {
            forget(&noted.path).await;
        }
        sent
    }

    /// Gives up what uploads of earlier processes, or such that could not be given up, left in the bucket. Says how
    /// many that were.
    pub(super) async fn give_up_left(&self, client: &Client) -> Result<usize, S3Error> {
        let mut count = 0;
        for (path, note) in self.notes.left().await? {
            let Some(note) = note else {
                tracing::warn!(path = %path.display(), "what is no note of an upload is removed");
                forget(&path).await;
                continue;
            };
            let here = client.asked("give up writing", &note.key);
            let elsewhere = (&here.endpoint, &here.bucket) != (&note.endpoint, &note.bucket);
            let old = Timestamp::now().ms_since(note.at) > NOTE_AGE_MAX_MS;
            if elsewhere || old {
                let Note {
                    bucket,
                    key,
                    upload,
                    endpoint,
                    ..
                } = &note;
                tracing::warn!(
                    bucket,
                    key,
                    upload,
                    endpoint,
                    "an unfinished upload is left to the bucket's rule for such"
                );
                forget(&path).await;
            } else if give_up(client, &note.key, &note.upload).await {
                forget(&path).await;
                count += 1;
            }
        }
        Ok(count)
    }
}

/// Gives an upload up; says whether the store has nothing of it any more.
async fn give_up(client: &Client, key: &str, upload: &str) -> bool {
    match client.abort_upload(key, upload).await {
        Ok(()) => true,
        Err(error) => {
            let error = ErrorChain(&error);
            tracing::warn!(key, upload, %error, "an unfinished upload stays for now");
            false
        }
    }
}

async fn send_parts(
    client: &Client,
    key: &str,
    upload: &str,
    mut source: Source,
    archive: ArchiveFacts,
    new: bool,
) -> Result<String, S3Error> {
    let file = |source| S3Error::File {
        asked: client.asked("write", key),
        source,
    };
    let mut parts: Vec<Uploaded> = Vec::new();
    for number in 1..=PARTS_MAX {
        let part = source.part().await.map_err(file)?;
        if part.is_empty() {
            break;
        }
        parts.push(client.put_part(key, upload, number, part).await?);
    }
    source.end(archive).map_err(file)?;
    if let Err(error) = client.complete_upload(key, upload, &parts, new).await {
        // The answer of one that succeeded may have been lost.
        let there = client.head(key).await?.and_then(|head| head.bytes);
        if there != Some(archive.bytes) {
            return Err(error);
        }
    }
    let mut all = Hasher::default();
    for part in &parts {
        all.update(part.digest.as_bytes());
    }
    Ok(format!("{}-{}", checksum(&all.finish()), parts.len()))
}

/// Sees that the bucket has these bytes under that name: the store names their checksum, or they are read.
async fn see(
    client: &Client,
    key: &str,
    archive: ArchiveFacts,
    checksum: &str,
) -> Result<(), S3Error> {
    let differs = |found: String| S3Error::Differs {
        asked: client.asked("check", key),
        found,
    };
    let head = client.head(key).await?;
    let head = head.ok_or_else(|| differs("nothing".to_owned()))?;
    if head.bytes != Some(archive.bytes) {
        let bytes = head.bytes.unwrap_or(0);
        let found = format!("{bytes} bytes in the place of {}", archive.bytes);
        return Err(differs(found));
    }
    if head.checksum.as_deref() == Some(checksum) {
        return Ok(());
    }
    // It computes none, or another one.
    let mut hasher = Hasher::default();
    let mut from = 0;
    while from < archive.bytes {
        let piece = piece_bytes(archive.bytes - from);
        let piece = client.get_piece(key, from, piece).await?;
        from += piece.len() as u64;
        hasher.update(&piece);
    }
    match hasher.finish() {
        digest if digest == archive.digest => Ok(()),
        digest => Err(differs(digest.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(key: &str) -> Note {
        Note {
            endpoint: "https://s3.example".to_owned(),
            bucket: "vault".to_owned(),
            key: key.to_owned(),
            upload: format!("upload of {key}"),
            at: Timestamp::from_unix_ms(1),
        }
    }

    #[tokio::test]
    async fn what_a_process_notes_is_left_once_nobody_works_on_it() {
        let directory = tempfile::tempdir().unwrap();
        let notes = Notes::new(directory.path().join("uploads"));
        assert!(notes.left().await.unwrap().is_empty());
        let first = notes.write(note("a")).await.unwrap();
        let second = notes.write(note("b")).await.unwrap();
        assert!(notes.left().await.unwrap().is_empty());
        drop(first);
        let left = notes.left().await.unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].1, Some(note("a")));
        // The next process knows of none that is its own.
        let next = Notes::new(directory.path().join("uploads"));
        assert_eq!(next.left().await.unwrap().len(), 2);
        forget(&second.path).await;
        std::fs::write(&left[0].0, b"torn").unwrap();
        assert_eq!(next.left().await.unwrap()[0].1, None);
    }

    #[tokio::test]
    async fn a_file_that_changed_since_it_was_made_is_not_sent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.age");
        std::fs::write(&path, b"sealed").unwrap();
        let source = async || Source {
            from: File::open(&path).await.unwrap(),
            left: 6,
            hasher: Hasher::default(),
        };
        let facts = |bytes: &[u8]| ArchiveFacts {
            bytes: 6,
            digest: Digest::of(bytes),
        };
        let mut whole = source().await;
        assert_eq!(whole.part().await.unwrap(), &b"sealed"[..]);
        assert!(whole.part().await.unwrap().is_empty());
        whole.end(facts(b"sealed")).unwrap();
        let mut other = source().await;
        other.part().await.unwrap();
        other.end(facts(b"Sealed")).unwrap_err();
        std::fs::write(&path, b"sea").unwrap();
        source().await.part().await.unwrap_err();
    }
}
