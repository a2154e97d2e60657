//! Components on disk: a directory with the programs and `component.json`, which says where they came
//! from and what their digests are.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use windlass_common::id::Digest;
use windlass_common::stemcell::Source;

use super::{Request, SourceError};
use crate::digest::digest_of;
use crate::files::{FileError, at, publish, remove_tree, write_atomic};

const RECORD: &str = "component.json";

/// A component in the cache.
#[derive(Debug, Clone)]
pub struct Cached {
    /// Where its programs are.
    pub dir: PathBuf,
    /// Its name.
    pub component: String,
    /// Its version.
    pub version: String,
    /// Where it came from.
    pub source: Source,
    /// Its programs.
    pub files: Vec<CachedFile>,
}

/// A program of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CachedFile {
    /// Its name.
    pub name: String,
    /// Of its content.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    source: Source,
    files: Vec<CachedFile>,
}

/// Opens an entry; the error is the reason to pass it over. A damaged entry is removed: whatever
/// it was, the next source makes a new one.
pub(super) fn open(path: &Path, request: &Request<'_>) -> Result<Cached, String> {
    let bytes = match fs::read(path.join(RECORD)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err("not in it".to_owned());
        }
        Err(error) => return Err(error.to_string()),
    };
    let damaged = |why: String| match remove_tree(path) {
        Ok(()) => format!("its entry was damaged and is removed: {why}"),
        Err(error) => format!("its entry is damaged ({why}) and cannot be removed: {error}"),
    };
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    for file in &record.files {
        match digest_of(&path.join(&file.name)) {
            Ok((digest, _)) if digest == file.digest => {}
            Ok((digest, _)) => {
                return Err(damaged(format!("{} has digest {digest}", file.name)));
            }
            Err(error) => return Err(damaged(error.to_string())),
        }
    }
    Ok(cached(path, request, record))
}

fn cached(dir: &Path, request: &Request<'_>, record: Record) -> Cached {
    Cached {
        dir: dir.to_owned(),
        component: request.component.to_owned(),
        version: request.entry.version.clone(),
        source: record.source,
        files: record.files,
    }
}

/// Describes programs that a source has put into `place`.
pub(super) fn describe(
    place: &Path,
    request: &Request<'_>,
    source: Source,
) -> Result<Cached, SourceError> {
    use std::os::unix::fs::PermissionsExt;
    let mut files = Vec::new();
    for name in request.programs {
        let path = place.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .map_err(at("set the mode of", &path))?;
        let (digest, bytes) = digest_of(&path)?;
        files.push(CachedFile {
            name: name.clone(),
            digest,
            bytes,
        });
    }
    Ok(cached(place, request, Record { source, files }))
}

/// Moves a described component to its final place.
pub(super) fn store(mut staged: Cached, path: &Path) -> Result<Cached, FileError> {
    let record = Record {
        source: staged.source.clone(),
        files: staged.files.clone(),
    };
    let bytes = serde_json::to_vec_pretty(&record).map_err(|error| FileError::Io {
        what: "serialise",
        path: staged.dir.join(RECORD),
        source: error.into(),
    })?;
    write_atomic(&staged.dir.join(RECORD), &bytes, 0o644)?;
    remove_tree(path)?;
    publish(&staged.dir, path)?;
    staged.dir = path.to_owned();
    Ok(staged)
}
