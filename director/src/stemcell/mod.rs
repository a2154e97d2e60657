//! The catalogue: stemcells in a directory whose signature was verified with a trusted key.
//!
//! # Invariants
//! * Nothing of a stemcell is used before its signature and manifest are verified; one that was
//!   verified is verified again as soon as its manifest or signature changes on disk.
//!
//! # After a crash
//! Nothing is kept.
//!
//! # Not here
//! Building and signing (`windlass-stemcell`); what a manifest says (`windlass_common::stemcell`).

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Hasher};
use windlass_common::stemcell::{
    AGENT, Component, FILES, Installed, KeyError, MANIFEST, Manifest, SIGNATURE, TrustedKeys,
    VerifyDepth, VerifyError, installed, verify,
};

use crate::model::{Inside, Part, StemcellRecord};

/// Stemcells in a directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalogue {
    directory: PathBuf,
    trusted_keys: PathBuf,
    verified: Arc<Mutex<BTreeMap<String, Verified>>>,
}

/// A stemcell that was verified: its small files then, the keys that counted, what it is.
#[derive(Debug)]
struct Verified {
    stamp: Stamp,
    trusted: TrustedKeys,
    record: StemcellRecord,
}

/// Tells whether the small files of a stemcell are those that were verified: for each its inode, length
/// and time of change.
type Stamp = [(u64, u64, i64, i64); 2];

