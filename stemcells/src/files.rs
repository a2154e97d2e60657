//! Files and directories: written atomically, staged beside their final place, cleaned up after a
//! crash; and the lock that keeps two builds out of one cache.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use windlass_common::error::ErrorClass;

use crate::tool::{Tool, ToolError};

/// Directory for unfinished work inside of caches and outputs; emptied at the start of a build.
pub const STAGING: &str = ".staging";

/// Why a file or directory could not be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// For example `create`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no space left.
    #[error("no space left to {what} {}; free some and build again, it goes on from here", path.display())]
    DiskFull {
        /// For example `write`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
    },
    /// A program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl FileError {
    /// Who has to act.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }

    /// Whether the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            FileError::DiskFull { .. } => true,
            FileError::Tool(error) => error.is_disk_full(),
            FileError::Io { .. } => false,
        }
    }
}

/// Adds what and where to an error of the system.
pub fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            FileError::DiskFull { what, path }
        }
        _ => FileError::Io { what, path, source },
    }
}

/// Creates a directory and its parents.
pub fn create_dir(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(at("create directory", path))
}

/// Writes a file so that it has either its old content or all of the new, whenever we are stopped.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let result = write_synced(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, path).map_err(at("rename", &temporary)))
        .and_then(|()| sync_dir(dir));
    if result.is_err() {
        let _ = fs::remove_file(&temporary); // the first error is the one to tell
    }
    result
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .map_err(at("create", path))?;
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(at("set the mode of", path))?;
    file.write_all(bytes).map_err(at("write", path))?;
    file.sync_all().map_err(at("sync", path))
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> Result<(), FileError> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(at("sync", dir))
}

/// Gives a finished directory its final name, durably: everything on its file system is synced first.
pub fn publish(staged: &Path, path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    create_dir(parent)?;
    let dir = File::open(staged).map_err(at("open", staged))?;
    nix::unistd::syncfs(&dir).map_err(|errno| at("sync", staged)(errno.into()))?;
    fs::rename(staged, path).map_err(at("rename", staged))?;
    sync_dir(parent)
}

/// Removes a tree if it is there.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Copies a tree with everything it has (owners, modes, times, links, devices, capabilities) to a
/// place that does not exist yet. Files share blocks where the file system can.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), FileError> {
    let what = format!("copying {} to {}", from.display(), to.display());
    Tool::new("cp", "install coreutils", what)
        .args(["-a", "--reflink=auto", "--no-target-directory", "--"])
        .args([from, to])
        .run()?;
    Ok(())
}

/// Creates a symbolic link.
pub fn symlink(target: impl AsRef<Path>, link: &Path) -> Result<(), FileError> {
    std::os::unix::fs::symlink(target, link).map_err(at("link", link))
}

/// Unfinished work of one build, in a directory on the file system where the result will be. It is
/// removed when dropped; what a killed build left is removed by the next [`Staging::open`].
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
}

impl Staging {
    /// Empties `<parent>/.staging` and prepares a directory in it. The caller holds the lock.
    pub fn open(parent: &Path) -> Result<Staging, FileError> {
        let dir = parent.join(STAGING);
        remove_tree(&dir)?;
        create_dir(&dir)?;
        Ok(Staging { dir })
    }

    /// A place in it, whose parents exist and which does not.
    pub fn place(&self, name: &str) -> Result<PathBuf, FileError> {
        let path = self.dir.join(name);
        remove_tree(&path)?;
        Ok(path)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir); // the next build tries again
    }
}

/// Holds a directory for one build; released by the system however the process ends.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "held, never read")] Flock<File>);

impl DirLock {
    /// Takes the lock of `dir`, waiting for another build to end; `on_wait` is called before waiting.
    pub fn acquire(dir: &Path, on_wait: impl FnOnce()) -> Result<DirLock, FileError> {
        create_dir(dir)?;
        let path = dir.join(".lock");
        let open = || {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        let file = open().map_err(at("create", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(DirLock(lock)),
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                on_wait();
                Flock::lock(file, FlockArg::LockExclusive)
                    .map(DirLock)
                    .map_err(|(_, errno)| at("lock", &path)(errno.into()))
            }
            Err((_, errno)) => Err(at("lock", &path)(errno.into())),
        }
    }
}

/// Free space for a privileged process, in bytes, on the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64, FileError> {
    let stat = nix::sys::statvfs::statvfs(path)
        .map_err(|errno| at("read the free space of", path)(errno.into()))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn staging_of_a_killed_build_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(STAGING).join("half");
        fs::create_dir_all(&left).unwrap();
        let staging = Staging::open(dir.path()).unwrap();
        assert!(!left.exists());
        drop(staging);
        assert!(!dir.path().join(STAGING).exists());
    }
}
