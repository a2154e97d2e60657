//! The operating system: a Debian root file system by `mmdebstrap`, cached by what it is made from.
//!
//! What must differ between machines (machine id, host name, keys) is emptied, and what belongs to
//! the package manager alone (lists, caches, logs) is removed.
//!
//! # After a crash
//! An unfinished root is in the staging directory and removed by the next build.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use windlass_common::id::Digest;
use windlass_common::stemcell::Package;

use crate::files::{FileError, Staging, at, create_dir, publish, remove_tree, write_atomic};
use crate::progress::Progress;
use crate::recipe::Debian;
use crate::tool::Tool;

/// Changes with the code below, so that roots made by older code are not taken from the cache.
const REVISION: u32 = 1;
const RECORD: &str = "base.json";
const ROOTFS: &str = "rootfs";
/// How to get the tool.
pub const HINT: &str = "install the package mmdebstrap";

/// A Debian root file system in the cache.
#[derive(Debug, Clone)]
pub struct Base {
    /// The root.
    pub rootfs: PathBuf,
    /// Its packages, sorted by name.
    pub packages: Vec<Package>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    packages: Vec<Package>,
}

/// Digest of everything that decides what is installed, apart from the archive's state.
pub fn inputs(debian: &Debian, arch: &str) -> Digest {
    let inputs = serde_json::to_vec(&(REVISION, arch, debian));
    Digest::of(&inputs.expect("strings and lists serialise to JSON"))
}

fn path_of(debian: &Debian, arch: &str, cache: &Path) -> PathBuf {
    cache.join("base").join(&inputs(debian, arch).hex()[..16])
}

/// The root in the cache, if there is one.
pub fn cached(debian: &Debian, arch: &str, cache: &Path) -> Option<Base> {
    let path = path_of(debian, arch, cache);
    let bytes = fs::read(path.join(RECORD)).ok()?;
    let Record { packages } = serde_json::from_slice(&bytes).ok()?;
    Some(Base {
        rootfs: path.join(ROOTFS),
        packages,
    })
}

/// Finds the root in the cache or makes it. `refresh` makes a new one in any case, with the packages
/// of today.
pub fn obtain(
    debian: &Debian,
    arch: &str,
    cache: &Path,
    staging: &Staging,
    refresh: bool,
    progress: Progress,
) -> Result<Base, FileError> {
    if !refresh && let Some(base) = cached(debian, arch, cache) {
        return Ok(base);
    }
    let path = path_of(debian, arch, cache);
    let step = progress.start(format!(
        "Debian {} with {} packages",
        debian.suite,
        debian.packages.len()
    ));
    let place = staging.place("base")?;
    create_dir(&place)?;
    let rootfs = place.join(ROOTFS);
    bootstrap(debian, arch, &rootfs)?;
    let packages = list_packages(&rootfs)?;
    clean(&rootfs)?;
    let record = serde_json::to_vec_pretty(&Record {
        packages: packages.clone(),
    })
    .map_err(|error| at("serialise", &place.join(RECORD))(error.into()))?;
    write_atomic(&place.join(RECORD), &record, 0o644)?;
    remove_tree(&path)?;
    publish(&place, &path)?;
    step.done(format!("{} packages installed", packages.len()));
    Ok(Base {
        rootfs: path.join(ROOTFS),
        packages,
    })
}

fn bootstrap(debian: &Debian, arch: &str, rootfs: &Path) -> Result<(), FileError> {
    // Later options win, and dpkg applies the last pattern that matches.
    let filters = debian
        .exclude
        .iter()
        .map(|path| format!("--dpkgopt=path-exclude={path}"));
    let filters = filters.chain(
        debian
            .include
            .iter()
            .map(|p| format!("--dpkgopt=path-include={p}")),
    );
    Tool::new("mmdebstrap", HINT, "installing Debian packages")
        .args(["--mode=root", "--variant=essential", "--format=directory"])
        .arg(format!("--architectures={arch}"))
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(filters)
        .arg(format!("--include={}", debian.packages.join(",")))
        .arg(&debian.suite)
        .arg(rootfs)
        .args(&debian.sources)
        .run()?;
    Ok(())
}

fn list_packages(rootfs: &Path) -> Result<Vec<Package>, FileError> {
    let output = Tool::new("dpkg-query", "install the package dpkg", "listing packages")
        .arg(format!(
            "--admindir={}",
            rootfs.join("var/lib/dpkg").display()
        ))
        .args([
            "--show",
            "--showformat=${Package}\t${Version}\t${source:Package}\n",
        ])
        .run()?;
    let mut packages = Vec::new();
    for line in String::from_utf8_lossy(&output).lines() {
        if let [name, version, source] = line.split('\t').collect::<Vec<_>>()[..] {
            let [name, version, source] = [name, version, source].map(str::to_owned);
            packages.push(Package {
                name,
                version,
                source,
            });
        }
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

/// Empties what differs between machines and removes what no machine needs.
fn clean(rootfs: &Path) -> Result<(), FileError> {
    for dir in [
        "dev",
        "run",
        "tmp",
        "var/tmp",
        "var/cache",
        "var/log",
        "var/lib/apt",
        "boot",
    ] {
        let dir = rootfs.join(dir);
        let items = match fs::read_dir(&dir) {
            Ok(items) => items,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at("read", &dir)(error)),
        };
        for item in items {
            let path = item.map_err(at("read", &dir))?.path();
            let is_dir = fs::symlink_metadata(&path)
                .map_err(at("read", &path))?
                .is_dir();
            let removed = if is_dir {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(at("remove", &path))?;
        }
    }
    for file in [
        "etc/machine-id",
        "etc/hostname",
        "etc/resolv.conf",
        "etc/fstab",
    ] {
        let path = rootfs.join(file);
        let _ = fs::remove_file(&path); // resolv.conf may be a link; a missing file is fine
        write_atomic(&path, b"", 0o644)?;
    }
    let ids = rootfs.join("var/lib/dbus/machine-id");
    let _ = fs::remove_file(ids); // dbus takes /etc/machine-id then
    write_atomic(
        &rootfs.join("etc/hosts"),
        b"127.0.0.1 localhost\n::1 localhost\n",
        0o644,
    )
}
