//! Files beneath a root directory: read, replaced atomically, linked, removed.
//!
//! # Invariants
//! * A path is walked one component at a time from the root's own descriptor; a symbolic link on the
//!   way is an error, never followed. What is at the end is never followed either.
//! * A file appears under its name whole and synced, with its final owner and mode, or not at all.
//!
//! # After a crash
//! A staged file may be left as `.<name>.windlass`; staging the same file again replaces it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, symlinkat, unlinkat};
use windlass_common::error::ErrorClass;

/// Longest path that is accepted, in bytes (Linux's PATH_MAX less the root).
pub const PATH_BYTES_MAX: usize = 3000;

/// Why a file could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Not an absolute, normal path.
    #[error("path {path:?} must be absolute and without empty, `.` or `..` components")]
    Path {
        /// The path.
        path: String,
    },
    /// A component is a symbolic link or no directory.
    #[error("{at} on the way to {path} is not a directory (a symbolic link is not followed)")]
    NotADirectory {
        /// The path.
        path: String,
        /// The component.
        at: String,
    },
    /// Something else is in the place.
    #[error("{path} is there and is not a {want}; remove it by hand if it may go")]
    Occupied {
        /// The path.
        path: String,
        /// What was expected.
        want: &'static str,
    },
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl TreeError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => ErrorClass::Retry,
                _ => ErrorClass::Operator,
            },
            Self::Path { .. } | Self::NotADirectory { .. } | Self::Occupied { .. } => {
                ErrorClass::Operator
            }
        }
    }
}

/// A root directory.
#[derive(Debug, Clone)]
pub struct Tree {
    root: Arc<OwnedFd>,
}

/// What is at a path.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A regular file, open for reading.
    File {
        /// The open file.
        file: File,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Length in bytes.
        bytes: u64,
    },
    /// A symbolic link.
    Link(String),
    /// A directory.
    Directory,
    /// A device, socket or pipe.
    Other,
}

/// Owner and permission bits of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A file that is written but not yet under its name.
#[derive(Debug)]
pub struct Staged {
    file: File,
    parent: OwnedFd,
    name: String,
    path: String,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

fn failed(action: &'static str, path: &str) -> impl FnOnce(Errno) -> TreeError {
    let path = path.to_owned();
    move |errno| TreeError::Io {
        action,
        path,
        source: errno.into(),
    }
}

fn failed_io(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_owned();
    move |source| TreeError::Io {
        action,
        path,
        source,
    }
}

/// Splits an absolute, normal path into its components; at least one.
pub fn components(path: &str) -> Result<Vec<&str>, TreeError> {
    let bad = || TreeError::Path {
        path: path.chars().take(200).collect(),
    };
    let rest = path.strip_prefix('/').ok_or_else(bad)?;
    let parts: Vec<&str> = rest.split('/').collect();
    let normal = |part: &&str| !matches!(*part, "" | "." | "..") && !part.contains('\0');
    if path.len() > PATH_BYTES_MAX || !parts.iter().all(normal) {
        return Err(bad());
    }
    Ok(parts)
}

impl Tree {
    /// Opens a root directory.
    pub fn open(root: &Path) -> Result<Self, TreeError> {
        let file = File::open(root).map_err(failed_io("open", &root.display().to_string()))?;
        Ok(Self {
            root: Arc::new(file.into()),
        })
    }

    /// Makes a directory and its parents (mode 0755 each, durably); nothing if it is there.
    pub fn make_directory(&self, path: &str) -> Result<(), TreeError> {
        let parts = components(path)?;
        self.walk(path, &parts, true).map(|_| ())
    }

