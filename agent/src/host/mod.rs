//! The machine as the agent touches it: files beneath a root, and subprocesses.
//!
//! # Invariants
//! * Every path of a step is resolved beneath [`Host::root`], component by component, and never
//!   through a symbolic link ([`tree`]).
//! * A subprocess never outlives its step ([`command`]).
//!
//! # Not here
//! What is done with them ([`crate::steps`]); systemd ([`crate::units`]).

pub mod command;
pub mod tree;

use std::path::{Path, PathBuf};

use tree::{Tree, TreeError};

/// Where the agent keeps what it must remember, beneath the root.
pub const STATE_DIR: &str = "/var/lib/windlass";

/// systemd writes here what sort of container it runs in; on a VM there is no such file.
const CONTAINER_FILE: &str = "/run/systemd/container";

/// The machine: `/`, or a directory in tests.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    tree: Tree,
}

impl Host {
    /// Opens the machine whose root directory this is.
    pub fn open(root: &Path) -> Result<Self, TreeError> {
        Ok(Self {
            root: root.to_owned(),
            tree: Tree::open(root)?,
        })
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Files beneath the root, free of symbolic links.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Whether the machine is a system container; then some of the kernel's files show the host, and
    /// no udev announces devices.
    pub fn is_container(&self) -> bool {
        self.path(CONTAINER_FILE).exists()
    }

    /// Where an absolute path of the machine is for this process. Only for paths that are ours or
    /// the kernel's: it follows symbolic links.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Path of an artifact in the machine's store.
    pub fn artifact_path(digest: &windlass_common::id::Digest) -> String {
        format!("{STATE_DIR}/artifacts/sha256/{}", digest.hex())
    }
}
