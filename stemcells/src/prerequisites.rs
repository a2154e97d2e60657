//! Programs of the host that a build needs, and the Debian packages that have them.
//!
//! This is the list that installers use; [`missing`] is checked before anything is changed.

use std::path::Path;

use serde::Serialize;

use crate::tool::is_installed;

/// A package and why it is needed.
#[derive(Debug, Clone, Serialize)]
pub struct Prerequisite {
    /// Name in Debian and Ubuntu; empty if it is not a package there.
    pub package: &'static str,
    /// What is looked for.
    pub looks_for: &'static str,
    /// What it is needed for.
    pub why: &'static str,
    /// Without it no stemcell can be built; without the others some sources are left out.
    pub required: bool,
    /// Whether it is there.
    pub found: bool,
}

type Row = (&'static str, &'static str, &'static str, bool);

#[rustfmt::skip] // one case per line, so that a missing one shows
const ROWS: [Row; 12] = [
    ("mmdebstrap", "mmdebstrap", "makes the Debian root file system", true),
    ("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg", "checks Debian's signatures", true),
    ("dpkg", "dpkg-query", "lists the packages for the manifest", true),
    ("tar", "tar", "packs images, unpacks downloads", true),
    ("util-linux", "setpriv", "ties the build's containerd to the build", true),
    ("gcc", "cc", "compiles pause, and the C part of runc", true),
    ("libc6-dev", "/usr/include/stdlib.h", "compiles pause statically", true),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt", "checks the hosts of downloads", true),
    ("curl", "curl", "downloads releases", false),
    ("libseccomp-dev", "/usr/include/seccomp.h", "builds runc from source", false),
    ("pkg-config", "pkg-config", "builds runc from source", false),
    ("", "go", "builds components from source: Go from https://go.dev/dl/", false),
];

/// Everything that is needed, with what is there.
pub fn all() -> Vec<Prerequisite> {
    let found = |what: &str| match what.starts_with('/') {
        true => Path::new(what).exists(),
        false => is_installed(what),
    };
    ROWS.iter()
        .map(|&(package, looks_for, why, required)| {
            let found = found(looks_for);
            Prerequisite {
                package,
                looks_for,
                why,
                required,
                found,
            }
        })
        .collect()
}

/// What is required and missing.
pub fn missing() -> Vec<Prerequisite> {
    all()
        .into_iter()
        .filter(|one| one.required && !one.found)
        .collect()
}
