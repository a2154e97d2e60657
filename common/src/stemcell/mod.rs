//! Stemcells as the director sees them: a directory with a root file system and a signed manifest.
//!
//! ```text
//! <root>/<name>-<version>/rootfs/         what a machine boots from, read-only for ever
//!                        manifest.json    every component, image and digest; build inputs
//!                        manifest.sig     ed25519 signature of manifest.json
//!                        files.txt        one line for each entry of rootfs/
//!                        sbom.cdx.json    CycloneDX bill of materials
//! <root>/latest-<kubernetes>              symbolic link to the newest one of that version
//! <root>/trusted.pub                      public keys whose signatures count
//! ```
//!
//! # Invariants
//! * A directory under its final name is complete: builders assemble elsewhere and rename.
//! * Its content never changes, because running machines use it as the lower layer of an overlay;
//!   other content has another version.
//! * Nothing of a manifest is used before its signature is verified ([`verify()`]).
//!
//! # After a crash
//! There is nothing to repair: what was not renamed is not a stemcell.
//!
//! # Not here
//! Building and signing (`windlass-stemcell`).

mod key;
mod manifest;
mod tree;
mod verify;

pub use key::{KEY_FILE_BYTES_MAX, KeyError, PublicKey, TrustedKeys, signed_message};
pub use manifest::{
    Component, ComponentFile, Export, FileSet, Image, Inputs, MANIFEST_FORMAT, Manifest, Package,
    Rootfs, Seed, Source,
};
pub use tree::{Tree, TreeError, scan};
pub use verify::{Installed, VerifyDepth, VerifyError, installed, verify};

/// Name of the root file system inside a stemcell.
pub const ROOTFS: &str = "rootfs";
/// Where the agent is, relative to the root file system.
pub const AGENT: &str = "opt/windlass/bin/windlass-agent";
/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// Name of the manifest's signature.
pub const SIGNATURE: &str = "manifest.sig";
/// Name of the listing of the root file system.
pub const FILES: &str = "files.txt";
/// Name of the bill of materials.
pub const SBOM: &str = "sbom.cdx.json";
/// Name of the file of trusted public keys beside the stemcells.
pub const TRUSTED: &str = "trusted.pub";

/// Largest manifest, in bytes: a thousand files at 200 bytes each, fifty times over.
pub const MANIFEST_BYTES_MAX: u64 = 10 << 20;
/// Largest listing, in bytes: 250,000 entries of about 250 bytes; a Debian root has 8,000.
pub const FILES_BYTES_MAX: u64 = 64 << 20;
/// Largest bill of materials, in bytes: 10,000 entries of about 3 KiB.
pub const SBOM_BYTES_MAX: u64 = 32 << 20;
