//! A repository that is a directory.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use windlass_common::id::ClusterName;

use super::super::cluster::{BackupName, Manifest};
use super::super::own_name::OwnName;
use super::{
    Archive, BackupEntry, ENTRY_BYTES_MAX, LISTED_MAX, Repository, RepositoryError,
    RepositoryFuture, Verified,
};
use crate::config::write_atomic;

/// Where a directory keeps what has no name yet; no cluster is called so.
const UNFINISHED: &str = ".unfinished";

/// A repository that is a directory: `CLUSTER/NAME.age`, and `CLUSTER/NAME.json` beside it. Backups of the director
/// itself lie in it as `director-<time>.age`.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The repository in this directory, which is made when it is used first.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn archive(&self, cluster: &ClusterName, name: &BackupName) -> PathBuf {
        self.path.join(cluster.as_str()).join(format!("{name}.age"))
    }

    fn entry(&self, cluster: &ClusterName, name: &BackupName) -> PathBuf {
        self.path
            .join(cluster.as_str())
            .join(format!("{name}.json"))
    }

    /// Does `work` where blocking is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T, RepositoryError> + Send + 'static,
    ) -> Result<T, RepositoryError> {
        let own = self.clone();
        tokio::task::spawn_blocking(move || work(&own))
            .await
            .map_err(RepositoryError::Lost)?
    }

    fn list_now(&self, cluster: &ClusterName) -> Result<Vec<BackupEntry>, RepositoryError> {
        let directory = self.path.join(cluster.as_str());
        let listed = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(failed("list", &directory))?,
        };
        let mut names: Vec<BackupName> = Vec::new();
        for file in listed {
            let file = file.map_err(failed("list", &directory))?.file_name();
            let stem = file.to_str().and_then(|name| name.strip_suffix(".json"));
            names.extend(stem.and_then(|stem| stem.parse().ok()));
        }
        names.sort_by(|a, b| b.cmp(a));
        names.truncate(LISTED_MAX);
        let mut entries = Vec::new();
        for name in &names {
            // One that cannot be read keeps none of the others from being seen.
            match self.entry_now(cluster, name) {
                Ok(entry) => entries.extend(entry),
                Err(error) => {
                    let error = windlass_common::error::ErrorChain(&error).to_string();
                    tracing::warn!(%cluster, backup = %name, error, "a backup cannot be listed");
                }
            }
        }
        Ok(entries)
    }

    /// The entry of a backup whose archive is there.
    fn entry_now(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
    ) -> Result<Option<BackupEntry>, RepositoryError> {
        let path = self.entry(cluster, name);
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed("open", &path))?,
        };
        if !self.archive(cluster, name).exists() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(ENTRY_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(failed("read", &path))?;
        let entry = serde_json::from_slice(&bytes).map_err(io::Error::from);
        entry.map(Some).map_err(failed("read", &path))
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RepositoryError {
    let path = path.to_owned();
    move |source| RepositoryError::File {
        doing,
        path,
        source,
    }
}

/// Makes a directory for its owner alone.
fn private(path: &Path) -> Result<(), RepositoryError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(failed("make", path))
}

/// Removes a file; says whether it was there.
fn remove(path: &Path) -> Result<bool, RepositoryError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

fn sync(directory: &Path) -> Result<(), RepositoryError> {
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("write", directory))
}

impl Repository for Directory {
    fn location(&self) -> String {
        self.path.display().to_string()
    }

