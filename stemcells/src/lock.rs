//! The lock file and the definitions of component families.
//!
//! A *family* is one project's release (`kubernetes`, `etcd`); it has *components* that a machine
//! switches one by one (`kubelet`), each with *programs*. How a family is got is in
//! `components/<family>/family.toml`; which versions there are, and every digest that has been seen,
//! is in `components.lock.toml`.
//!
//! # Invariant
//! A digest enters the lock only from bytes that were there and passed their publisher's checksum or
//! were built from pinned sources; it never changes afterwards.
//!
//! # After a crash
//! The lock is replaced atomically; a pin that was not written is written by the next build.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use windlass_common::id::{Digest, Hasher};

use crate::files::{FileError, write_atomic};
use crate::home::{Home, HomeError, LOCK, read_bounded, read_toml};

const LOCK_FORMAT: u32 = 1;
const LOCK_HEADER: &str = "\
# The components there are, and every digest that has been seen of them. `windlass-stemcell build`
# adds a digest when it first sees one and refuses others from then on. `released` is when the
# publisher made the version; it is the build date in what is built here.
";

/// The lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    format: u32,
    component: Vec<Entry>,
}

/// One version of a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The family.
    pub family: String,
    /// Its version.
    pub version: String,
    /// When its publisher made it, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<String>,
    /// Seen digests: origin (`release-<arch>`, `go1.26.8-<arch>`) → program → digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, BTreeMap<String, Digest>>,
}

/// What [`Lock::pin`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// The digest is the one seen before.
    Known,
    /// It was not seen before and is in the lock now.
    New,
    /// Another one was seen before.
    Contradicts(Digest),
}

impl Lock {
    /// Reads the lock of `home`.
    pub fn load(home: &Home) -> Result<Lock, HomeError> {
        let path = home.path(LOCK);
        let (lock, _): (Lock, _) = read_toml(&path)?;
        if lock.format != LOCK_FORMAT {
            let what = format!("format {} is not {LOCK_FORMAT}", lock.format);
            return Err(HomeError::Parse { path, what });
        }
        Ok(lock)
    }

    /// Writes it back.
    pub fn save(&self, home: &Home) -> Result<(), FileError> {
        // Serialising plain strings and maps cannot fail; if it did, the old file would stay.
        let body = toml::to_string(self).map_err(|error| FileError::Io {
            what: "serialise",
            path: home.path(LOCK),
            source: std::io::Error::other(error),
        })?;
        write_atomic(
            &home.path(LOCK),
            format!("{LOCK_HEADER}{body}").as_bytes(),
            0o644,
        )
    }

    /// The entry of a version.
    pub fn entry(&self, family: &str, version: &str) -> Option<&Entry> {
        self.component
            .iter()
            .find(|entry| entry.family == family && entry.version == version)
    }

    /// Versions of a family, as the lock has them.
    pub fn versions(&self, family: &str) -> Vec<&str> {
        let of_family = |entry: &&Entry| entry.family == family;
        self.component
            .iter()
            .filter(of_family)
            .map(|entry| entry.version.as_str())
            .collect()
    }

    /// Compares a digest with what was seen before; remembers it if nothing was.
    pub fn pin(
        &mut self,
        family: &str,
        version: &str,
        origin: &str,
        program: &str,
        digest: Digest,
    ) -> Pin {
        let entry = self
            .component
            .iter_mut()
            .find(|e| e.family == family && e.version == version);
        let Some(entry) = entry else { return Pin::New }; // recipes refer to entries only
        let seen = entry.digests.entry(origin.to_owned()).or_default();
        match seen.get(program) {
            Some(known) if *known == digest => Pin::Known,
            Some(known) => Pin::Contradicts(*known),
            None => {
                seen.insert(program.to_owned(), digest);
                Pin::New
            }
        }
    }
}

