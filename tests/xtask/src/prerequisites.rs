//! What a machine needs before anything can be built or run, and how it is installed.

use anyhow::{Result, bail};

use crate::shell::{capture, command, has, privileged, step};

/// A program, the Debian package that brings it, and what it is for.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("cc", "build-essential", "building native code"),
    ("pkg-config", "pkg-config", "building runc"),
    ("runc", "runc", "machines as system containers"),
    (
        "mmdebstrap",
        "mmdebstrap",
        "the stemcell's root file system",
    ),
    ("ip", "iproute2", "networks of machines"),
    ("nft", "nftables", "address translation for machines"),
    ("mkfs.ext4", "e2fsprogs", "persistent disks"),
    ("losetup", "mount", "persistent disks"),
    ("curl", "curl", "release downloads"),
    ("gpgv", "gpgv", "package signatures"),
    ("capsh", "libcap2-bin", "the floor of a benchmark"),
];

/// Installs what is missing through apt; says what and why. Needs root, or sudo with a password
/// prompt.
pub(crate) fn install() -> Result<()> {
    let mut missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, ..)| !has(program))
        .collect();
    let seccomp = (
        "libseccomp",
        "libseccomp-dev",
        "system call filters of containers",
    );
    if capture(command("pkg-config").args(["--exists", "libseccomp"])).is_err() {
        missing.push(&seccomp);
    }
    if !missing.is_empty() {
        for (program, package, purpose) in &missing {
            println!("missing: {program} (package {package}), for {purpose}");
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