    fn unfinished(&self) -> RepositoryFuture<'_, PathBuf> {
        Box::pin(self.blocking(|own| {
            let path = own.path.join(UNFINISHED);
            private(&path)?;
            Ok(path)
        }))
    }

    fn tidy(&self) -> RepositoryFuture<'_, ()> {
        Box::pin(self.blocking(|own| {
            let path = own.path.join(UNFINISHED);
            let left = match fs::read_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                left => left.map_err(failed("list", &path))?,
            };
            for file in left {
                remove(&file.map_err(failed("list", &path))?.path())?;
            }
            Ok(())
        }))
    }

    fn sweep(&self) -> RepositoryFuture<'_, usize> {
        Box::pin(std::future::ready(Ok(0))) // nothing is outside
    }

    fn store<'a>(&'a self, archive: &'a Path, entry: &'a BackupEntry) -> RepositoryFuture<'a, ()> {
        let (archive, entry) = (archive.to_owned(), entry.clone());
        Box::pin(self.blocking(move |own| {
            let Manifest { cluster, name, .. } = &entry.manifest;
            let (to, beside) = (own.archive(cluster, name), own.entry(cluster, name));
            let directory = own.path.join(cluster.as_str());
            private(&directory)?;
            fs::rename(&archive, &to).map_err(failed("name", &to))?;
            sync(&directory)?;
            let text = serde_json::to_vec_pretty(&entry).map_err(io::Error::from);
            let text = text.map_err(failed("write", &beside))?;
            write_atomic(&beside, &text, 0o600).map_err(failed("write", &beside))?;
            sync(&own.path)
        }))
    }

    fn list<'a>(&'a self, cluster: &'a ClusterName) -> RepositoryFuture<'a, Vec<BackupEntry>> {
        let cluster = cluster.clone();
        Box::pin(self.blocking(move |own| own.list_now(&cluster)))
    }

    fn open<'a>(
        &'a self,
        cluster: &'a ClusterName,
        name: &'a BackupName,
    ) -> RepositoryFuture<'a, Option<Archive>> {
        let (cluster, name) = (cluster.clone(), name.clone());
        Box::pin(self.blocking(move |own| {
            let Some(entry) = own.entry_now(&cluster, &name)? else {
                return Ok(None);
            };
            let path = own.archive(&cluster, &name);
            let file = fs::File::open(&path).map_err(failed("open", &path))?;
            let file = tokio::fs::File::from_std(file);
            let from = Box::new(Verified::new(file, entry.archive));
            Ok(Some(Archive { entry, from }))
        }))
    }

    fn delete<'a>(
        &'a self,
        cluster: &'a ClusterName,
        name: &'a BackupName,
    ) -> RepositoryFuture<'a, bool> {
        let (cluster, name) = (cluster.clone(), name.clone());
        Box::pin(self.blocking(move |own| {
            // Without its entry it is not listed any more, whatever becomes of the rest.
            let entry = remove(&own.entry(&cluster, &name))?;
            let archive = remove(&own.archive(&cluster, &name))?;
            if entry || archive {
                sync(&own.path.join(cluster.as_str()))?;
            }
            Ok(entry || archive)
        }))
    }

    fn store_own<'a>(&'a self, archive: &'a Path, name: &'a OwnName) -> RepositoryFuture<'a, ()> {
        let (archive, name) = (archive.to_owned(), name.clone());
        Box::pin(self.blocking(move |own| {
            let to = own.path.join(name.as_str());
            // A link, unlike a rename, never takes the place of another file.
            fs::hard_link(&archive, &to).map_err(failed("name", &to))?;
            remove(&archive)?;
            sync(&own.path)
        }))
    }

    fn list_own(&self) -> RepositoryFuture<'_, Vec<OwnName>> {
        Box::pin(self.blocking(|own| {
            let listed = match fs::read_dir(&own.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                listed => listed.map_err(failed("list", &own.path))?,
            };
            let mut names = Vec::new();
            for file in listed {
                let file = file.map_err(failed("list", &own.path))?.file_name();
                names.extend(file.to_str().and_then(OwnName::read));
            }
            Ok(names)
        }))
    }

    fn delete_own<'a>(&'a self, name: &'a OwnName) -> RepositoryFuture<'a, bool> {
        let name = name.clone();
        Box::pin(self.blocking(move |own| {
            let there = remove(&own.path.join(name.as_str()))?;
            if there {
                sync(&own.path)?;
            }
            Ok(there)
        }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use windlass_common::id::Digest;

    use super::super::super::fixtures::manifest;
    use super::super::ArchiveFacts;
    use super::*;

    fn entry(name: &str) -> BackupEntry {
        BackupEntry {
            manifest: manifest(name, b"db"),
            archive: ArchiveFacts {
                bytes: 6,
                digest: Digest::of(b"sealed"),
            },
        }
    }

    async fn put(repository: &Directory, name: &str) -> BackupEntry {
        let entry = entry(name);
        let archive = repository.unfinished().await.unwrap().join(name);
        fs::write(&archive, b"sealed").unwrap();
        repository.store(&archive, &entry).await.unwrap();
        assert!(!archive.exists());
        entry
    }

    #[tokio::test]
    async fn backups_are_listed_newest_first_once_they_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let repository = Directory::new(directory.path().join("backups"));
        let demo = ClusterName::new("demo").unwrap();
        assert_eq!(repository.list(&demo).await.unwrap(), []);
        let old = put(&repository, "20300131-120000-00000001").await;
        let new = put(&repository, "20300131-180000-00000001").await;
        // An archive whose entry is missing has not got its name yet.
        let unfinished = "20300201-000000-00000001".parse().unwrap();
        fs::write(repository.archive(&demo, &unfinished), b"x").unwrap();
        assert_eq!(
            repository.list(&demo).await.unwrap(),
            [new.clone(), old.clone()]
        );
        let other = ClusterName::new("other").unwrap();
        assert_eq!(repository.list(&other).await.unwrap(), []);
        let left = repository.unfinished().await.unwrap().join("left.age");
        fs::write(&left, b"x").unwrap();
        repository.tidy().await.unwrap();
        assert!(!left.exists());
        let name = &new.manifest.name;
        let mut archive = repository.open(&demo, name).await.unwrap().unwrap();
        let mut bytes = Vec::new();
        archive.from.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(
            (bytes.as_slice(), archive.entry),
            (&b"sealed"[..], new.clone())
        );
        assert!(repository.delete(&demo, name).await.unwrap());
        assert!(!repository.delete(&demo, name).await.unwrap());
        assert!(repository.open(&demo, name).await.unwrap().is_none());
        assert_eq!(repository.list(&demo).await.unwrap(), [old]);
    }
}
