//! The local provider: machines as system containers on the director's own host.
//!
//! `runc` boots the stemcell's root file system with systemd as process 1, on an overlay of its own, in
//! its own namespaces, on a private bridge. A small [`monitor`] process for each machine plays the
//! hypervisor; an [`endpoint`] process for each cluster spreads API connections. Both outlive the director.
//!
//! # Invariants
//! * Everything on the host carries the provider's name (`layout`); providers of different names share
//!   nothing but the host's own settings (`host`), and never touch one another's.
//! * One [`LocalProvider`] at a time works on one data directory; the director's own lock ensures it.
//! * Operations on one machine follow one another, those on different machines run in parallel.
//! * Nothing a machine can write is trusted with a path of the host.
//!
//! # After a crash
//! Every operation begins by looking at what is there. Machines run on under their monitors, a monitor
//! that died is replaced at the next call, half-made machines are shown as such.
//!
//! # Not here
//! Limits of the root disk: a machine may fill the host's file system; creation makes sure that the size
//! asked for is free. Isolation from a hostile root inside a machine.

mod calls;
mod cgroup;
mod disk;
pub mod endpoint;
mod endpoints;
mod files;
mod host;
mod kept;
mod layout;
mod lifecycle;
mod machines;
pub mod monitor;
mod netlink;
mod network;
mod oci;
mod power;
mod preflight;
mod process;
mod record;
mod reset;
mod rootfs;
mod settings;
mod spawn;
mod sys;
mod traits;
mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;
use windlass_common::id::ZoneName;

use self::files::What;
use self::layout::{Layout, NAME_MAX, PREFIX_MAX, PREFIX_MIN};
use self::spawn::Children;
use crate::provider::{NetworkView, ProviderError};

/// Where a local provider works and under which name.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Its data directory, on a file system that is no overlay. Made if missing.
    pub dir: PathBuf,
    /// Prefix of everything it makes on the host: 1 to 8 lower-case letters and digits, beginning with a
    /// letter, unique on the host.
    pub name: String,
    /// The machines' network, from /16 to /29, unused on the host.
    pub cidr: Ipv4Net,
    /// The program that contains [`monitor::main`] and [`endpoint::main`] as `machine-monitor` and
    /// `endpoint`.
    pub director_exe: PathBuf,
    /// runc, by path or by name.
    pub runc: PathBuf,
    /// Zones that machines may be said to be in. All are this host.
    pub zones: Vec<ZoneName>,
}

/// Machines as system containers on this host.
#[derive(Debug, Clone)]
pub struct LocalProvider {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    director_exe: PathBuf,
    runc: PathBuf,
    zones: Vec<ZoneName>,
    children: Children,
    busy: Busy,
    /// Held while the bridge and the other things all machines share are made or removed.
    host: Mutex<Shared>,
}

/// What this process knows about the things all machines share.
#[derive(Debug, Default)]
struct Shared {
    /// They were made or found complete.
    ready: bool,
}

impl LocalProvider {
    /// A provider with this configuration. Changes nothing on the host.
    pub fn new(config: LocalConfig) -> Result<LocalProvider, ProviderError> {
        let invalid = |what, value: String, allowed: &str| ProviderError::Invalid {
            what,
            value,
            allowed: allowed.to_owned(),
        };
        let name = config.name;
        let plain = name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let begins = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if !plain || !begins || name.len() > NAME_MAX {
            let allowed = "1 to 8 lower-case letters and digits, beginning with a letter";
            return Err(invalid("provider name", name, allowed));
        }
        let cidr = config.cidr.trunc();
        if !(PREFIX_MIN..=PREFIX_MAX).contains(&cidr.prefix_len()) {
            return Err(invalid("machine network", cidr.to_string(), "/16 to /29"));
        }
        // Absolute and without links: mount options, loop devices and process arguments carry it.
        let dir = std::path::absolute(&config.dir)
            .what(|| format!("cannot resolve {}", config.dir.display()))?;
        let dir = canonical(&dir);
        let layout = Layout { dir, name, cidr };
        Ok(LocalProvider {
            inner: Arc::new(Inner {
                layout,
                director_exe: config.director_exe,
                runc: config.runc,
                zones: config.zones,
                children: Children::default(),
                busy: Busy::default(),
                host: Mutex::default(),
            }),
        })
    }
}

impl Inner {
    /// See [`crate::provider::Provider::network`].
    fn network(&self) -> NetworkView {
        let cidr = self.layout.cidr;
        let gateway = self.layout.gateway();
        NetworkView {
            cidr,
            gateway,
            reserved: vec![cidr.network(), gateway, cidr.broadcast()],
        }
    }
}

/// The path with every link resolved in the part of it that exists.
fn canonical(path: &std::path::Path) -> PathBuf {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(path), _, _) => path,
        (Err(_), Some(parent), Some(name)) => canonical(parent).join(name),
        (Err(_), _, _) => path.to_owned(),
    }
}

/// Which machines, disks and endpoints are being worked on; one operation each at a time.
#[derive(Debug, Default)]
struct Busy {
    locks: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

impl Busy {
    /// Runs `work` alone for this key. Keys are `<kind>/<name>`.
    fn alone<T>(&self, key: String, work: impl FnOnce() -> T) -> T {
        let lock = Arc::clone(relock(&self.locks).entry(key.clone()).or_default());
        let result = {
            let _alone = relock(&lock);
            work()
        };
        drop(lock);
        let mut locks = relock(&self.locks);
        if locks
            .get(&key)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            locks.remove(&key);
        }
        result
    }
}

/// Takes a lock whose data a panic elsewhere cannot have left half-changed.
fn relock<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
