//! One director per data directory: an exclusive lock on a file in it, held while the director lives.
//!
//! The kernel drops the lock when the process ends, however it ends; the file stays and means nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Name of the lock file inside the data directory.
const LOCK_FILE: &str = "director.lock";

/// The lock; dropping it lets another director start.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: Flock<File>,
}

/// Why a data directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another director has it.
    #[error(
        "another director (pid {pid}) uses the data directory {dir}; stop it, or choose another --data-dir"
    )]
    Held {
        /// The data directory.
        dir: PathBuf,
        /// The other's process id, `unknown` if it cannot be read.
        pid: String,
    },
    /// The lock file cannot be used.
    #[error(
        "cannot lock {path}; the data directory must exist and be writable (`windlass director init` makes it)"
    )]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DirectoryLock {
    /// Locks `dir`, or says at once who has it.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(LOCK_FILE);
        let fail = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                write_pid(&mut file).map_err(fail)?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => Err(LockError::Held {
                dir: dir.to_owned(),
                pid: read_pid(&mut file),
            }),
            Err((_, errno)) => Err(fail(errno.into())),
        }
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(32).read_to_string(&mut text);
    let pid = text.trim();
    if read.is_err() || pid.is_empty() {
        "unknown".to_owned()
    } else {
        pid.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirectoryLock::acquire(dir.path()).unwrap();
        let second = DirectoryLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(
            second.contains(&format!("pid {}", std::process::id())),
            "{second}"
        );
        drop(first);
        assert!(DirectoryLock::acquire(dir.path()).is_ok());
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = DirectoryLock::acquire(Path::new("/nonexistent/windlass")).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/windlass"),
            "{error}"
        );
    }
}
