//! Files that survive a crash in the middle: the old content or the new, never half of one.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::provider::ProviderError;

/// Longest file of ours that is read back, in bytes: a machine's record with 64 tags of 1 KiB each.
const FILE_MAX: u64 = 256 * 1024;

/// Turns an I/O error into one that says what was tried.
pub(crate) trait What<T> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T, ProviderError>;
}

impl<T, E: Into<io::Error>> What<T> for Result<T, E> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T, ProviderError> {
        self.map_err(|source| ProviderError::Host {
            what: what(),
            source: source.into(),
        })
    }
}

/// Replaces `path` by `bytes`: temporary file, fsync, rename, fsync of the directory.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), ProviderError> {
    let write = || -> io::Result<()> {
        let temporary = write_temporary(path, bytes, mode)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        File::open(parent)?.sync_all()
    };
    write().what(|| format!("cannot write {}", path.display()))
}

/// Replaces `path` by `bytes`, whole for every reader and after every crash of a process, but not after a
/// power cut. For what is written again after one, and for what [`sync_all`] makes durable with others.
pub(crate) fn write_quick(path: &Path, bytes: &[u8], mode: u32) -> Result<(), ProviderError> {
    let write = || fs::rename(write_temporary(path, bytes, mode)?, path);
    write().what(|| format!("cannot write {}", path.display()))
}

fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.set_permissions(Permissions::from_mode(mode))?; // whatever the umask
    file.write_all(bytes)?;
    Ok(temporary)
}

/// Makes the content of files durable that were written one after the other: the first waits for the
/// disk's journal, the others find it written.
pub(crate) fn sync_all(paths: &[PathBuf]) -> Result<(), ProviderError> {
    for path in paths {
        File::open(path)
            .and_then(|file| file.sync_all())
            .what(|| format!("cannot sync {}", path.display()))?;
    }
    Ok(())
}

fn json<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, ProviderError> {
    serde_json::to_vec_pretty(value)
        .map_err(|e| ProviderError::Bug(format!("{} does not serialise: {e}", path.display())))
}

/// [`write_atomic`] of a value as JSON.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ProviderError> {
    write_atomic(path, &json(path, value)?, 0o600)
}

/// [`write_quick`] of a value as JSON.
pub(crate) fn write_json_quick<T: Serialize>(path: &Path, value: &T) -> Result<(), ProviderError> {
    write_quick(path, &json(path, value)?, 0o600)
}

/// The content of a small file; `None` if there is no such file.
pub(crate) fn read_small(path: &Path) -> Result<Option<Vec<u8>>, ProviderError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(source) => {
            return Err(ProviderError::Host {
                what: format!("cannot open {}", path.display()),
                source,
            });
        }
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX)
        .read_to_end(&mut bytes)
        .what(|| format!("cannot read {}", path.display()))?;
    Ok(Some(bytes))
}

/// The value a file holds as JSON; `None` if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ProviderError> {
    let Some(bytes) = read_small(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| ProviderError::Damaged {
            path: path.to_owned(),
            detail: e.to_string(),
        })
}

/// Makes a directory of exactly this mode, whatever the umask, in a parent that is there.
pub(crate) fn make_dir_exact(path: &Path, mode: u32) -> Result<(), ProviderError> {
    make_dir(path, mode)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .what(|| format!("cannot set the mode of directory {}", path.display()))
}

/// Makes a directory and its parents; a directory that is there is left as it is.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), ProviderError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .what(|| format!("cannot make directory {}", path.display()))
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), ProviderError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ProviderError::Host {
            what: format!("cannot remove {}", path.display()),
            source,
        }),
    }
}

/// Removes a directory and everything below it; one that is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), ProviderError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ProviderError::Host {
            what: format!("cannot remove {}", path.display()),
            source,
        }),
    }
}

/// The names in a directory, sorted; none if it is not there.
pub(crate) fn list(path: &Path) -> Result<Vec<String>, ProviderError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(ProviderError::Host {
                what: format!("cannot list {}", path.display()),
                source,
            });
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.what(|| format!("cannot list {}", path.display()))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
