//! Removing old stemcells: each change of the agent makes another one of almost a gigabyte.
//!
//! # Invariants
//! * The newest stemcells of each Kubernetes version stay, and whatever `latest-<kubernetes>` leads to.
//! * One that is mounted by any process (a machine runs on it) stays. A *stopped* machine mounts
//!   nothing: its stemcell is safe only while it is among the newest, which is why nothing is pruned
//!   without being asked.
//!
//! # After a crash
//! A stemcell is renamed into the staging directory before it is removed; the next build empties that.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use windlass_common::stemcell::{TrustedKeys, installed};

use crate::files::{DirLock, FileError, Staging, at, remove_tree};

/// What became of the stemcells of an output directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pruned {
    /// Removed.
    pub removed: Vec<String>,
    /// Old, but mounted by a process.
    pub in_use: Vec<String>,
    /// Among the newest.
    pub kept: Vec<String>,
}

/// Removes all but the `keep` newest stemcells of each Kubernetes version. Directories that do not
/// verify are left alone: whose they are is not known.
pub fn prune(output: &Path, trusted: &TrustedKeys, keep: usize) -> Result<Pruned, FileError> {
    let _lock = DirLock::acquire(output, || {})?;
    let staging = Staging::open(output)?;
    let found = installed(output, trusted).map_err(at("read", output))?;
    let mut by_version: BTreeMap<(String, String), Vec<(String, PathBuf)>> = BTreeMap::new();
    for one in found {
        if let Ok(manifest) = one.manifest {
            let key = (manifest.name, manifest.kubernetes);
            by_version
                .entry(key)
                .or_default()
                .push((manifest.built_at, one.dir));
        }
    }
    let mut pruned = Pruned::default();
    for ((_, kubernetes), mut stemcells) in by_version {
        stemcells.sort();
        let latest = fs::canonicalize(output.join(format!("latest-{kubernetes}"))).ok();
        let old = stemcells.len().saturating_sub(keep);
        for (index, (_, dir)) in stemcells.into_iter().enumerate() {
            let name = dir
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let real = fs::canonicalize(&dir).map_err(at("resolve", &dir))?;
            if index >= old || latest.as_ref() == Some(&real) {
                pruned.kept.push(name);
            } else if is_mounted(&real)? {
                pruned.in_use.push(name);
            } else {
                let place = staging.place(&name)?;
                fs::rename(&dir, &place).map_err(at("rename", &dir))?;
                remove_tree(&place)?;
                pruned.removed.push(name);
            }
        }
    }
    Ok(pruned)
}

/// Whether any process has something of `dir` mounted, be it as a layer of an overlay.
fn is_mounted(dir: &Path) -> Result<bool, FileError> {
    let proc = Path::new("/proc");
    // The kernel writes blanks and backslashes in octal.
    let text = dir
        .display()
        .to_string()
        .replace('\\', "\\134")
        .replace(' ', "\\040");
    let needle = format!("{text}/");
    for item in fs::read_dir(proc).map_err(at("read", proc))? {
        let path = item.map_err(at("read", proc))?.path().join("mountinfo");
        // No mountinfo: not a process, or one that has ended.
        if fs::read_to_string(path).is_ok_and(|mounts| mounts.contains(&needle)) {
            return Ok(true);
        }
    }
    Ok(false)
}
