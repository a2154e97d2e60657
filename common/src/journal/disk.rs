//! A [`Storage`] in a real directory, held by one process at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::storage::{Storage, StorageFile};

/// A directory of its own, mode 0700, locked while this value lives (also against other processes;
/// the lock goes with the process, however that ends).
#[derive(Debug)]
pub struct DirStorage {
    path: PathBuf,
    // Both a handle to sync the names and the holder of the lock.
    dir: File,
}

impl DirStorage {
    /// Makes the directory if it is missing (durably) and locks it. An error of kind
    /// [`io::ErrorKind::ResourceBusy`] says that another process holds it.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)?;
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        let dir = File::open(path)?;
        dir.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "locked by another process")
            }
            TryLockError::Error(error) => error,
        })?;
        Ok(Self {
            path: path.to_owned(),
            dir,
        })
    }
}

impl Storage for DirStorage {
    type File = File;

    fn open(&self, name: &str) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path.join(name));
        match file {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.dir.sync_all()
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

impl StorageFile for File {
    fn read_all(&mut self, max: u64) -> io::Result<Vec<u8>> {
        self.rewind()?;
        let mut bytes = Vec::new();
        self.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(io::Error::other(format!("longer than {max} bytes")));
        }
        Ok(bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
