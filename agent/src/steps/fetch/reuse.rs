//! Files that the machine has already: an artifact that is a file of a component need not be fetched.
//!
//! Cheap: only regular files of exactly the artifact's length are read. A copy, not a link, so that the
//! two never change together; it is verified like a download.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use windlass_common::id::{Digest, Hasher};
use windlass_common::limits::CHUNK_BYTES;

use super::Store;
use crate::host::Host;

/// Where components are, by name and version.
const COMPONENTS_DIR: &str = "/opt/windlass/components";
/// Entries that are looked at; a machine with two versions of each component has a tenth of it.
const ENTRIES_MAX: usize = 4096;
/// Directories beneath one another: name, version, and two inside.
const DEPTH_MAX: usize = 4;

/// Copies the artifact from a component, if one has it and no download has begun. Whatever fails here,
/// the artifact is fetched.
pub(super) fn copy(host: &Host, store: &Store) {
    let begun = fs::metadata(&store.partial).is_ok_and(|meta| meta.len() > 0);
    if begun || store.bytes == 0 {
        return;
    }
    let mut candidates = Vec::new();
    let mut budget = ENTRIES_MAX;
    let components = host.path(COMPONENTS_DIR);
    of_length(
        &components,
        store.bytes,
        DEPTH_MAX,
        &mut budget,
        &mut candidates,
    );
    for path in candidates {
        if digest(&path).is_ok_and(|digest| digest == store.digest) {
            match place(&path, &store.partial) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "the machine has this artifact already")
                }
                Err(error) => {
                    tracing::info!(path = %path.display(), %error, "cannot copy what is here")
                }
            }
            return;
        }
    }
}

fn of_length(
    directory: &Path,
    bytes: u64,
    depth: usize,
    budget: &mut usize,
    found: &mut Vec<PathBuf>,
) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let Some(left) = budget.checked_sub(1) else {
            return;
        };
        *budget = left;
        // Of the entry itself: links are not followed.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() && depth > 1 {
            of_length(&entry.path(), bytes, depth - 1, budget, found);
        } else if meta.is_file() && meta.len() == bytes {
            found.push(entry.path());
        }
    }
}

fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..read]);
    }
}

fn place(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::copy(from, to).map(|_| ()).inspect_err(|_| {
        // Half a copy is no download to go on with.
        let _ = fs::remove_file(to);
    })
}
