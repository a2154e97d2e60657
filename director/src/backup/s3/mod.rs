//! A repository in a bucket of an object store that speaks S3.
//!
//! How its objects are called: `keys`. Archives are made on the director's disk first, as for a directory, and read
//! back there; then they are sent (`upload`).
//!
//! # Invariants
//! * The entry of a backup is written after its archive was seen in the bucket, in the place of no other, and is
//!   deleted before it: a backup is there with its entry, and then it is whole.
//! * No object is ever written over. Two directors with the same records never mix their backups.
//! * What is removed unasked is what no entry names and a day has passed since, by the store's own clock.
//!
//! # After a crash
//! An upload that was cut off has a note on this host and is given up at the next [`Repository::sweep`]; of one whose
//! host is lost, what was sent stays in the bucket, unlisted, until the bucket's own rule for such removes it. An
//! archive whose entry was not written is swept after a day.
//!
//! # Not here
//! Making the bucket, its rules and locks: its owner does.

mod client;
mod credentials;
mod error;
mod fetch;
mod keys;
mod upload;
mod wire;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use hyper::body::Bytes;
use rusty_s3::Bucket;
use tokio::sync::OnceCell;
use url::Url;
use windlass_common::id::{ClusterName, DirectorId, Hasher};

use self::client::{Client, Listed};
use self::fetch::Fetch;
use self::keys::{Keys, Object, Part, tag};
use self::upload::Notes;
use self::wire::IDLE_MAX;
use super::cluster::{BackupName, Manifest};
use super::own_name::OwnName;
use super::repository::{
    Archive, ArchiveFacts, BackupEntry, Directory, ENTRY_BYTES_MAX, LISTED_MAX, Repository,
    RepositoryError, RepositoryFuture, Verified,
};

pub use self::error::{Asked, Refusal, S3Error};

/// How old, by the store's clock, an archive without an entry is when it is removed. Between the two lie an upload's
/// end and a look at it: minutes, or hours where all of a large one has to be read back over a thin line.
const ORPHAN_AGE_MS: u64 = 86_400_000;
/// Entries that are remembered, of 2 KiB each: 8 MiB.
const READ_MAX: usize = 4096;
/// Where a directory keeps the notes of uploads; no cluster is called so.
const NOTES: &str = ".uploads";

/// Which bucket, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Config {
    /// The store: `https://HOST[:PORT]`.
    pub endpoint: Url,
    /// The bucket in it, with its region, and whether its name is part of the path or of the host.
    pub bucket: Bucket,
    /// What all names of objects begin with; may be empty.
    pub prefix: String,
    /// The file with the key, in the format of AWS.
    pub credentials: PathBuf,
    /// The certificates that are trusted in the place of the host's, as PEM.
    pub ca_file: Option<PathBuf>,
    /// How long one request may take: an answer, or a part of 8 MiB.
    pub timeout: Duration,
    /// Whether the store is asked to compute checksums (SHA-256). Without, every archive is read back.
    pub checksums: bool,
}

/// A repository in a bucket.
#[derive(Debug)]
pub struct S3 {
    config: S3Config,
    keys: Keys,
    /// Where archives are made before they are sent.
    staging: Directory,
    notes: Notes,
    pause: Duration,
    client: OnceCell<Arc<Client>>,
    /// Entries that were read, by name and stamp of their objects: listing reads each once.
    read: Mutex<BTreeMap<(String, String), BackupEntry>>,
}

impl S3 {
    /// The repository of this director in that bucket. `staging` is the directory for what is unfinished.
    pub fn new(config: S3Config, staging: PathBuf, director: DirectorId) -> Self {
        Self {
            keys: Keys::new(&config.prefix, director),
            config,
            notes: Notes::new(staging.join(NOTES)),
            staging: Directory::new(staging),
            pause: client::PAUSE_FIRST,
            client: OnceCell::new(),
            read: Mutex::default(),
        }
    }

