//! A directory tree as text: one sorted line for each entry, which makes it comparable and signable.
//!
//! A line has the kind (`d` directory, `f` file, `l` symbolic link, `c`/`b` device, `p` FIFO, `s`
//! socket), permissions in octal, user, group, size, digest of the content (or `-`), the path, and
//! for links ` -> ` and the target; bytes outside of printable ASCII, `\` and blanks are escaped as
//! `\xNN`. Times are left out: a copy has the same listing. Extended attributes are left out too.
//!
//! Symbolic links are never followed; the tree is read by several threads.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::ErrorClass;
use crate::id::{Digest, Hasher};

/// More threads than this gain nothing: hashing is bound by memory or disk from there on.
const THREADS_MAX: usize = 8;
/// Read at once; large enough that the system call does not count.
const CHUNK_BYTES: usize = 256 << 10;

/// A tree's listing and totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// One line for each entry, sorted by path.
    pub listing: String,
    /// How many entries there are.
    pub entries: u64,
    /// Size of all regular files.
    pub bytes: u64,
}

/// Why a tree cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct TreeError {
    /// The entry.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl TreeError {
    /// Who has to act.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

struct Entry {
    relative: PathBuf,
    metadata: fs::Metadata,
    link: Option<PathBuf>,
}

/// Lists everything below `root`, with the digest of every file.
pub fn scan(root: &Path) -> Result<Tree, TreeError> {
    let mut entries = Vec::new();
    walk(root, Path::new(""), &mut entries)?;
    entries.sort_by(|a, b| a.relative.as_os_str().cmp(b.relative.as_os_str()));
    let digests = hash_files(root, &entries)?;
    let mut listing = String::with_capacity(entries.len() * 160);
    let mut bytes = 0;
    for (entry, digest) in entries.iter().zip(&digests) {
        if entry.metadata.is_file() {
            bytes += entry.metadata.len();
        }
        push_line(&mut listing, entry, *digest);
    }
    Ok(Tree {
        listing,
        entries: entries.len() as u64,
        bytes,
    })
}

fn walk(root: &Path, relative: &Path, entries: &mut Vec<Entry>) -> Result<(), TreeError> {
    let directory = root.join(relative);
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| TreeError { path, source }
    };
    for item in fs::read_dir(&directory).map_err(fail(&directory))? {
        let path = item.map_err(fail(&directory))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(fail(&path))?;
        let link = match metadata.is_symlink() {
            true => Some(fs::read_link(&path).map_err(fail(&path))?),
            false => None,
        };
        let relative = match path.file_name() {
            Some(name) => relative.join(name),
            None => continue, // read_dir never yields `.` or `..`
        };
        let descend = metadata.is_dir().then(|| relative.clone());
        entries.push(Entry {
            relative,
            metadata,
            link,
        });
        if let Some(directory) = descend {
            walk(root, &directory, entries)?;
        }
    }
    Ok(())
}

/// Digests of the regular files among `entries`, at their index.
fn hash_files(root: &Path, entries: &[Entry]) -> Result<Vec<Option<Digest>>, TreeError> {
    let threads = thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            match entries.get(index) {
                None => return Ok(done),
                Some(entry) if entry.metadata.is_file() => {
                    let path = root.join(&entry.relative);
                    let digest = hash_file(&path, &mut buffer);
                    done.push((index, digest.map_err(|source| TreeError { path, source })?));
                }
                Some(_) => {}
            }
        }
    };
    let mut digests = vec![None; entries.len()];
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(result) => {
                    for (index, digest) in result? {
                        digests[index] = Some(digest);
                    }
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(digests)
    })
}

/// The digest of a file's content.
fn hash_file(path: &Path, buffer: &mut [u8]) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    loop {
        match file.read(buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn push_line(listing: &mut String, entry: &Entry, digest: Option<Digest>) {
    let metadata = &entry.metadata;
    let kind = metadata.file_type();
    let (letter, size) = match () {
        () if kind.is_dir() => ('d', 0),
        () if kind.is_symlink() => ('l', 0),
        () if kind.is_file() => ('f', metadata.len()),
        () if kind.is_char_device() => ('c', metadata.rdev()),
        () if kind.is_block_device() => ('b', metadata.rdev()),
        () if kind.is_fifo() => ('p', 0),
        () => ('s', 0),
    };
    let mode = if kind.is_symlink() {
        0
    } else {
        metadata.mode() & 0o7777
    };
    let (user, group) = (metadata.uid(), metadata.gid());
    let _ = write!(listing, "{letter} {mode:04o} {user} {group} {size} "); // String never fails
    match digest {
        Some(digest) => listing.push_str(&digest.hex()),
        None => listing.push('-'),
    }
    listing.push(' ');
    push_escaped(listing, entry.relative.as_os_str().as_bytes());
    if let Some(target) = &entry.link {
        listing.push_str(" -> ");
        push_escaped(listing, target.as_os_str().as_bytes());
    }
    listing.push('\n');
}

fn push_escaped(listing: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_graphic() && byte != b'\\' {
            listing.push(char::from(byte));
        } else {
            let _ = write!(listing, "\\x{byte:02x}");
        }
    }
}

/// The path in a line of a listing, for messages.
pub(super) fn path_of(line: &str) -> &str {
    line.splitn(7, ' ').nth(6).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_listing_shows_every_kind_of_change() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/odd name\n"), b"x").unwrap();
        symlink("/etc/passwd", root.join("link")).unwrap();
        fs::set_permissions(root.join("sub"), fs::Permissions::from_mode(0o750)).unwrap();
        let first = scan(root).unwrap();
        let (user, group) = (nix_id(root).0, nix_id(root).1);
        let want = format!(
            "l 0000 {user} {group} 0 - link -> /etc/passwd\nd 0750 {user} {group} 0 - sub\n\
             f 0644 {user} {group} 1 {} sub/odd\\x20name\\x0a\n",
            Digest::of(b"x").hex()
        );
        fs::set_permissions(
            root.join("sub/odd name\n"),
            fs::Permissions::from_mode(0o644),
        )
        .unwrap();
        assert_eq!(scan(root).unwrap().listing, want);
        assert_eq!((first.entries, first.bytes), (3, 1));

        fs::write(root.join("sub/odd name\n"), b"y").unwrap();
        assert_ne!(scan(root).unwrap().listing, want, "content");
        fs::write(root.join("sub/odd name\n"), b"x").unwrap();
        fs::set_permissions(
            root.join("sub/odd name\n"),
            fs::Permissions::from_mode(0o4755),
        )
        .unwrap();
        assert_ne!(scan(root).unwrap().listing, want, "permissions");
    }

    fn nix_id(path: &Path) -> (u32, u32) {
        let metadata = fs::metadata(path).unwrap();
        (metadata.uid(), metadata.gid())
    }

    #[test]
    fn a_line_gives_back_its_path() {
        assert_eq!(path_of("f 0644 0 0 1 abc usr/bin/x"), "usr/bin/x");
        assert_eq!(path_of("l 0000 0 0 0 - a -> b"), "a -> b");
    }
}
