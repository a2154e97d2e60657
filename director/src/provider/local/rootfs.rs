//! What a machine finds on its disk at first boot: its own files over the stemcell's root.
//!
//! The root is an overlay: the stemcell's `rootfs/` below, the machine's changes above. The machine's
//! own files are written into the upper layer before it is ever mounted. Directories whose users
//! make overlays themselves, or need a real disk, lie on the host's file system: they start as a copy of
//! what the stemcell has there, except the parts its manifest names as read-only *seeds* (image layers),
//! which are mounted from the stemcell so that they cost neither time nor space.
//!
//! # Invariants
//! * The stemcell is never written to, nor hard-linked from: a machine cannot reach another through it.
//! * The machine's own files are durable when [`prepare`] returns; copies of seeds are not. A machine that
//!   is made just before a power cut may have to be made again.
//! * Everything here may be repeated; [`prepare`] starts from an empty directory.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, mknod};
use serde::{Deserialize, Serialize};

use super::files::{What, make_dir, make_dir_exact, read_small, sync_all, write_quick};
use super::record::Record;
use crate::provider::ProviderError;

/// Directories that are never on the overlay: the kernel refuses overlay mounts on an overlay, and pods'
/// volumes want a real file system. etcd's data has a persistent disk of its own.
const DATA_DIRS: [&str; 2] = ["/var/lib/containerd", "/var/lib/kubelet"];
/// Most seeds of a manifest, and most read-only parts of one: each part is a mount of every machine.
const SEEDS_MAX: usize = 256;

/// A directory of the stemcell that machines get as their own, on the host's file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seed {
    /// Where it is, in the stemcell's root and in the machine.
    pub(crate) path: PathBuf,
    /// Parts below it that are mounted read-only from the stemcell instead of copied.
    #[serde(default)]
    pub(crate) read_only: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    seeds: Vec<Seed>,
}

/// The seeds of a stemcell: those its manifest names, and the directories that must be on a disk.
pub(crate) fn seeds(stemcell: &Path) -> Result<Vec<Seed>, ProviderError> {
    let path = stemcell.join("manifest.json");
    let invalid = |value: String, allowed: &str| ProviderError::Invalid {
        what: "stemcell seed",
        value,
        allowed: allowed.to_owned(),
    };
    let manifest: Manifest = read_manifest(&path)?;
    let mut seeds = manifest.seeds;
    for dir in DATA_DIRS {
        if !seeds.iter().any(|s| s.path == Path::new(dir)) {
            seeds.push(Seed {
                path: dir.into(),
                read_only: Vec::new(),
            });
        }
    }
    for seed in &seeds {
        let plain = |p: &Path| p.components().all(|c| matches!(c, Component::Normal(_)));
        let below_root = seed
            .path
            .strip_prefix("/")
            .is_ok_and(|p| plain(p) && p != Path::new(""));
        if !below_root {
            return Err(invalid(
                seed.path.display().to_string(),
                "an absolute path without `..`",
            ));
        }
        if let Some(part) = seed
            .read_only
            .iter()
            .find(|p| !plain(p) || p == &Path::new(""))
        {
            return Err(invalid(
                part.display().to_string(),
                "a path relative to the seed, without `..`",
            ));
        }
    }
    if seeds.len() > SEEDS_MAX || seeds.iter().any(|s| s.read_only.len() > SEEDS_MAX) {
        return Err(invalid(
            path.display().to_string(),
            "at most 256 seeds of at most 256 parts",
        ));
    }
    seeds.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(seeds)
}

/// Reads the manifest, whose size the stemcell's builder bounds (it lists every file).
fn read_manifest(path: &Path) -> Result<Manifest, ProviderError> {
    let missing = |value: String| ProviderError::Invalid {
        what: "stemcell",
        value,
        allowed: "a directory with `rootfs/` and `manifest.json`; build or fetch it again"
            .to_owned(),
    };
    match fs::File::open(path) {
        Ok(file) => {
            serde_json::from_reader(io::BufReader::new(file)).map_err(|e| ProviderError::Damaged {
                path: path.to_owned(),
                detail: e.to_string(),
            })
        }
        Err(e) => Err(missing(format!("{} ({e})", path.display()))),
    }
}

