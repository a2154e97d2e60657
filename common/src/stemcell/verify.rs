//! Deciding whether a stemcell may be used.
//!
//! The cheap check ([`VerifyDepth::Manifest`]) reads the small files and takes milliseconds: the
//! signature, the digests of the listing and the bill of materials, and presence and size of every
//! component file. The full one also reads the root file system and compares it with the listing.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::key::{KeyError, PublicKey, TrustedKeys, signed_message};
use super::manifest::{FileSet, Manifest};
use super::tree::{self, TreeError, scan};
use super::{FILES, FILES_BYTES_MAX, MANIFEST, MANIFEST_BYTES_MAX, ROOTFS, SBOM, SBOM_BYTES_MAX};
use crate::error::ErrorClass;
use crate::id::Digest;

/// Largest signature file, in bytes; a real one has about 150.
const SIGNATURE_BYTES_MAX: u64 = 4 << 10;
/// Most entries of a stemcell root that are looked at.
const INSTALLED_MAX: usize = 10_000;

/// How much of a stemcell is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyDepth {
    /// Signature, manifest, listing, presence and size of component files: milliseconds.
    Manifest,
    /// Every byte of the root file system as well: seconds.
    Full,
}

/// Why a stemcell may not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A part is missing or unreadable.
    #[error("cannot read {}; is {} a complete stemcell?", path.display(), dir.display())]
    Read {
        /// The stemcell.
        dir: PathBuf,
        /// The part.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A part is larger than it may be.
    #[error("{} is larger than {max_bytes} bytes", path.display())]
    TooLarge {
        /// The part.
        path: PathBuf,
        /// The limit.
        max_bytes: u64,
    },
    /// `manifest.sig` is not a signature file.
    #[error("{} is not `<public key> <base64 signature>`", path.display())]
    SignatureMalformed {
        /// The signature file.
        path: PathBuf,
        /// What is wrong with the key in it, if that is it.
        #[source]
        source: Option<KeyError>,
    },
    /// The signer is not trusted.
    #[error(
        "{} is signed by {key}, which is not trusted; add that line to the trusted keys if you know \
         whose it is",
        dir.display()
    )]
    Untrusted {
        /// The stemcell.
        dir: PathBuf,
        /// Who signed.
        key: PublicKey,
    },
    /// The manifest is not what was signed.
    #[error("the manifest of {} does not match its signature by {key}; build it again", dir.display())]
    SignatureWrong {
        /// The stemcell.
        dir: PathBuf,
        /// Who is said to have signed.
        key: PublicKey,
    },
    /// The manifest is signed but not understood.
    #[error("the manifest of {} is not valid: {what}", dir.display())]
    Manifest {
        /// The stemcell.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The directory is not named after the stemcell.
    #[error("{} holds stemcell {id}; a stemcell's directory is named after it", dir.display())]
    Name {
        /// The stemcell.
        dir: PathBuf,
        /// What it should be called.
        id: String,
    },
    /// A file is not the one in the manifest.
    #[error("{} has digest {got}, the manifest says {want}; build the stemcell again", path.display())]
    DigestMismatch {
        /// The file.
        path: PathBuf,
        /// From the manifest.
        want: Digest,
        /// What was found.
        got: Digest,
    },
    /// A component's file has another size.
    #[error("{} has {got} bytes, the manifest says {want}; build the stemcell again", path.display())]
    SizeMismatch {
        /// The file.
        path: PathBuf,
        /// From the manifest, in bytes.
        want: u64,
        /// What was found, in bytes.
        got: u64,
    },
    /// The root file system is not the one that was listed.
    #[error("{count} entries of {} differ from its listing, the first is {first}; build the stemcell again", dir.display())]
    Tree {
        /// The stemcell.
        dir: PathBuf,
        /// The first entry that was changed, added or removed.
        first: String,
        /// How many there are.
        count: usize,
    },
    /// The root file system cannot be read.
    #[error("cannot read the root file system of {}", dir.display())]
    Scan {
        /// The stemcell.
        dir: PathBuf,
        /// The entry.
        #[source]
        source: TreeError,
    },
}