    /// The same with another pause after the first failure of a call.
    #[must_use]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    async fn client(&self) -> Result<Arc<Client>, S3Error> {
        let make = async || {
            let (config, pause) = (self.config.clone(), self.pause);
            // Reads the certificates of the host.
            let client = tokio::task::spawn_blocking(move || {
                let bucket = config.bucket.clone();
                Client::new(&config, bucket, pause)
            });
            client.await.map_err(S3Error::Lost)?.map(Arc::new)
        };
        self.client.get_or_try_init(make).await.cloned()
    }

    /// The entry of a backup; nothing where there is none.
    async fn entry(
        &self,
        client: &Client,
        cluster: &ClusterName,
        name: &BackupName,
    ) -> Result<Option<BackupEntry>, RepositoryError> {
        let key = self.keys.entry(cluster, name);
        let most = usize::try_from(ENTRY_BYTES_MAX).unwrap_or(usize::MAX);
        let Some(text) = client.get(&key, most).await? else {
            return Ok(None);
        };
        let damaged = |found: String| RepositoryError::Damaged {
            what: client.asked("", &key).to_string().trim().to_owned(),
            found,
        };
        let entry: BackupEntry =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let of = &entry.manifest;
        if (&of.cluster, &of.name) == (cluster, name) {
            return Ok(Some(entry));
        }
        Err(damaged(format!(
            "it is that of backup {} of cluster {}",
            of.name, of.cluster
        )))
    }

    /// Writes an entry in the place of no other.
    async fn put_entry(&self, client: &Client, entry: &BackupEntry) -> Result<(), RepositoryError> {
        let Manifest { cluster, name, .. } = &entry.manifest;
        let key = self.keys.entry(cluster, name);
        let text = serde_json::to_vec_pretty(entry).map_err(|error| RepositoryError::Damaged {
            what: format!("the entry of backup {name}"),
            found: error.to_string(),
        })?;
        let body = Bytes::from(text);
        let error = match client.put(&key, body.clone(), true).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !error.is_condition() && !error.is_unknown() {
            return Err(error.into());
        }
        match client.get(&key, body.len() + 1).await {
            // The answer of the one that wrote it was lost.
            Ok(Some(there)) if there == body => Ok(()),
            // Where a store has no conditions, looking before is the best there is.
            Ok(None) if error.is_unknown() => Ok(client.put(&key, body, false).await?),
            Ok(None) => Err(error.into()),
            Ok(Some(_)) | Err(S3Error::Answer { .. }) => Err(RepositoryError::Taken {
                cluster: cluster.clone(),
                name: name.clone(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    async fn store_now(&self, path: &Path, entry: &BackupEntry) -> Result<(), RepositoryError> {
        let client = self.client().await?;
        let Manifest { cluster, name, .. } = &entry.manifest;
        let key = self.keys.archive(cluster, name, &entry.archive.digest);
        self.upload(&client, &key, path, entry.archive, false)
            .await?;
        // Where that fails, the archive is one that no entry names, and is swept.
        self.put_entry(&client, entry).await?;
        discard(path).await;
        Ok(())
    }

    async fn list_now(&self, cluster: &ClusterName) -> Result<Vec<BackupEntry>, RepositoryError> {
        let client = self.client().await?;
        let listing = client.list(&self.keys.cluster(cluster)).await?;
        let objects = self.objects(&listing.objects);
        let mut entries: Vec<(BackupName, Listed)> = objects
            .into_iter()
            .filter(|(_, objects)| !objects.archives.is_empty())
            .filter_map(|((_, name), objects)| Some((name, objects.entry?)))
            .collect();
        entries.reverse();
        entries.truncate(LISTED_MAX);
        let mut found = Vec::new();
        for entries in entries.chunks(IDLE_MAX) {
            let read = entries
                .iter()
                .map(|(name, object)| self.listed(&client, cluster, name, object));
            found.extend(try_join_all(read).await?.into_iter().flatten());
        }
        Ok(found)
    }

    /// The entry of a backup; one that cannot be understood keeps none of the others from being seen.
    async fn listed(
        &self,
        client: &Client,
        cluster: &ClusterName,
        name: &BackupName,
        object: &Listed,
    ) -> Result<Option<BackupEntry>, RepositoryError> {
        let stamped = object
            .stamp
            .as_ref()
            .map(|stamp| (object.key.clone(), stamp.clone()));
        let known = |read: &BTreeMap<_, BackupEntry>| read.get(stamped.as_ref()?).cloned();
        if let Some(entry) = known(&self.read.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(Some(entry));
        }
        match self.entry(client, cluster, name).await {
            Err(error @ RepositoryError::Damaged { .. }) => {
                tracing::warn!(%cluster, backup = %name, %error, "a backup cannot be listed");
                Ok(None)
            }
            Ok(Some(entry)) => {
                let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
                if read.len() >= READ_MAX {
                    read.clear();
                }
                read.extend(stamped.map(|stamped| (stamped, entry.clone())));
                Ok(Some(entry))
            }
            entry => entry,
        }
    }

    async fn open_now(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
    ) -> Result<Option<Archive>, RepositoryError> {
        let client = self.client().await?;
        let Some(entry) = self.entry(&client, cluster, name).await? else {
            return Ok(None);
        };
        let key = self.keys.archive(cluster, name, &entry.archive.digest);
        let bytes = client.head(&key).await?.and_then(|head| head.bytes);
        if bytes != Some(entry.archive.bytes) {
            return Err(RepositoryError::Damaged {
                what: client.asked("", &key).to_string().trim().to_owned(),
                found: match bytes {
                    Some(bytes) => format!("{bytes} bytes in the place of {}", entry.archive.bytes),
                    None => "it is not there".to_owned(),
                },
            });
        }
        let fetch = Fetch::new(client, key, entry.archive.bytes);
        let from = Box::new(Verified::new(fetch, entry.archive));
        Ok(Some(Archive { entry, from }))
    }

    async fn delete_now(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
    ) -> Result<bool, RepositoryError> {
        let client = self.client().await?;
        let listing = client.list(&self.keys.backup(cluster, name)).await?;
        let ours = |listed: &Listed| {
            let object = self.keys.read(&listed.key)?;
            (object.name == *name).then(|| (object.part != Part::Entry, listed.key.clone()))
        };
        let mut objects: Vec<(bool, String)> = listing.objects.iter().filter_map(ours).collect();
        // The entry first.
        objects.sort();
        for (_, key) in &objects {
            client.delete(key).await?;
        }
        Ok(!objects.is_empty())
    }

    fn objects(&self, listed: &[Listed]) -> BTreeMap<(ClusterName, BackupName), Objects> {
        let mut found: BTreeMap<_, Objects> = BTreeMap::new();
        for listed in listed {
            let Some(object) = self.keys.read(&listed.key) else {
                continue;
            };
            let Object {
                cluster,
                name,
                part,
            } = object;
            let of = found.entry((cluster, name)).or_default();
            match part {
                Part::Entry => of.entry = Some(listed.clone()),
                Part::Archive(tag) => of.archives.push((tag, listed.clone())),
            }
        }
        found
    }

    /// Removes archives that no entry names and that are old enough.
    async fn sweep_orphans(&self, client: &Client) -> Result<usize, RepositoryError> {
        let listing = client.list(self.keys.all()).await?;
        let Some(now) = listing.at else {
            return Ok(0); // a store that does not say what time it is
        };
        let old = |listed: &Listed| {
            let age = listed.modified.map(|at| now.ms_since(at));
            age.is_some_and(|age| age > ORPHAN_AGE_MS)
        };
        let mut count = 0;
        for ((cluster, name), mut objects) in self.objects(&listing.objects) {
            // One archive beside an entry is the entry's.
            let settled = objects.entry.is_some() && objects.archives.len() == 1;
            objects.archives.retain(|(_, listed)| old(listed));
            if settled || objects.archives.is_empty() {
                continue;
            }
            let named = match self.entry(client, &cluster, &name).await {
                Ok(entry) => entry.map(|entry| tag(&entry.archive.digest)),
                Err(RepositoryError::Damaged { .. }) => continue, // its owner decides
                Err(error) => return Err(error),
            };
            for (tag, listed) in objects.archives {
                if named.as_ref() != Some(&tag) {
                    tracing::info!(key = listed.key, "an archive without an entry is removed");
                    client.delete(&listed.key).await?;
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    async fn sweep_now(&self) -> Result<usize, RepositoryError> {
        let client = self.client().await?;
        let given_up = self.give_up_left(&client).await?;
        Ok(given_up + self.sweep_orphans(&client).await?)
    }

    async fn store_own_now(&self, path: &Path, name: &OwnName) -> Result<(), RepositoryError> {
        let client = self.client().await?;
        let key = self.keys.own(name);
        let file = path.to_owned();
        let archive = tokio::task::spawn_blocking(move || facts(&file));
        let archive = archive.await.map_err(S3Error::Lost)?;
        let archive = archive.map_err(|source| S3Error::File {
            asked: client.asked("write", &key),
            source,
        })?;
        self.upload(&client, &key, path, archive, true).await?;
        discard(path).await;
        Ok(())
    }

    async fn list_own_now(&self) -> Result<Vec<OwnName>, RepositoryError> {
        let client = self.client().await?;
        let listing = client.list(&self.keys.own_all()).await?;
        let names = listing.objects.iter();
        Ok(names
            .filter_map(|listed| self.keys.read_own(&listed.key))
            .collect())
    }

    async fn delete_own_now(&self, name: &OwnName) -> Result<bool, RepositoryError> {
        let client = self.client().await?;
        let key = self.keys.own(name);
        let there = client.head(&key).await?.is_some();
        client.delete(&key).await?;
        Ok(there)
    }
}

/// What a bucket has of one backup.
#[derive(Debug, Default)]
struct Objects {
    entry: Option<Listed>,
    /// Its archives, each with its tag.
    archives: Vec<(String, Listed)>,
}

/// Size and digest of a file.
fn facts(path: &Path) -> io::Result<ArchiveFacts> {
    let mut file = File::open(path)?;
    let mut hashed = Hashed::default();
    let bytes = io::copy(&mut file, &mut hashed)?;
    Ok(ArchiveFacts {
        bytes,
        digest: hashed.0.finish(),
    })
}

#[derive(Default)]
struct Hashed(Hasher);

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes the file of an archive that is in the bucket.
async fn discard(path: &Path) {
    if let Err(error) = tokio::fs::remove_file(path).await {
        tracing::warn!(path = %path.display(), %error, "what was sent stays until the next start");
    }
}

impl Repository for S3 {
    fn location(&self) -> String {
        let Self { config, keys, .. } = self;
        let (bucket, endpoint) = (config.bucket.name(), config.endpoint.as_str());
        let endpoint = endpoint.trim_end_matches('/');
        format!("s3://{bucket}/{} at {endpoint}", keys.all())
    }

    fn unfinished(&self) -> RepositoryFuture<'_, PathBuf> {
        self.staging.unfinished()
    }

    fn tidy(&self) -> RepositoryFuture<'_, ()> {
        self.staging.tidy()
    }

    fn sweep(&self) -> RepositoryFuture<'_, usize> {
        Box::pin(self.sweep_now())
    }

    fn store<'a>(&'a self, archive: &'a Path, entry: &'a BackupEntry) -> RepositoryFuture<'a, ()> {
        Box::pin(self.store_now(archive, entry))
    }

    fn list<'a>(&'a self, cluster: &'a ClusterName) -> RepositoryFuture<'a, Vec<BackupEntry>> {
        Box::pin(self.list_now(cluster))
    }

    fn open<'a>(
        &'a self,
        cluster: &'a ClusterName,
        name: &'a BackupName,
    ) -> RepositoryFuture<'a, Option<Archive>> {
        Box::pin(self.open_now(cluster, name))
    }

    fn delete<'a>(
        &'a self,
        cluster: &'a ClusterName,
        name: &'a BackupName,
    ) -> RepositoryFuture<'a, bool> {
        Box::pin(self.delete_now(cluster, name))
    }

    fn store_own<'a>(&'a self, archive: &'a Path, name: &'a OwnName) -> RepositoryFuture<'a, ()> {
        Box::pin(self.store_own_now(archive, name))
    }

    fn list_own(&self) -> RepositoryFuture<'_, Vec<OwnName>> {
        Box::pin(self.list_own_now())
    }

    fn delete_own<'a>(&'a self, name: &'a OwnName) -> RepositoryFuture<'a, bool> {
        Box::pin(self.delete_own_now(name))
    }
}