/// Fills the machine's directory: upper layer, data directories, files shown in `/proc`.
pub(crate) fn prepare(record: &Record, settings: &[u8]) -> Result<(), ProviderError> {
    let dir = record.dir();
    for path in [dir.upper(), dir.work(), dir.root(), dir.files()] {
        make_dir_exact(&path, 0o755)?;
    }
    let rootfs = record.stemcell.join("rootfs");
    let mut upper = Upper {
        upper: dir.upper(),
        lower: rootfs.clone(),
        written: Vec::new(),
    };
    upper.file(
        "etc/hostname",
        format!("{}\n", record.hostname).as_bytes(),
        0o644,
    )?;
    upper.file("etc/hosts", hosts(record).as_bytes(), 0o644)?;
    upper.file("etc/machine-id", machine_id()?.as_bytes(), 0o444)?;
    upper.file("etc/resolv.conf", &resolv_conf()?, 0o644)?;
    upper.file("etc/windlass/settings.json", settings, 0o600)?;
    let memory = memory_shown(record)?;
    fs::write(dir.files().join("meminfo"), meminfo(memory))
        .what(|| "cannot write meminfo".into())?;
    fs::write(dir.files().join("swaps"), SWAPS).what(|| "cannot write swaps".into())?;
    for seed in &record.seeds {
        let to = dir.data(&seed.path);
        if let Some(parent) = to.parent() {
            make_dir(parent, 0o755)?;
        }
        let from = rootfs.join(seed.path.strip_prefix("/").unwrap_or(&seed.path));
        let read_only: BTreeSet<&Path> = seed.read_only.iter().map(PathBuf::as_path).collect();
        copy_seed(&from, &to, &read_only)?;
    }
    sync_all(&upper.written)
}

/// Writes into an upper layer, with the directories on the way as the lower layer has them.
struct Upper {
    upper: PathBuf,
    lower: PathBuf,
    written: Vec<PathBuf>,
}

impl Upper {
    fn file(&mut self, relative: &str, bytes: &[u8], mode: u32) -> Result<(), ProviderError> {
        let path = self.upper.join(relative);
        let mut walked = PathBuf::new();
        for part in Path::new(relative)
            .parent()
            .into_iter()
            .flat_map(Path::components)
        {
            walked.push(part);
            let mode = match fs::symlink_metadata(self.lower.join(&walked)) {
                Ok(lower) if lower.is_dir() => lower.permissions().mode() & 0o7777,
                Ok(_) => {
                    return Err(ProviderError::Invalid {
                        what: "stemcell path",
                        value: format!("/{}", walked.display()),
                        allowed: "must be a directory".to_owned(),
                    });
                }
                Err(_) => 0o755,
            };
            make_dir_exact(&self.upper.join(&walked), mode)?;
        }
        write_quick(&path, bytes, mode)?;
        self.written.push(path);
        Ok(())
    }
}

fn hosts(record: &Record) -> String {
    let (address, name) = (record.address, &record.hostname);
    format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{address} {name}\n")
}

/// A fresh machine id: machines made from one stemcell must not share one.
fn machine_id() -> Result<String, ProviderError> {
    let path = "/proc/sys/kernel/random/uuid";
    let uuid = fs::read_to_string(path).what(|| format!("cannot read {path}"))?;
    Ok(format!("{}\n", uuid.trim().replace('-', "")))
}

/// The host's name servers, except those that only the host itself can reach.
fn resolv_conf() -> Result<Vec<u8>, ProviderError> {
    let text = read_small("/etc/resolv.conf".as_ref())?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut kept = String::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let reachable = match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) => address
                .parse::<std::net::IpAddr>()
                .is_ok_and(|a| !a.is_loopback()),
            (Some("search" | "options" | "domain"), Some(_)) => true,
            _ => false,
        };
        if reachable {
            let _ = writeln!(kept, "{line}"); // writing into a String cannot fail
        }
    }
    Ok(kept.into_bytes())
}

