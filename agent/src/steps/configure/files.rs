//! Files of a `configure` step.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::panic::resume_unwind;

use windlass_common::id::{Digest, Hasher};
use windlass_common::limits::CHUNK_BYTES;
use windlass_common::step::{FileContent, FileSpec};

use super::diff::diff;
use super::{ConfigureError, Failure, Run};
use crate::host::Host;
use crate::host::tree::{Attributes, Found, Staged, TreeError, sync_directory};

/// Longest old content that a diff is made with, in bytes.
const DIFF_BYTES_MAX: u64 = 256 << 10;

/// Threads that wait for the disk at once.
const SYNCS_AT_ONCE: usize = 4;

/// What has to be done about one file.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// The content is other or missing; the old one, if it may be shown.
    Write { old: Option<String> },
    /// Only owner or mode are other.
    Attributes { old: Attributes },
}

/// Makes all files as desired.
pub(super) fn converge(host: &Host, run: &Run, files: &[FileSpec]) -> Result<(), Failure> {
    let mut staged = Vec::new();
    for spec in files {
        match observe(host, spec)? {
            None => {}
            Some(Change::Attributes { old }) => {
                host.tree().set_attributes(&spec.path, attributes(spec))?;
                let new = describe(attributes(spec));
                run.changed(format!("{}: {} -> {new}", spec.path, describe(old)));
            }
            Some(Change::Write { old }) => match stage(host, spec) {
                Ok(file) => staged.push((spec, old, file)),
                Err(failure) => {
                    staged.into_iter().for_each(|(_, _, file)| file.discard());
                    return Err(failure);
                }
            },
        }
    }
    sync_all(&staged.iter().map(|(_, _, file)| file).collect::<Vec<_>>())?;
    let mut directories = BTreeMap::new();
    let mut written = Vec::new();
    for (spec, old, file) in staged {
        let (identity, directory) = file.publish()?;
        directories.insert(identity, directory);
        for line in show(spec, old.as_deref()) {
            run.changed(line);
        }
        written.push(spec);
    }
    for directory in directories.values() {
        sync_directory(directory)?;
    }
    for spec in written {
        if observe(host, spec)?.is_some() {
            let what = spec.path.clone();
            return Err(ConfigureError::NotConverged { what }.into());
        }
    }
    Ok(())
}

/// Makes all contents durable, a few at a time: a journaling file system commits those together.
fn sync_all(files: &[&Staged]) -> Result<(), TreeError> {
    let share = files.len().div_ceil(SYNCS_AT_ONCE).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .chunks(share)
            .map(|files| scope.spawn(|| files.iter().try_for_each(|file| file.sync())))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            // A panic there is ours here.
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    })
}

fn attributes(spec: &FileSpec) -> Attributes {
    Attributes {
        mode: spec.mode,
        uid: spec.uid,
        gid: spec.gid,
    }
}

fn describe(attributes: Attributes) -> String {
    let Attributes { mode, uid, gid } = attributes;
    format!("mode {mode:04o} owner {uid}:{gid}")
}

/// Compares a file with what it should be; `None` if nothing has to be done.
fn observe(host: &Host, spec: &FileSpec) -> Result<Option<Change>, TreeError> {
    let (mut file, found, bytes) = match host.tree().find(&spec.path)? {
        // A link in the file's place is replaced by the file.
        Found::Nothing | Found::Link(_) => return Ok(Some(Change::Write { old: None })),
        Found::Directory | Found::Other => {
            return Err(TreeError::Occupied {
                path: spec.path.clone(),
                want: "file",
            });
        }
        Found::File {
            file,
            mode,
            uid,
            gid,
            bytes,
        } => (file, Attributes { mode, uid, gid }, bytes),
    };
    let read_error = |source| TreeError::Io {
        action: "read",
        path: spec.path.clone(),
        source,
    };
    let (wanted, showable) = match &spec.content {
        FileContent::Text(text) => (Digest::of(text.as_bytes()), bytes <= DIFF_BYTES_MAX),
        FileContent::Secret(secret) => (Digest::of(secret.expose()), false),
        FileContent::Artifact(digest) => (*digest, false),
    };
    let mut old = Vec::new();
    let digest = digest_of(&mut file, showable.then_some(&mut old)).map_err(read_error)?;
    if digest != wanted {
        let old = showable.then(|| String::from_utf8(old).ok()).flatten();
        return Ok(Some(Change::Write { old }));
    }
    Ok((found != attributes(spec)).then_some(Change::Attributes { old: found }))
}

/// Whether a file has other content than it should have.
pub(super) fn is_other(host: &Host, spec: &FileSpec) -> Result<bool, TreeError> {
    Ok(matches!(observe(host, spec)?, Some(Change::Write { .. })))
}

fn digest_of(file: &mut File, mut keep: Option<&mut Vec<u8>>) -> io::Result<Digest> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..read]);
        if let Some(keep) = keep.as_deref_mut() {
            keep.extend_from_slice(&buffer[..read]);
        }
    }
}

fn stage(host: &Host, spec: &FileSpec) -> Result<Staged, Failure> {
    let mut source = match &spec.content {
        FileContent::Text(_) | FileContent::Secret(_) => None,
        FileContent::Artifact(digest) => {
            let path = host.path(&Host::artifact_path(digest));
            let file = File::open(path).map_err(|_| ConfigureError::NoArtifact {
                path: spec.path.clone(),
                artifact: digest.to_string(),
            })?;
            Some(file)
        }
    };
    let staged = host.tree().stage(&spec.path, attributes(spec), |file| {
        match (&spec.content, &mut source) {
            (FileContent::Text(text), _) => file.write_all(text.as_bytes()),
            (FileContent::Secret(secret), _) => file.write_all(secret.expose()),
            (FileContent::Artifact(_), Some(source)) => io::copy(source, file).map(drop),
            (FileContent::Artifact(_), None) => Err(io::ErrorKind::NotFound.into()),
        }
    })?;
    Ok(staged)
}

/// What is reported of a written file.
fn show(spec: &FileSpec, old: Option<&str>) -> Vec<String> {
    let head = format!("{} ({})", spec.path, describe(attributes(spec)));
    match &spec.content {
        FileContent::Text(new) => {
            let mut lines = vec![head];
            lines.extend(diff(old.unwrap_or(""), new));
            lines
        }
        FileContent::Secret(secret) => {
            vec![format!(
                "{} (secret, {} bytes)",
                spec.path,
                secret.expose().len()
            )]
        }
        FileContent::Artifact(digest) => vec![format!("{head} from {digest}")],
    }
}