    /// What is at a path.
    pub fn find(&self, path: &str) -> Result<Found, TreeError> {
        let Some((parent, name)) = self.parent(path, false)? else {
            return Ok(Found::Nothing);
        };
        let stat = match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            Err(errno) => return Err(failed("look at", path)(errno)),
        };
        Ok(match kind(&stat) {
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file =
                    openat(&parent, name, flags, Mode::empty()).map_err(failed("open", path))?;
                // What was opened counts, not what was there a moment before.
                let stat = fstat(&file).map_err(failed("look at", path))?;
                Found::File {
                    file: file.into(),
                    mode: stat.st_mode & 0o7777,
                    uid: stat.st_uid,
                    gid: stat.st_gid,
                    bytes: u64::try_from(stat.st_size).unwrap_or(0),
                }
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(&parent, name).map_err(failed("read the link", path))?;
                Found::Link(target.to_string_lossy().into_owned())
            }
            SFlag::S_IFDIR => Found::Directory,
            _ => Found::Other,
        })
    }

    /// Writes a file beside its final place; [`Staged::publish`] gives it its name. Missing parent
    /// directories are made. `fill` writes the content.
    pub fn stage(
        &self,
        path: &str,
        attributes: Attributes,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<Staged, TreeError> {
        let (parent, name) = self.parent_made(path)?;
        let temporary = temporary_name(name);
        remove_if_there(&parent, &temporary, path)?;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file: File = openat(
            &parent,
            temporary.as_str(),
            flags,
            Mode::from_bits_truncate(0o600),
        )
        .map_err(failed("create a file for", path))?
        .into();
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        let written = fill(&mut file)
            .map_err(failed_io("write", path))
            .and_then(|()| {
                fchown(&file, Some(uid), Some(gid)).map_err(failed("set the owner of", path))
            })
            .and_then(|()| {
                // After the owner: changing that clears bits.
                let mode = Mode::from_bits_truncate(attributes.mode);
                fchmod(&file, mode).map_err(failed("set the mode of", path))
            });
        if let Err(error) = written {
            let _ = unlinkat(&parent, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
            return Err(error);
        }
        Ok(Staged {
            file,
            parent,
            name: name.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Writes a whole file atomically and durably.
    pub fn write(
        &self,
        path: &str,
        attributes: Attributes,
        content: &[u8],
    ) -> Result<(), TreeError> {
        let staged = self.stage(path, attributes, |file| io::Write::write_all(file, content))?;
        staged.sync()?;
        let (_, parent) = staged.publish()?;
        fsync(&parent).map_err(failed("sync the directory of", path))
    }

    /// Sets owner and mode of a file whose content is right already.
    pub fn set_attributes(&self, path: &str, attributes: Attributes) -> Result<(), TreeError> {
        let Found::File { file, .. } = self.find(path)? else {
            return Err(TreeError::Occupied {
                path: path.to_owned(),
                want: "file",
            });
        };
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        fchown(&file, Some(uid), Some(gid)).map_err(failed("set the owner of", path))?;
        let mode = Mode::from_bits_truncate(attributes.mode);
        fchmod(&file, mode).map_err(failed("set the mode of", path))?;
        file.sync_all().map_err(failed_io("sync", path))
    }

    /// Makes a symbolic link, or switches the one that is there, atomically and durably.
    pub fn link(&self, path: &str, target: &str) -> Result<(), TreeError> {
        match self.find(path)? {
            Found::Nothing | Found::Link(_) => {}
            Found::File { .. } | Found::Directory | Found::Other => {
                return Err(TreeError::Occupied {
                    path: path.to_owned(),
                    want: "symbolic link",
                });
            }
        }
        let (parent, name) = self.parent_made(path)?;
        let temporary = temporary_name(name);
        remove_if_there(&parent, &temporary, path)?;
        symlinkat(target, &parent, temporary.as_str()).map_err(failed("make the link", path))?;
        renameat(&parent, temporary.as_str(), &parent, name).map_err(failed("switch", path))?;
        fsync(&parent).map_err(failed("sync the directory of", path))
    }

    /// Removes a file, a link or an empty directory, durably; nothing if it is not there.
    pub fn remove(&self, path: &str) -> Result<(), TreeError> {
        let Some((parent, name)) = self.parent(path, false)? else {
            return Ok(());
        };
        let flag = match self.find(path)? {
            Found::Nothing => return Ok(()),
            Found::Directory => UnlinkatFlags::RemoveDir,
            Found::File { .. } | Found::Link(_) | Found::Other => UnlinkatFlags::NoRemoveDir,
        };
        match unlinkat(&parent, name, flag) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed("remove", path)(errno)),
        }
        fsync(&parent).map_err(failed("sync the directory of", path))
    }

    fn parent_made<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str), TreeError> {
        self.parent(path, true)?.ok_or_else(|| {
            // Removed by someone else while we made it.
            failed("make the directory of", path)(Errno::ENOENT)
        })
    }

    /// The directory that holds the last component; `None` if it is missing and not to be made.
    fn parent<'p>(
        &self,
        path: &'p str,
        make: bool,
    ) -> Result<Option<(OwnedFd, &'p str)>, TreeError> {
        let mut parts = components(path)?;
        // `components` returns at least one.
        let name = parts.pop().unwrap_or_default();
        Ok(self.walk(path, &parts, make)?.map(|parent| (parent, name)))
    }

    fn walk(&self, path: &str, parts: &[&str], make: bool) -> Result<Option<OwnedFd>, TreeError> {
        let mut dir = openat(&*self.root, ".", DIRECTORY, Mode::empty())
            .map_err(failed("open the root of", path))?;
        for (i, part) in parts.iter().enumerate() {
            let at = || format!("/{}", parts[..=i].join("/"));
            let next = match openat(&dir, *part, DIRECTORY, Mode::empty()) {
                Err(Errno::ENOENT) if make => {
                    match mkdirat(&dir, *part, Mode::from_bits_truncate(0o755)) {
                        Ok(()) => fsync(&dir).map_err(failed("sync the parent of", &at()))?,
                        Err(Errno::EEXIST) => {}
                        Err(errno) => return Err(failed("make the directory", &at())(errno)),
                    }
                    openat(&dir, *part, DIRECTORY, Mode::empty())
                }
                other => other,
            };
            dir = match next {
                Ok(dir) => dir,
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    return Err(TreeError::NotADirectory {
                        path: path.to_owned(),
                        at: at(),
                    });
                }
                Err(errno) => return Err(failed("open the directory", &at())(errno)),
            };
        }
        Ok(Some(dir))
    }
}