/// How a family is got.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// Licence as an SPDX expression.
    pub license: String,
    /// Component → its programs.
    pub components: BTreeMap<String, Vec<String>>,
    /// The official download.
    #[serde(default)]
    pub release: Option<Release>,
    /// The build from its Go module.
    #[serde(default)]
    pub go: Option<Go>,
    /// The Debian package.
    #[serde(default)]
    pub debian: Option<DebianPackage>,
    /// A source file of this project.
    #[serde(default)]
    pub own: Option<Own>,
    /// The file's bytes.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// An official download. Texts may contain `{version}`, `{arch}`, `{binary}`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The file.
    pub url: String,
    /// The publisher's checksum of it: a bare SHA-256 or lines of `sha256sum`.
    pub checksum: String,
    /// If the file is an archive: the program's path in it.
    #[serde(default)]
    pub member: Option<String>,
    /// The publisher's signature, checked where `cosign` is installed.
    #[serde(default)]
    pub cosign: Option<Cosign>,
}

/// A keyless Sigstore signature.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cosign {
    /// URL of the signature.
    pub signature: String,
    /// URL of the certificate.
    pub certificate: String,
    /// Who must have signed.
    pub identity: String,
    /// Who vouches for that.
    pub issuer: String,
}

/// A build from a Go module by the wrapper in `components/<family>/<version>/`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Go {
    /// Path of the module.
    pub module: String,
    /// Program → package.
    pub packages: BTreeMap<String, String>,
    /// Whether C is needed; such builds depend on the host's C library and are not pinned.
    #[serde(default)]
    pub cgo: bool,
    /// Build tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Linker flags; may contain `{version}`, `{major}`, `{minor}`, `{released}`.
    #[serde(default)]
    pub ldflags: Vec<String>,
}

/// A Debian package, installed in the root file system through the recipe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianPackage {
    /// Its name.
    pub package: String,
    /// Program → path of the file.
    pub files: BTreeMap<String, String>,
}

/// A C file of this project, compiled statically.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Own {
    /// Relative to the stemcells directory.
    pub source: PathBuf,
}

impl Family {
    /// Reads a family's definition and checks that it is complete.
    pub fn load(home: &Home, name: &str) -> Result<Family, HomeError> {
        let path = home.family(name).join("family.toml");
        let (mut family, bytes): (Family, _) = read_toml(&path)?;
        family.bytes = bytes;
        let mut faults = Vec::new();
        for program in family.components.values().flatten() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            if program.is_empty() || !program.bytes().all(plain) {
                faults.push(format!("{program:?} is not a program's name"));
            }
            if family
                .go
                .as_ref()
                .is_some_and(|go| !go.packages.contains_key(program))
            {
                faults.push(format!("go.packages lacks {program:?}"));
            }
            if family
                .debian
                .as_ref()
                .is_some_and(|deb| !deb.files.contains_key(program))
            {
                faults.push(format!("debian.files lacks {program:?}"));
            }
        }
        match faults.is_empty() {
            true => Ok(family),
            false => Err(HomeError::Faults { path, faults }),
        }
    }

    /// Digest of everything that decides how a version is built: the definition, go.mod, go.sum and
    /// own sources. Digests of the results are left out: they change when something is pinned.
    pub fn definition(&self, home: &Home, entry: &Entry) -> Result<Digest, HomeError> {
        let mut hasher = Hasher::default();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        add(entry.family.as_bytes());
        add(entry.version.as_bytes());
        add(entry.released.as_deref().unwrap_or_default().as_bytes());
        add(&self.bytes);
        if self.go.is_some() {
            let wrapper = home.family(&entry.family).join(&entry.version);
            add(&read_bounded(&wrapper.join("go.mod"))?);
            add(&read_bounded(&wrapper.join("go.sum"))?);
        }
        if let Some(own) = &self.own {
            add(&read_bounded(&home.path(&own.source))?);
        }
        Ok(hasher.finish())
    }
}

/// Fills in `{version}` and the like.
pub fn expand(text: &str, entry: &Entry, arch: &str, binary: &str) -> String {
    let mut parts = entry.version.split('.');
    let (major, minor) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    text.replace("{version}", &entry.version)
        .replace("{arch}", arch)
        .replace("{binary}", binary)
        .replace("{major}", major)
        .replace("{minor}", minor)
        .replace("{released}", entry.released.as_deref().unwrap_or("unknown"))
}
