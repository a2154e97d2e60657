//! The manifest: what is in a stemcell, where it came from and what it was built from.
//!
//! Paths are relative to the root file system, without `..` and without a leading `/`, except for
//! [`Seed::path`], which is a path as the machine sees it. [`Manifest::parse`] refuses others.

use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// The only format of manifests there is so far.
pub const MANIFEST_FORMAT: u32 = 1;

/// Everything there is to know about a stemcell without reading its root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// The stemcell's line, for example `debian12`: the recipe's name.
    pub name: String,
    /// `<kubernetes version>-<start of the digest of the inputs>`.
    pub version: String,
    /// Version of Kubernetes inside, for example `1.37.2`.
    pub kubernetes: String,
    /// Debian's name of the processor architecture, for example `amd64`.
    pub architecture: String,
    /// When it was assembled, RFC 3339 in UTC.
    pub built_at: String,
    /// Version of the builder.
    pub builder: String,
    /// What it was built from.
    pub inputs: Inputs,
    /// Kubernetes and everything below it, sorted by name.
    pub components: Vec<Component>,
    /// Container images that a machine has without pulling or importing, sorted by name.
    pub images: Vec<Image>,
    /// Directories whose content a machine starts with but has to own; see [`Seed`].
    pub seeds: Vec<Seed>,
    /// systemd units that the agent starts and stops, sorted; none is enabled.
    pub units: Vec<String>,
    /// Programs for use outside of machines, sorted by name.
    pub exports: Vec<Export>,
    /// Packages of the operating system, sorted by name.
    pub packages: Vec<Package>,
    /// The root file system as a whole.
    pub rootfs: Rootfs,
    /// The bill of materials.
    pub sbom: FileSet,
}

/// What a stemcell was built from; the same inputs are not built twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// Over all of the following, the builder's version and the files it adds.
    pub digest: Digest,
    /// Of the recipe.
    pub recipe: Digest,
    /// Of the components' definitions, locked versions and go.sum files.
    pub components: Digest,
    /// Of the agent; absent in a stemcell without one.
    pub agent: Option<Digest>,
}

/// A component at a version, under `opt/windlass/components/<name>/<version>/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// For example `kubelet`.
    pub name: String,
    /// For example `1.37.2`.
    pub version: String,
    /// Licence as an SPDX expression.
    pub license: String,
    /// Where its files came from.
    pub source: Source,
    /// Its files, sorted by path.
    pub files: Vec<ComponentFile>,
}

/// Where a component's files came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A mirror that the user named.
    Mirror {
        /// Directory or URL.
        origin: String,
    },
    /// The project's own release download.
    Release {
        /// The URL of the first file.
        url: String,
        /// Whether the publisher's signature was checked besides its checksum.
        signature_checked: bool,
    },
    /// Built from a Go module and the go.sum kept with the builder.
    Go {
        /// Module path and version, for example `k8s.io/kubernetes@v1.37.2`.
        module: String,
        /// Version of the Go tool chain, for example `go1.26.8`.
        toolchain: String,
        /// Over go.mod and go.sum.
        sums: Digest,
    },
    /// A Debian package.
    Debian {
        /// Name of the package.
        package: String,
        /// Its full version.
        package_version: String,
    },
    /// Compiled from a source file of this project.
    Own {
        /// Digest of that source file.
        source: Digest,
    },
}

/// One file of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentFile {
    /// Relative to the root file system.
    pub path: String,
    /// Of its content.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A container image in the machine's image store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Full reference, for example `registry.windlass.internal/pause:1`.
    pub name: String,
    /// Of the image's manifest.
    pub digest: Digest,
    /// Size of its layers, unpacked.
    pub bytes: u64,
    /// What is inside: name and version of components.
    pub components: Vec<String>,
}

/// A directory of the stemcell that each machine needs a writable copy of, on a real file system
/// (not an overlay). To save space, the subdirectories in `read_only` are not copied: they never
/// change and can be bind-mounted, read-only, from the stemcell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// Absolute, as the machine sees it, for example `/var/lib/containerd`.
    pub path: String,
    /// Relative to `path`.
    pub read_only: Vec<String>,
}

/// A program that is useful on the director's host or an operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// For example `kubectl`.
    pub name: String,
    /// Relative to the root file system.
    pub path: String,
}

/// A package of the operating system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Binary package.
    pub name: String,
    /// Full version.
    pub version: String,
    /// Source package, without a version.
    pub source: String,
}

/// The root file system as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// The listing of every entry.
    pub files: FileSet,
    /// How many entries the listing has.
    pub entries: u64,
    /// Size of all regular files.
    pub bytes: u64,
}

/// A file beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSet {
    /// Of its content.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

impl Manifest {
    /// Reads a manifest whose signature has been verified. The text says what is wrong.
    pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        #[derive(Deserialize)]
        struct Header {
            format: u32,
        }
        let header: Header = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if header.format != MANIFEST_FORMAT {
            return Err(format!(
                "its format is {}, this version reads {MANIFEST_FORMAT}",
                header.format
            ));
        }
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let files = manifest
            .components
            .iter()
            .flat_map(|c| &c.files)
            .map(|file| &file.path);
        let exports = manifest.exports.iter().map(|export| &export.path);
        let shared = manifest.seeds.iter().flat_map(|seed| &seed.read_only);
        for path in files.chain(exports).chain(shared) {
            if !is_beneath(path) {
                return Err(format!("path {path:?} leaves its directory"));
            }
        }
        for seed in &manifest.seeds {
            if !seed.path.strip_prefix('/').is_some_and(is_beneath) {
                return Err(format!(
                    "seed path {:?} is not absolute and plain",
                    seed.path
                ));
            }
        }
        for (what, value) in [("name", &manifest.name), ("version", &manifest.version)] {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            let ok = !value.is_empty() && value.bytes().all(plain) && !value.starts_with('.');
            if !ok || value.len() > 64 {
                return Err(format!("{what} {value:?} is no part of a file name"));
            }
        }
        Ok(manifest)
    }

    /// `<name>-<version>`: the name of the stemcell's directory.
    pub fn id(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// The component of this name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components
            .iter()
            .find(|component| component.name == name)
    }

    /// The image whose reference is, without its tag, `<anything>/<repository>`.
    pub fn image(&self, repository: &str) -> Option<&Image> {
        self.images.iter().find(|image| {
            let untagged = image
                .name
                .rsplit_once(':')
                .map_or(image.name.as_str(), |(name, _)| name);
            untagged.rsplit('/').next() == Some(repository)
        })
    }
}

/// Whether a relative path stays beneath the directory it is joined to (symbolic links aside).
fn is_beneath(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::is_beneath;

    #[test]
    fn only_paths_that_stay_beneath_are_accepted() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("a", true), ("a/b.c", true), ("..a/b", true),
            ("", false), ("/a", false), ("a/", false), ("a//b", false),
            ("..", false), ("a/../b", false), ("./a", false), ("a\0b", false),
        ];
        for (path, want) in cases {
            assert_eq!(is_beneath(path), want, "{path:?}");
        }
    }
}
