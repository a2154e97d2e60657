//! What a machine needs before anything can be built or run, and how it is installed.

use anyhow::{Result, bail};

use crate::shell::{has, privileged, step};

/// A program or a file, the Debian package that brings it, and what it is for.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("cc", "build-essential", "building native code"),
    ("pkg-config", "pkg-config", "building runc"),
    ("runc", "runc", "machines as system containers"),
    (
        "mmdebstrap",
        "mmdebstrap",
        "the stemcell's root file system",
    ),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        "Debian's signatures",
    ),
    (
        "/usr/include/seccomp.h",
        "libseccomp-dev",
        "system call filters of containers",
    ),
    (
        "setpriv",
        "util-linux",
        "the image store, and work behind other work",
    ),
    ("ip", "iproute2", "networks of machines"),
    ("nft", "nftables", "address translation for machines"),
    ("mkfs.ext4", "e2fsprogs", "persistent disks"),
    ("losetup", "mount", "persistent disks"),
    ("curl", "curl", "release downloads"),
    (
        "haproxy",
        "haproxy",
        "tests of a machine's way to the API servers",
    ),
    ("gpgv", "gpgv", "package signatures"),
    ("capsh", "libcap2-bin", "the floor of a benchmark"),
];

/// Installs what is missing through apt; says what and why. Needs root, or sudo with a password
/// prompt.
pub(crate) fn install() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(looked_for, ..)| !has(looked_for))
        .collect();
    if !missing.is_empty() {
        for (looked_for, package, purpose) in &missing {
            println!("missing: {looked_for} (package {package}), for {purpose}");
        }
        if !has("apt-get") {
            bail!("no apt-get here: install the packages named above, then run this again");
        }
        let mut packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
        packages.sort_unstable();
        packages.dedup();
        step(
            "package lists",
            privileged("apt-get").args(["update", "-qq"]),
        )?;
        let mut apt = privileged("apt-get");
        apt.args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&packages);
        step(&format!("installing {}", packages.join(", ")), &mut apt)?;
    }
    if !has("go") {
        bail!(
            "no Go toolchain: components without a reachable release download are built from their \
             Go modules. Install Go 1.21 or newer (it fetches the version that a module asks for)"
        );
    }
    Ok(())
}