impl Staged {
    /// Makes the content durable; before [`Staged::publish`], so that the name never leads to less.
    pub fn sync(&self) -> Result<(), TreeError> {
        self.file.sync_all().map_err(failed_io("sync", &self.path))
    }

    /// Gives the file its name and returns the directory and which one it is (device and inode); the
    /// caller syncs it with [`sync_directory`], once for many files.
    pub fn publish(self) -> Result<((u64, u64), OwnedFd), TreeError> {
        let temporary = temporary_name(&self.name);
        renameat(
            &self.parent,
            temporary.as_str(),
            &self.parent,
            self.name.as_str(),
        )
        .map_err(failed("rename a file to", &self.path))?;
        let stat = fstat(&self.parent).map_err(failed("look at the directory of", &self.path))?;
        Ok(((stat.st_dev, stat.st_ino), self.parent))
    }

    /// Removes the staged file.
    pub fn discard(self) {
        let temporary = temporary_name(&self.name);
        let _ = unlinkat(&self.parent, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(directory: &OwnedFd) -> Result<(), TreeError> {
    fsync(directory).map_err(failed("sync", "a directory"))
}

fn temporary_name(name: &str) -> String {
    format!(".{name}.windlass")
}

fn remove_if_there(parent: &OwnedFd, name: &str, path: &str) -> Result<(), TreeError> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed("remove what an earlier attempt left of", path)(
            errno,
        )),
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    const OURS: Attributes = Attributes {
        mode: 0o640,
        uid: 0,
        gid: 0,
    };

    #[test]
    fn paths_are_absolute_and_normal() {
        for path in [
            "", "a", "/", "//a", "/a/", "/a//b", "/a/./b", "/a/../b", "/a\0b",
        ] {
            assert!(components(path).is_err(), "{path:?}");
        }
        assert!(components(&format!("/{}", "a".repeat(PATH_BYTES_MAX))).is_err());
        assert_eq!(components("/a/b.c").unwrap(), ["a", "b.c"]);
    }

    #[test]
    fn links_are_never_followed() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("shadow"), "secret").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        symlink(outside.path(), dir.path().join("etc")).unwrap();
        symlink(outside.path().join("shadow"), dir.path().join("file")).unwrap();

        let through = tree.write("/etc/shadow", OURS, b"x");
        assert!(matches!(through, Err(TreeError::NotADirectory { .. })));
        assert!(tree.find("/etc/shadow").is_err());
        assert!(tree.remove("/etc/shadow").is_err());
        assert!(matches!(tree.find("/file").unwrap(), Found::Link(_)));
        // A link in the file's own place is replaced, not written through.
        tree.write("/file", OURS, b"x").unwrap();
        assert!(matches!(
            tree.find("/file").unwrap(),
            Found::File { bytes: 1, .. }
        ));
        let kept = std::fs::read(outside.path().join("shadow")).unwrap();
        assert_eq!(kept, b"secret");
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        tree.write("/a/b", OURS, b"old").unwrap();
        let failing = tree.stage("/a/b", OURS, |_| Err(io::Error::other("no")));
        assert!(failing.is_err());
        assert_eq!(std::fs::read(dir.path().join("a/b")).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        assert_eq!(
            std::fs::metadata(dir.path().join("a/b")).unwrap().mode() & 0o7777,
            0o640
        );
    }

    #[test]
    fn links_switch_and_do_not_replace_files() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        tree.link("/x/current", "1.0").unwrap();
        tree.link("/x/current", "1.1").unwrap();
        assert!(matches!(tree.find("/x/current").unwrap(), Found::Link(to) if to == "1.1"));
        tree.write("/x/file", OURS, b"").unwrap();
        assert!(matches!(
            tree.link("/x/file", "1.0"),
            Err(TreeError::Occupied { .. })
        ));
        tree.remove("/x/current").unwrap();
        tree.remove("/x/current").unwrap();
        tree.remove("/nowhere/at/all").unwrap();
        assert!(matches!(tree.find("/x/current").unwrap(), Found::Nothing));
        assert!(
            tree.remove("/x").is_err(),
            "a directory with files in it stays"
        );
    }
}