impl VerifyError {
    /// Who has to act: a stemcell is never fixed by trying again.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

/// Verifies the stemcell in `dir` and returns its manifest, of which nothing may be used otherwise.
pub fn verify(
    dir: &Path,
    trusted: &TrustedKeys,
    depth: VerifyDepth,
) -> Result<Manifest, VerifyError> {
    let bytes = read(dir, MANIFEST, MANIFEST_BYTES_MAX)?;
    check_signature(dir, trusted, &bytes)?;
    let manifest = Manifest::parse(&bytes).map_err(|what| VerifyError::Manifest {
        dir: dir.to_owned(),
        what,
    })?;
    let real = fs::canonicalize(dir).map_err(|source| VerifyError::Read {
        dir: dir.to_owned(),
        path: dir.to_owned(),
        source,
    })?;
    if real
        .file_name()
        .is_none_or(|name| name != manifest.id().as_str())
    {
        return Err(VerifyError::Name {
            dir: real,
            id: manifest.id(),
        });
    }
    check_file(dir, SBOM, SBOM_BYTES_MAX, &manifest.sbom)?;
    let listing = check_file(dir, FILES, FILES_BYTES_MAX, &manifest.rootfs.files)?;
    check_components(dir, &manifest)?;
    if depth == VerifyDepth::Full {
        check_tree(dir, &listing)?;
    }
    Ok(manifest)
}

fn read(dir: &Path, name: &str, max_bytes: u64) -> Result<Vec<u8>, VerifyError> {
    let path = dir.join(name);
    let fail = |source| VerifyError::Read {
        dir: dir.to_owned(),
        path: path.clone(),
        source,
    };
    let mut bytes = Vec::new();
    let file = fs::File::open(&path).map_err(fail)?;
    file.take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if bytes.len() as u64 > max_bytes {
        return Err(VerifyError::TooLarge { path, max_bytes });
    }
    Ok(bytes)
}

fn check_signature(dir: &Path, trusted: &TrustedKeys, manifest: &[u8]) -> Result<(), VerifyError> {
    let malformed = |source| VerifyError::SignatureMalformed {
        path: dir.join(super::SIGNATURE),
        source,
    };
    let raw = read(dir, super::SIGNATURE, SIGNATURE_BYTES_MAX)?;
    let text = String::from_utf8(raw).map_err(|_| malformed(None))?;
    let mut words = text.split_whitespace();
    let (Some(key), Some(signature), None) = (words.next(), words.next(), words.next()) else {
        return Err(malformed(None));
    };
    let key: PublicKey = key.parse().map_err(|error| malformed(Some(error)))?;
    let signature = BASE64.decode(signature).map_err(|_| malformed(None))?;
    if !trusted.contains(&key) {
        return Err(VerifyError::Untrusted {
            dir: dir.to_owned(),
            key,
        });
    }
    match key.verifies(&signed_message(manifest), &signature) {
        true => Ok(()),
        false => Err(VerifyError::SignatureWrong {
            dir: dir.to_owned(),
            key,
        }),
    }
}

fn check_file(dir: &Path, name: &str, max: u64, want: &FileSet) -> Result<Vec<u8>, VerifyError> {
    let bytes = read(dir, name, max)?;
    let got = Digest::of(&bytes);
    if got != want.digest {
        return Err(VerifyError::DigestMismatch {
            path: dir.join(name),
            want: want.digest,
            got,
        });
    }
    Ok(bytes)
}

fn check_components(dir: &Path, manifest: &Manifest) -> Result<(), VerifyError> {
    for file in manifest
        .components
        .iter()
        .flat_map(|component| &component.files)
    {
        let path = dir.join(ROOTFS).join(&file.path);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() && metadata.len() == file.bytes => {}
            Ok(metadata) => {
                let (want, got) = (file.bytes, metadata.len());
                return Err(VerifyError::SizeMismatch { path, want, got });
            }
            Err(source) => {
                return Err(VerifyError::Read {
                    dir: dir.to_owned(),
                    path,
                    source,
                });
            }
        }
    }
    Ok(())
}

fn check_tree(dir: &Path, listing: &[u8]) -> Result<(), VerifyError> {
    let tree = scan(&dir.join(ROOTFS)).map_err(|source| VerifyError::Scan {
        dir: dir.to_owned(),
        source,
    })?;
    if tree.listing.as_bytes() == listing {
        return Ok(());
    }
    let listing = String::from_utf8_lossy(listing);
    let want: std::collections::BTreeSet<&str> = listing.lines().collect();
    let got: std::collections::BTreeSet<&str> = tree.listing.lines().collect();
    let paths: std::collections::BTreeSet<&str> = want
        .symmetric_difference(&got)
        .map(|line| tree::path_of(line))
        .collect();
    let first = paths
        .first()
        .copied()
        .unwrap_or("the order of lines")
        .to_owned();
    Err(VerifyError::Tree {
        dir: dir.to_owned(),
        first,
        count: paths.len(),
    })
}

/// A stemcell found under a root, and whether it may be used.
#[derive(Debug)]
pub struct Installed {
    /// Its directory.
    pub dir: PathBuf,
    /// Its manifest, or why it may not be used.
    pub manifest: Result<Manifest, VerifyError>,
}

/// All stemcells under `root`, verified to the depth of their manifests, sorted by directory.
/// A missing root has none.
pub fn installed(root: &Path, trusted: &TrustedKeys) -> io::Result<Vec<Installed>> {
    let items = match fs::read_dir(root) {
        Ok(items) => items,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut dirs = Vec::new();
    for item in items.take(INSTALLED_MAX) {
        let item = item?;
        if item.file_type()?.is_dir() && item.path().join(MANIFEST).exists() {
            dirs.push(item.path());
        }
    }
    dirs.sort();
    let check = |dir: PathBuf| {
        let manifest = verify(&dir, trusted, VerifyDepth::Manifest);
        Installed { dir, manifest }
    };
    Ok(dirs.into_iter().map(check).collect())
}