/// What the machine sees as its memory: its limit, or the host's memory if that is less.
fn memory_shown(record: &Record) -> Result<u64, ProviderError> {
    let text = fs::read_to_string("/proc/meminfo").what(|| "cannot read /proc/meminfo".into())?;
    let host_kib: Option<u64> = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok());
    Ok(host_kib.map_or(record.size.memory_bytes, |kib| {
        record.size.memory_bytes.min(kib * 1024)
    }))
}

/// The kubelet takes a node's capacity from here; use is read from the control group, not from here.
fn meminfo(bytes: u64) -> String {
    let kib = bytes / 1024;
    let row = |name: &str, value: u64| format!("{:<16}{value:>8} kB\n", format!("{name}:"));
    [
        ("MemTotal", kib),
        ("MemFree", kib),
        ("MemAvailable", kib),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Shmem", 0),
        ("SReclaimable", 0),
    ]
    .iter()
    .map(|(name, value)| row(name, *value))
    .collect()
}

/// No swap: the host's is not the machine's, and a kubelet refuses to start where it sees some.
const SWAPS: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

/// Copies a seed. A stemcell that does not have it gives an empty directory.
fn copy_seed(from: &Path, to: &Path, read_only: &BTreeSet<&Path>) -> Result<(), ProviderError> {
    let mut left = vec![PathBuf::new()];
    match fs::symlink_metadata(from) {
        Ok(metadata) if metadata.is_dir() => copy_dir(to, &metadata)?,
        Ok(_) => {
            return Err(ProviderError::Invalid {
                what: "stemcell seed",
                value: from.display().to_string(),
                allowed: "must be a directory".to_owned(),
            });
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && read_only.is_empty() => {
            return make_dir(to, 0o711);
        }
        Err(source) => {
            let what = format!("cannot read seed {} of the stemcell", from.display());
            return Err(ProviderError::Host { what, source });
        }
    }
    while let Some(relative) = left.pop() {
        let dir = from.join(&relative);
        let reading = || format!("cannot read seed {} of the stemcell", dir.display());
        for entry in fs::read_dir(&dir).what(reading)? {
            let entry = entry.what(reading)?;
            let relative = relative.join(entry.file_name());
            let metadata = entry.metadata().what(reading)?;
            let target = to.join(&relative);
            if metadata.is_dir() {
                copy_dir(&target, &metadata)?;
                if !read_only.contains(relative.as_path()) {
                    left.push(relative);
                }
            } else if read_only.contains(relative.as_path()) {
                fs::write(&target, b"").what(|| format!("cannot make {}", target.display()))?;
            } else {
                copy_entry(&entry.path(), &target, &metadata).what(|| {
                    format!(
                        "cannot copy {} to {}",
                        entry.path().display(),
                        target.display()
                    )
                })?;
            }
        }
    }
    Ok(())
}

fn copy_dir(to: &Path, metadata: &Metadata) -> Result<(), ProviderError> {
    let copy = || -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(to)?;
        lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
        fs::set_permissions(to, metadata.permissions())
    };
    copy().what(|| format!("cannot make directory {}", to.display()))
}

/// Copies one entry that is no directory, with owner and mode. Extended attributes are not copied: what
/// needs them (image layers) belongs to a read-only part.
fn copy_entry(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, Some(metadata.uid()), Some(metadata.gid()));
    }
    if kind.is_file() {
        fs::copy(from, to)?;
    } else {
        let format = if kind.is_char_device() {
            SFlag::S_IFCHR
        } else if kind.is_block_device() {
            SFlag::S_IFBLK
        } else if kind.is_fifo() {
            SFlag::S_IFIFO
        } else {
            return Ok(()); // a socket: nobody listens on its copy
        };
        mknod(to, format, Mode::empty(), metadata.rdev())?;
    }
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, metadata.permissions())
}