/// Why there is no usable stemcell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// No verified stemcell has this Kubernetes version.
    #[error(
        "no verified stemcell in {} has Kubernetes {wanted}; there are: {}", directory.display(),
        if found.is_empty() { "none" } else { found }
    )]
    Version {
        /// Where was looked.
        directory: PathBuf,
        /// The version wanted.
        wanted: String,
        /// The versions there are, with what is wrong with unusable stemcells.
        found: String,
    },
    /// No verified stemcell has an agent.
    #[error("no verified stemcell in {} has an agent{}", directory.display(),
        if faults.is_empty() { String::new() } else { format!("; there are: {faults}") }
    )]
    NoAgent {
        /// Where was looked.
        directory: PathBuf,
        /// What is wrong with unusable stemcells.
        faults: String,
    },
    /// The stemcell is not usable.
    #[error("stemcell {version} cannot be used")]
    Unusable {
        /// The stemcell.
        version: String,
        /// Why.
        #[source]
        source: VerifyError,
    },
    /// It is not known whose signature counts.
    #[error("the trusted keys of stemcells cannot be read")]
    Keys(#[from] KeyError),
    /// The directory cannot be read.
    #[error("cannot read the stemcell directory {}", directory.display())]
    Read {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CatalogueError {
    /// Who acts: an operator builds a stemcell or puts it in its place.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

impl Catalogue {
    /// Stemcells under `directory` signed by a key in the file `trusted_keys`, which is read at each use:
    /// the first stemcell may be built while the director runs, and a key may be taken out.
    pub fn new(directory: PathBuf, trusted_keys: PathBuf) -> Self {
        Self {
            directory,
            trusted_keys,
            verified: Arc::default(),
        }
    }

    /// The keys whose signatures count now; none while there is no file of them.
    pub fn trusted(&self) -> Result<TrustedKeys, KeyError> {
        match TrustedKeys::load(&self.trusted_keys) {
            Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(TrustedKeys::default())
            }
            read => read,
        }
    }

    /// All usable stemcells, and what is wrong with the others, by directory.
    pub fn list(&self) -> Result<(Vec<StemcellRecord>, Vec<String>), CatalogueError> {
        let trusted = self.trusted()?;
        let all = installed(&self.directory, &trusted).map_err(|source| CatalogueError::Read {
            directory: self.directory.clone(),
            source,
        })?;
        let mut usable = Vec::new();
        let mut faults = Vec::new();
        for Installed { dir, manifest } in all {
            match manifest {
                Ok(manifest) => usable.push(record(&dir, &manifest)),
                Err(error) => faults.push(error.to_string()),
            }
        }
        Ok((usable, faults))
    }

    /// The stemcell of this name and version.
    pub fn get(&self, version: &str) -> Result<StemcellRecord, CatalogueError> {
        let dir = self.directory.join(version);
        let trusted = self.trusted()?;
        // Taken before verifying: what changes meanwhile is verified again the next time.
        let stamp = stamp(&dir);
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = verified.get(version)
            && stamp.as_ref().is_ok_and(|stamp| *stamp == known.stamp)
            && trusted == known.trusted
        {
            return Ok(known.record.clone());
        }
        verified.remove(version);
        let manifest = verify(&dir, &trusted, VerifyDepth::Manifest).map_err(|source| {
            CatalogueError::Unusable {
                version: version.to_owned(),
                source,
            }
        })?;
        let record = record(&dir, &manifest);
        if let Ok(stamp) = stamp {
            let known = Verified {
                stamp,
                trusted,
                record: record.clone(),
            };
            verified.insert(version.to_owned(), known);
        }
        Ok(record)
    }

    /// The newest stemcell with an agent.
    pub fn newest_agent(&self) -> Result<StemcellRecord, CatalogueError> {
        let (usable, faults) = self.list()?;
        let newest = usable
            .into_iter()
            .filter(|stemcell| stemcell.agent.is_some())
            .max_by(|a, b| (&a.built_at, &a.version).cmp(&(&b.built_at, &b.version)));
        newest.ok_or_else(|| CatalogueError::NoAgent {
            directory: self.directory.clone(),
            faults: faults.join(", "),
        })
    }

    /// The newest stemcell with this Kubernetes version.
    pub fn find(&self, kubernetes_version: &str) -> Result<StemcellRecord, CatalogueError> {
        let (usable, faults) = self.list()?;
        let found: Vec<String> = usable
            .iter()
            .map(|s| format!("{} ({})", s.kubernetes_version, s.version))
            .chain(faults)
            .collect();
        usable
            .into_iter()
            .filter(|s| s.kubernetes_version == kubernetes_version)
            .max_by(|a, b| (&a.built_at, &a.version).cmp(&(&b.built_at, &b.version)))
            .ok_or_else(|| CatalogueError::Version {
                directory: self.directory.clone(),
                wanted: kubernetes_version.to_owned(),
                found: found.join(", "),
            })
    }
}

fn stamp(dir: &Path) -> io::Result<Stamp> {
    let of = |name: &str| {
        let meta = std::fs::metadata(dir.join(name))?;
        Ok::<_, io::Error>((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
    };
    Ok([of(MANIFEST)?, of(SIGNATURE)?])
}

fn record(dir: &Path, manifest: &Manifest) -> StemcellRecord {
    let components = manifest
        .components
        .iter()
        .map(|c| (c.name.clone(), c.version.clone()))
        .collect();
    let images: BTreeMap<String, String> = manifest
        .images
        .iter()
        .filter_map(|image| {
            let repository = image.name.rsplit('/').next()?.split([':', '@']).next()?;
            Some((repository.to_owned(), image.name.clone()))
        })
        .collect();
    StemcellRecord {
        version: manifest.id(),
        kubernetes_version: manifest.kubernetes.clone(),
        built_at: manifest.built_at.clone(),
        components,
        images,
        digest: manifest.inputs.digest,
        agent: manifest.inputs.agent,
        path: dir.to_owned(),
        inside: inside(dir, manifest),
    }
}

/// Where components are, relative to the root file system.
const COMPONENTS: &str = "opt/windlass/components/";
/// A stemcell's own name, relative to the root file system.
const NAME: &str = "etc/windlass/stemcell.json";

fn inside(dir: &Path, manifest: &Manifest) -> Inside {
    let in_machine = |component: &&Component| {
        let own = format!("{COMPONENTS}{}/{}/", component.name, component.version);
        let mut files = component.files.iter();
        !component.files.is_empty() && files.all(|file| file.path.starts_with(&own))
    };
    let parts = manifest.components.iter().filter(in_machine).map(|c| {
        let part = Part {
            version: c.version.clone(),
            files: c.files.clone(),
        };
        (c.name.clone(), part)
    });
    let images = manifest.images.iter();
    Inside {
        line: manifest.name.clone(),
        architecture: manifest.architecture.clone(),
        base: base(dir, manifest)
            .inspect_err(
                |error| tracing::warn!(stemcell = %dir.display(), %error, "what is inside it is not known"),
            )
            .ok(),
        images: images.map(|i| (i.name.clone(), i.digest)).collect(),
        parts: parts.collect(),
    }
}

/// Digest of what is neither a component, nor the agent, nor in a directory that each machine has a copy of. Those
/// hold images, which are compared by themselves, in databases that no two builds make alike.
fn base(dir: &Path, manifest: &Manifest) -> Result<Digest, String> {
    let listing = std::fs::read(dir.join(FILES)).map_err(|error| error.to_string())?;
    if Digest::of(&listing) != manifest.rootfs.files.digest {
        return Err(format!("{FILES} is not the one of its manifest"));
    }
    let listing = String::from_utf8(listing).map_err(|error| error.to_string())?;
    let seeds: Vec<String> = manifest
        .seeds
        .iter()
        .map(|seed| format!("{}/", seed.path.trim_start_matches('/')))
        .collect();
    let mut hasher = Hasher::default();
    for line in listing.lines() {
        // Kind, mode, user, group, size, digest, and then the path.
        let path = line.splitn(7, ' ').nth(6).unwrap_or(line);
        let own = path.starts_with(COMPONENTS)
            || path == AGENT
            || path == NAME
            || seeds.iter().any(|seed| path.starts_with(seed));
        if !own {
            hasher.update(line.as_bytes());
            hasher.update(b"\n");
        }
    }
    Ok(hasher.finish())
}
